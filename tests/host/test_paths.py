import os
from pathlib import Path

import pytest
from small_data import small_config

import mtdml_jax
from mtdml_jax.__main__ import main
from mtdml_jax.host.errors import UserError
from mtdml_jax.host.paths import user_path
from mtdml_jax.models.pretrained import load_backbone

ADDRESS = 's3://bucket/run'
MESSAGE = 's3://bucket/run is an address, .* mount it '


@pytest.mark.parametrize('path', ['gs://b', 'S3://b', 'hf://b', 'file:///b', Path('s3://b/run')])
def test_address_is_refused_with_what_to_do(path):
    with pytest.raises(UserError, match='is an address, .* mount it .* copy later'):
        user_path(path)


@pytest.mark.parametrize('path', ['runs/a', '/runs/a', 'C:/runs', 'a:b', './s3:/b', Path('runs')])
def test_path_on_this_machine_is_taken_as_it_is(path):
    assert user_path(path) == Path(path)


@pytest.mark.parametrize(
    'command',
    [
        ['train', '--config=quickstart', f'--workdir={ADDRESS}'],
        ['crossval', '--config=quickstart', f'--workdir={ADDRESS}'],
        ['evaluate', f'--workdir={ADDRESS}'],
        ['export', '--model=m', f'--out={ADDRESS}'],
        ['predict', '--model=m', 'a.png', f'--annotate={ADDRESS}'],
    ],
)
def test_command_that_would_write_to_an_address_stops_before_it_starts(
    command, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match='2'):
        main(command)
    assert f'{ADDRESS} is an address' in capsys.readouterr().err.splitlines()[-1]
    assert os.listdir() == []


@pytest.mark.parametrize('key', ['dir', 'prepared_dir', 'list'])
def test_data_at_an_address_are_refused(key, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(['prepare', '--config=list', f'--config.data.{key}={ADDRESS}']) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f'mtdml_jax: {ADDRESS} is an address')
    assert os.listdir() == []


def test_models_and_weights_at_an_address_are_refused(tmp_path):
    model = small_config(tmp_path, f'--config.model.pretrained={ADDRESS}').model
    model.backbone = 'resnet18'
    with pytest.raises(UserError, match=MESSAGE):
        load_backbone({}, model)
    with pytest.raises(UserError, match=MESSAGE):
        mtdml_jax.load(ADDRESS)
