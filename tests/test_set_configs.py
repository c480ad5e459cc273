"""The config of each data set trains on a small tree in the set's layout."""

from pathlib import Path

import face_trees
import numpy as np
import pytest
from small_data import CONFIG

from mtdml_jax.config import flatten, load_config
from mtdml_jax.training import loop
from mtdml_jax.training.metrics import read_metrics

# So small that steps and compiling take seconds; one learning rate, or each set compiles anew.
SHRINK = {
    'data.image_size': 8,
    'data.batch_size': 16,
    'model.width_factor': 0.0625,
    'model.stem': 'small',
    'model.embedding_size': 16,
    'model.num_slices': 2,
    'optim.learning_rate': 1e-3,
    'train.num_steps': 1,
    'train.log_every': 1,
    'train.checkpoint_every': 1,
    'eval.batch_size': 16,
    'eval.flip': False,
}
# Config -> what its set needs to be shrunk further.
CONFIGS = {
    'ck_plus': {'data.folds': 2, 'data.validation_share': 0.5},
    'mmi': {'data.folds': 2, 'data.validation_share': 0.5},
    'ferplus': {},
    'raf_db': {},
    'sfew': {},
    'jaffe': {},
    'oulu_casia': {'data.folds': 2},
    'affectnet': {'data.validation_share': 0.1},
}


def shrunk_config(name, folder):
    values = SHRINK | CONFIGS[name]
    values |= {'data.dir': folder / name, 'data.prepared_dir': folder / 'prepared'}
    path = str(Path(CONFIG).with_name(f'{name}.py'))
    return load_config(path, [f'--config.{key}={value}' for key, value in values.items()])


@pytest.mark.parametrize('name', CONFIGS)
def test_config_takes_a_step_on_its_set(name, tmp_path):
    getattr(face_trees, f'write_{name}')(tmp_path / name)
    config = shrunk_config(name, tmp_path)
    assert config.data.name == name
    assert loop.train(config, tmp_path / 'run')
    first, *rest = read_metrics(tmp_path / 'run' / 'metrics.jsonl')
    assert first['step'] == 1
    assert np.isfinite(first['train/loss'])
    # Where no part of the train split chooses, folds leave nothing to validate on.
    assert bool(rest) == (config.data.folds == 0 or config.data.validation_share > 0)


@pytest.mark.parametrize('name', CONFIGS)
def test_config_has_the_keys_of_the_default(name):
    config = load_config(str(Path(CONFIG).with_name(f'{name}.py')))
    keys = {key for key, _ in flatten(load_config(CONFIG))}
    assert {key for key, _ in flatten(config)} == keys
