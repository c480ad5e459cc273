"""Small FER2013 files, and a small config that trains on them within seconds."""

import gzip
from pathlib import Path

import numpy as np
import tensorflow as tf

from mtdml_jax.config import load_config
from mtdml_jax.data.pipeline import Split
from mtdml_jax.models.resnet import BasicBlock

CONFIG = str(Path(__file__).parents[2] / 'configs' / 'default.py')
USAGES = {'Training': 6, 'PublicTest': 3}
# A backbone of one block, which the fixture resnet4 registers. Tests with it compile in half the time.
RESNET4 = (BasicBlock, (1,))


def csv_rows(faces_of_a_class=None, seed=0):
    """Returns rows (emotion, pixels, usage) of faces of 7 classes that differ in brightness."""
    rng = np.random.default_rng(seed)
    rows = []
    for usage, count in (faces_of_a_class or USAGES).items():
        for emotion in range(7):
            for _ in range(count):
                pixels = np.clip(rng.normal(40 + 25 * emotion, 20, 48 * 48), 0, 255).astype(int)
                rows.append((emotion, ' '.join(map(str, pixels)), usage))
    return rows


def write_csv(path, rows, header='emotion,pixels,Usage'):
    """Writes a csv file, gzipped if it ends in .gz."""
    text = '\n'.join([header, *(','.join(map(str, row)) for row in rows)]) + '\n'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == '.gz' else text.encode())
    return path


def small_overrides(folder):
    """Returns the arguments of a run on `folder`/data that takes seconds on 8 devices."""
    values = {
        'data.name': 'fer2013',
        'data.dir': folder / 'data',
        'data.prepared_dir': folder / 'prepared',
        'data.image_size': 16,
        'data.batch_size': 16,
        'model.backbone': 'resnet4',
        'model.width_factor': 0.0625,
        'model.embedding_size': 16,
        'model.num_slices': 4,
        'optim.learning_rate': 0.01,
        'train.ema_decay': 0.9,
        'train.num_steps': 6,
        'train.log_every': 1,
        'train.checkpoint_every': 3,
        'eval.split': 'validation',
        'eval.batch_size': 16,
    }
    return [f'--config.{key}={value}' for key, value in values.items()]


def small_config(folder, *overrides):
    """Returns the config of a run with `small_overrides`."""
    return load_config(CONFIG, [*small_overrides(folder), *overrides])


def png(pixels):
    """Returns pixels [H, W, channels] as an encoded PNG image."""
    return tf.io.encode_png(tf.constant(pixels, tf.uint8)).numpy()


def split_of(images, labels, **fields):
    """Returns a split of encoded images named face0, face1, ..., with the classes a, b and c."""
    count = len(images)
    values = {
        'name': 'train',
        'images': tf.constant(images),
        'in_memory': True,
        'labels': np.array(labels, np.int32),
        'subjects': [''] * count,
        'file_names': [f'face{row}' for row in range(count)],
        'class_names': ['a', 'b', 'c'],
        'boxes': np.zeros((count, 4), np.int32),
    }
    return Split(**(values | fields))
