import jax
import numpy as np
import pytest
from small_data import small_config

from mtdml_jax.training.devices import make_mapping
from mtdml_jax.training.setup import make_training

pytestmark = pytest.mark.usefixtures('resnet4')

COUNTS = np.full(7, 6)


def step_of(config, **options):
    _, _, step = make_training(config, COUNTS, **options)
    return step


def test_configs_that_differ_in_nothing_of_the_step_share_one_compiled_step(tmp_path):
    """The folds of a cross-validation differ in the fold and in the files that they read."""
    first = step_of(small_config(tmp_path))
    others = '--config.data.fold=1', '--config.seed=3', '--config.train.log_every=5'
    assert step_of(small_config(tmp_path / 'elsewhere', *others)) is first


@pytest.mark.parametrize(
    'override',
    [
        'train.num_steps=7',
        'train.ema_decay=0.5',
        'train.mapping=shard_map',
        'data.micro_batch=1',
        'loss.quantile=0.5',
    ],
)
def test_a_setting_of_the_step_gives_another_step(tmp_path, override):
    other = small_config(tmp_path, f'--config.{override}')
    assert step_of(other) is not step_of(small_config(tmp_path))


def test_step_runs_on_the_devices_that_are_asked_for(tmp_path):
    config, devices = small_config(tmp_path), jax.devices()[5:7]
    assert step_of(config, devices=devices) is not step_of(config)
    _, state, step = make_training(config, COUNTS, devices=devices)
    batch = {
        'image': np.random.default_rng(0).normal(size=(16, 16, 16, 1)).astype(np.float32),
        'label': np.arange(16, dtype=np.int32) % 7,
        'mask': np.ones(16, bool),
    }
    mapping = make_mapping(config.train.mapping, devices)
    state, metrics = step(mapping.replicate(state), mapping.split(batch))
    assert metrics['loss'].sharding.device_set == set(devices)
    assert np.isfinite(metrics['loss']).all()
