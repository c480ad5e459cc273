"""From a run to model files; the runtimes themselves are tested in test_runtimes.py."""

import json

import numpy as np
import pytest
from small_data import CONFIG, csv_rows, small_overrides

import mtdml_jax
from mtdml_jax.__main__ import main

pytestmark = pytest.mark.usefixtures('resnet4')


@pytest.fixture(scope='module')
def run(folder):
    """A finished run of 4 slices."""
    command = ['train', f'--config={CONFIG}', f'--workdir={folder / "run"}']
    assert main([*command, *small_overrides(folder)]) == 0
    return folder / 'run'


@pytest.fixture(scope='module')
def validation():
    """The faces of PublicTest and their labels."""
    rows = [row for row in csv_rows() if row[2] == 'PublicTest']
    images = [np.array(pixels.split(), np.uint8).reshape(48, 48) for _, pixels, _ in rows]
    return images, np.array([emotion for emotion, _, _ in rows])


def accuracies(model, validation):
    images, labels = validation
    return {
        by: np.mean(model.predict(images, by=by).labels == labels) for by in ('softmax', 'centroid')
    }


def test_exported_model_is_that_of_the_run_with_the_licence(run, tmp_path, validation, capsys):
    out = tmp_path / 'm.safetensors'
    command = ['export', f'--workdir={run}', f'--out={out}', '--license=for research']
    assert main(command) == 0
    assert (
        f'{out.stat().st_size:,} bytes, 4 slices; on validation: softmax' in capsys.readouterr().out
    )
    model, whole = mtdml_jax.load(out), mtdml_jax.load(run)
    assert model.settings.license == 'for research'
    np.testing.assert_array_equal(model.embed(validation[0]), whole.embed(validation[0]))
    assert model.settings.measured == whole.settings.measured


@pytest.mark.parametrize('arguments', [['--slices=2'], ['--slices=3,'], ['--dtype=bfloat16']])
def test_smaller_model_says_what_it_was_measured_to_be(run, tmp_path, validation, arguments):
    out = tmp_path / 'm.safetensors'
    assert main(['export', f'--workdir={run}', f'--out={out}', *arguments]) == 0
    model = mtdml_jax.load(out)
    measured = model.settings.measured
    assert (measured['split'], measured['num_examples']) == ('validation', 21)
    for by, accuracy in accuracies(model, validation).items():
        assert measured['classifiers'][by]['accuracy'] == pytest.approx(accuracy)
    whole = mtdml_jax.load(run)
    if arguments == ['--dtype=bfloat16']:
        assert out.stat().st_size < (run / 'model.safetensors').stat().st_size
        np.testing.assert_allclose(model.embed(validation[0]), whole.embed(validation[0]), atol=0.1)
        return
    slices = model.settings.trained['slices']
    assert slices == [3] if arguments == ['--slices=3,'] else len(slices) == 2
    assert model.settings.thresholds == tuple(whole.settings.thresholds[i] for i in slices)
    assert model.embed(validation[0]).shape == (21, 4 * len(slices))


def test_chosen_slices_are_the_best_of_the_validation_part(run, tmp_path, validation):
    images, labels = validation
    by_slice = mtdml_jax.load(run).predict(images).slice_probabilities
    accuracy = np.mean(by_slice.argmax(axis=2) == labels[:, None], axis=0)
    out = tmp_path / 'm.safetensors'
    assert main(['export', f'--workdir={run}', f'--out={out}', '--slices=1']) == 0
    trained = mtdml_jax.load(out).settings.trained
    assert accuracy[trained['slices'][0]] == accuracy.max()
    assert trained['slices_chosen_on'] == 'validation'


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--slices=9'], 'slices: expected 1 to 4 of them, found 9'),
        (['--slices=0,4'], 'slices: expected some of 0 to 3, each once, found 0,4'),
        (['--config.seed=1'], "unexpected argument '--config.seed=1'"),
        (['--slices=best'], "--slices: expected a number or a list like 0,3,5, found 'best'"),
        (
            ['--config.data.dir=/nowhere', '--config.data.prepared_dir=/tmp/none', '--slices=1'],
            '/nowhere',
        ),
    ],
)
def test_wrong_argument_is_refused_in_one_line(run, tmp_path, capsys, arguments, message):
    assert main(['export', f'--workdir={run}', f'--out={tmp_path / "m"}', *arguments]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith('mtdml_jax: ')]
    assert message in line
    assert not (tmp_path / 'm').exists()


def test_model_file_has_no_data_to_be_measured_on(run, tmp_path, capsys):
    model = run / 'model.safetensors'
    assert main(['export', f'--model={model}', f'--out={tmp_path / "m"}', '--slices=1']) == 2
    assert 'measured on the data of a run' in capsys.readouterr().err
    assert main(['export', f'--model={model}', f'--out={tmp_path / "m"}']) == 0
    assert json.loads(json.dumps(mtdml_jax.load(tmp_path / 'm').settings.measured)) == (
        mtdml_jax.load(run).settings.measured
    )
