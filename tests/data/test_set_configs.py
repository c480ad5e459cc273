"""The config of each data set trains on a small tree in the set's layout."""

from pathlib import Path

import face_trees
import numpy as np
import pytest
import tensorflow_datasets as tfds
from small_data import CONFIG

from mtdml_jax.config import load_config
from mtdml_jax.training import loop
from mtdml_jax.training.metrics import read_metrics

pytestmark = pytest.mark.usefixtures('resnet4')

# These settings make steps and compilation fast. All sets share a learning rate and thus one program.
SHRINK = {
    'data.image_size': 8,
    'data.early_share': 0.0,
    'data.batch_size': 16,
    'model.backbone': 'resnet4',
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
# With these settings, a set uses the same compiled step as the sets of faces.
STEP_OF_FACES = {'optim.weight_decay': 0.05, 'train.ema_decay': 0.0}
# Config, as --config names it in configs/ -> further settings that its set needs.
CONFIGS = {
    'digits': {},
    'fer2013': {},
    'folder': {'data.validation_share': 0.25, **STEP_OF_FACES},
    'list': {'data.validation_share': 0.25, **STEP_OF_FACES},
    'tfds:brightness': {'data.validation_share': 0.25, **STEP_OF_FACES},
    'ck_plus': {'data.folds': 2, 'data.validation_share': 0.5},
    'mmi': {'data.folds': 2, 'data.validation_share': 0.5},
    'ferplus': {},
    'raf_db': {},
    'sfew': {},
    'jaffe': {},
    'oulu_casia': {'data.folds': 2},
    'affectnet': {'data.validation_share': 0.1},
}


class Brightness(tfds.core.GeneratorBasedBuilder):
    """A TFDS data set that is not in this package: 7 classes, without subjects and file names."""

    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
        features = {
            'image': tfds.features.Image(),
            'label': tfds.features.ClassLabel(num_classes=7),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {'train': self._generate_examples(8), 'test': self._generate_examples(2)}

    def _generate_examples(self, count):
        for row in range(7 * count):
            image = np.full((10, 12, 3), 40 * (row % 7), np.uint8)
            yield row, {'image': image, 'label': row % 7}


def shrunk_config(name, folder):
    values = SHRINK | CONFIGS[name]
    values |= {'data.dir': folder / 'set', 'data.prepared_dir': folder / 'prepared'}
    name, *argument = name.split(':')
    path = ':'.join([str(Path(CONFIG).with_name(f'{name}.py')), *argument])
    return load_config(path, [f'--config.{key}={value}' for key, value in values.items()])


@pytest.mark.slow
@pytest.mark.parametrize('name', CONFIGS)
def test_config_takes_a_step_on_its_set(name, tmp_path):
    write = getattr(face_trees, f'write_{name}', None)
    if write:  # The other sets need no files.
        write(tmp_path / 'set')
    config = shrunk_config(name, tmp_path)
    assert config.data.name.removeprefix('image_') == name.removeprefix('tfds:')
    assert loop.train(config, tmp_path / 'run')
    first, *rest = read_metrics(tmp_path / 'run' / 'metrics.jsonl')
    assert first['step'] == 1
    assert np.isfinite(first['train/loss'])
    # With folds and without a validation share, no faces are left for validation.
    assert bool(rest) == (config.data.folds == 0 or config.data.validation_share > 0)
