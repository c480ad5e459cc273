"""Files that commit 55b6d90 wrote are still read: a run stopped after step 2 of 4, on 8 devices.

    mtdml train --config=digits --workdir=run_55b6d90 --config.model.backbone=resnet10 ...

evaluation.json has the whole command. The files of step 4, the report, and TensorBoard's events were
removed; `mtdml evaluate` then measured the checkpoint of step 2. predictions.json holds what
`mtdml_jax.load(...).predict(...)` of that commit returned for the first 20 digits of scikit-learn.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from sklearn import datasets

import mtdml_jax
from mtdml_jax.config import read_config
from mtdml_jax.models import make_network
from mtdml_jax.reports.evaluate import evaluate, load_checkpoint
from mtdml_jax.training.loop import train
from mtdml_jax.training.metrics import read_metrics

OLD = Path(__file__).parents[1] / 'files' / 'run_55b6d90'
# The linear classifier is fitted until it changes little, so it depends on the machine's rounding.
FITTED = 'linear'


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    return tmp_path_factory.mktemp('digits') / 'prepared'


@pytest.fixture
def run(prepared, tmp_path):
    """(config, folder) of a copy of the old run."""
    shutil.copytree(OLD, tmp_path / 'run')
    config = read_config(tmp_path / 'run').unlock()
    config.data.prepared_dir = str(prepared)
    return config.lock(), tmp_path / 'run'


def read_json(path):
    return json.loads(path.read_text(encoding='utf-8'))


def assert_same(found, expected, place=''):
    """Compares nested JSON: the structure and all but floats exactly, floats nearly."""
    assert type(found) is type(expected), place
    if isinstance(expected, dict):
        assert list(found) == list(expected), place
        found, expected = list(found.items()), list(expected.items())
        for (name, x), (_, y) in zip(found, expected, strict=True):
            assert_same(x, y, f'{place}.{name}')
    elif isinstance(expected, list):
        assert len(found) == len(expected), place
        for number, (x, y) in enumerate(zip(found, expected, strict=True)):
            assert_same(x, y, f'{place}[{number}]')
    elif isinstance(expected, float):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5, err_msg=place)
    else:
        assert found == expected, place


def test_checkpoint_is_restored_with_the_digest_that_was_written(run):
    config, folder = run
    assert 'digest' in read_json(folder / 'checkpoints' / '2' / 'info' / 'metadata')
    state, info = load_checkpoint(make_network(config.model, 10), config, folder)
    assert (int(state.step), info['class_names']) == (2, [str(digit) for digit in range(10)])
    assert state.ema is not None
    # The batch of 24 images of the second step fills the memory.
    assert int(state.memory.filled.sum()) == 24


def test_evaluation_of_its_checkpoint_is_the_recorded_one(run):
    config, folder = run
    expected = read_json(folder / 'evaluation.json')
    (folder / 'evaluation.json').unlink()
    evaluate(config, folder, 'test', expected['run']['command'])
    found = read_json(folder / 'evaluation.json')
    assert found['run'].keys() == expected['run'].keys()
    for name in ('command', 'steps', 'checkpoint_step', 'seconds', 'num_parameters'):
        assert found['run'][name] == expected['run'][name]
    fitted = [x['classifiers'].pop(FITTED) for x in (found, expected)]
    assert fitted[0].keys() == fitted[1].keys()
    np.testing.assert_allclose(*(x['accuracy'] for x in fitted), atol=0.01)
    del found['run'], expected['run']
    assert_same(found, expected)
    assert (folder / 'report.html').is_file()
    assert (folder / 'model.safetensors').is_file()


def test_run_goes_on_from_its_checkpoint_and_ends_as_it_did(run):
    config, folder = run
    expected = read_metrics(folder / 'metrics.jsonl')
    assert [line['step'] for line in expected] == [1, 2, 2, 3, 4, 4]
    assert train(config, folder)
    found = read_metrics(folder / 'metrics.jsonl')
    assert found[:3] == expected[:3]
    # The first step after the checkpoint is a forward pass with the restored variables.
    assert_same(found[3], expected[3])
    # Adam divides by gradients near 0 and so enlarges a machine's rounding.
    assert [line.keys() for line in found] == [line.keys() for line in expected]
    np.testing.assert_allclose(found[4]['train/loss'], expected[4]['train/loss'], rtol=1e-2)
    assert (folder / 'checkpoints' / '4').is_dir()
    assert train(config, folder)
    assert read_metrics(folder / 'metrics.jsonl') == found


@pytest.mark.parametrize('by', ['softmax', 'centroid'])
def test_model_file_predicts_what_it_did(by):
    digits = np.round(datasets.load_digits().images[:20] * (255 / 16)).astype(np.uint8)
    found = mtdml_jax.load(OLD).predict(list(digits), by=by)
    expected = read_json(OLD / 'predictions.json')[by]
    assert found.labels.tolist() == expected['labels']
    np.testing.assert_allclose(found.probabilities, expected['probabilities'], atol=1e-5)
