"""The card of the models has what their files say, and a run becomes a model with its licences."""

import json
import shutil

import jax
import model_card
import pytest

from mtdml_jax.inference.find import shipped_models
from mtdml_jax.models.model_file import read_model
from mtdml_jax.reports import export

CARD = (model_card.MODELS / 'README.md').read_text(encoding='utf-8')


def test_tables_of_the_card_are_what_the_files_give():
    assert model_card.filled(CARD) == CARD, 'run `python experiments/model_card.py`'


def test_every_model_stands_in_the_card():
    names = [name for _, name, _ in model_card.MARKED.findall(CARD)]
    assert sorted(names) == sorted([*shipped_models(), 'all'])


@pytest.fixture
def run(tmp_path):
    """The folder of an evaluated run, with the files of the shipped model."""
    folder = tmp_path / 'run'
    folder.mkdir()
    for name, kept in (
        ('model.safetensors', 'fer2013.safetensors'),
        ('config.json', 'fer2013.config.json'),
        ('evaluation.json', 'fer2013.evaluation.json'),
    ):
        shutil.copy(model_card.MODELS / kept, folder / name)
    return folder


def test_run_becomes_a_model_of_the_card_with_the_scores_of_its_coarser_weights(
    run, tmp_path, monkeypatch
):
    def shrink(config, data, *, slices, dtype):
        assert (slices, dtype) == (None, 'bfloat16')
        measured = json.loads(json.dumps(data.settings.measured))
        measured['classifiers']['softmax']['accuracy'] = 0.7125
        return data._replace(settings=data.settings._replace(measured=measured))

    monkeypatch.setattr(export, 'shrink', shrink)
    models = tmp_path / 'models'
    models.mkdir()
    monkeypatch.setattr(model_card, 'MODELS', models)
    empty = '<!-- end of measured -->'
    card = (
        f'<!-- measured: all -->\n{empty}\ntext\n<!-- measured: fer2013_pretrained -->\n{empty}\n'
    )
    (models / 'README.md').write_text(card)
    arguments = ['--name=fer2013_pretrained', f'--workdir={run}', '--dtype=bfloat16']
    monkeypatch.setattr('sys.argv', ['model_card.py', *arguments, '--again', str(run)])
    model_card.main()
    path = models / 'fer2013_pretrained.safetensors'
    assert path.stat().st_size < 0.6 * (run / 'model.safetensors').stat().st_size
    data = read_model(path)
    for part in ('dlib_face_recognition_resnet_model_v1.dat', 'Davis King', 'CC0', 'FER2013'):
        assert part in data.settings.license
    text = (models / 'README.md').read_text(encoding='utf-8')
    count = sum(x.size for x in jax.tree.leaves(data.variables['params']))
    megabytes = f'{path.stat().st_size / 1e6:.1f}'
    row = f'| `fer2013_pretrained` | 71.2 | 65.3 to 68.3 | {megabytes} | {count:,} | Started from dlib'
    assert row in text
    # Beside it stands the evaluation of --again.
    assert '| softmax | 71.2 | 65.3 to 68.3 | 66.8 |' in text
    assert '| commit | c3926ef |' in text
