"""Small trees of image files in the layouts of the field's data sets."""

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from small_data import CONFIG

from mtdml_jax.config import load_config
from mtdml_jax.data.prepare import prepare


def write_image(path, value=128, size=(12, 10), mode='RGB'):
    """Writes an image of one grey value, of size (width, height) in pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == 'L' else (value,) * 3).save(path)
    return path


def write_corrupt(path):
    """Writes an image of noise whose second half is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def data_config(name, folder, **options):
    """The section `data` of a config for the set `name` in `folder`; prepared beside the folder."""
    values = {'name': name, 'dir': folder, 'prepared_dir': folder.parent / 'prepared', **options}
    return load_config(
        CONFIG, [f'--config.data.{key}={value}' for key, value in values.items()]
    ).data


def read_records(name, folder, **options):
    """Prepares the set `name` from `folder`: split -> {file name: (class name, subject)}."""
    builder = prepare(data_config(name, folder, **options))
    names = builder.info.features['label'].names
    return {
        split: {
            record['file_name'].decode(): (names[record['label']], record['subject'].decode())
            for record in tfds.as_numpy(builder.as_dataset(split))
        }
        for split in builder.info.splits
    }


def warnings_of(caplog):
    """What this package has warned of; TFDS has warnings of its own."""
    return [record.getMessage() for record in caplog.records if record.name.startswith('mtdml_jax')]
