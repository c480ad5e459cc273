from pathlib import Path

import pytest
from pages import ROOT

import mtdml_jax
from mtdml_jax.host.errors import UserError
from mtdml_jax.inference import find

NAMES = sorted(file.stem for file in (ROOT / 'models').glob('*.safetensors'))


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_models_of_the_package_are_those_of_the_repository():
    assert sorted(find.shipped_models()) == NAMES
    assert 'fer2013' in NAMES


def test_name_loads_a_model_of_the_package_in_every_folder(elsewhere):
    assert mtdml_jax.load('fer2013').class_names[3] == 'Happy'


def test_existing_file_or_folder_wins_over_a_model_of_the_package(elsewhere):
    (elsewhere / 'fer2013').touch()
    assert find.find_model('fer2013').absolute() == elsewhere / 'fer2013'
    (elsewhere / 'fer2013').unlink()
    (elsewhere / 'fer2013').mkdir()
    (elsewhere / 'fer2013' / 'model.safetensors').touch()
    found = find.find_model('fer2013').absolute()
    assert found == elsewhere / 'fer2013' / 'model.safetensors'


@pytest.mark.parametrize('name', ['fer2014', 'models/fer2013.safetensors', Path('fer2013')])
def test_name_that_is_neither_says_which_models_there_are(elsewhere, name):
    with pytest.raises(UserError, match='no such file or folder; models of the package: .*fer2013'):
        find.find_model(name)
