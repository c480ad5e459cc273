"""From a prepared data set to batches: encoded images in memory, decoded in parallel by tf.data."""

import difflib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from mtdml_jax.data import fer2013, synthetic_faces  # noqa: F401 (importing registers the builders)
from mtdml_jax.data.augment import augment, draw_uniforms
from mtdml_jax.data.sampling import index_by_class, sample_rows
from mtdml_jax.errors import UserError

# TensorFlow only feeds: the accelerators belong to JAX.
tf.config.set_visible_devices([], 'GPU')


class Split(NamedTuple):
    """One split of a data set, its images still encoded.

    Attributes:
      name: 'train', 'validation', 'test', or whatever the data set calls it.
      images: encoded images (PNG, JPEG, ...), bytes [N].
      labels: class of each image, int32 [N].
      file_names: where each image came from, [N].
      class_names: name of each label, [C].
    """

    name: str
    images: list[bytes]
    labels: np.ndarray
    file_names: list[str]
    class_names: list[str]

    def take(self, rows: np.ndarray) -> 'Split':
        """The split with these rows only."""
        return self._replace(
            images=[self.images[row] for row in rows],
            labels=self.labels[rows],
            file_names=[self.file_names[row] for row in rows],
        )


def prepare(data) -> tfds.core.DatasetBuilder:
    """The builder of `data.name`, prepared in `data.prepared_dir` (now, if it has not been before).

    Args:
      data: the section `data` of the config.

    Raises:
      UserError: an unknown data set, or source files that are missing or wrong.
    """
    prepared_dir = Path(data.prepared_dir).expanduser()
    try:
        builder_class = tfds.builder_cls(data.name)
    except tfds.core.DatasetNotFoundError as error:
        near = difflib.get_close_matches(data.name, tfds.list_builders(), n=1)
        hint = f'; did you mean {near[0]!r}?' if near else ''
        raise UserError(f'config.data.name: no data set {data.name!r}{hint}') from error
    if hasattr(builder_class, 'source_file'):
        # Another source file is another data set, though the builder's name is the same.
        source = builder_class.source_file(Path(data.dir).expanduser())
        prepared_dir /= f'{data.name}-{zlib.crc32(source.read_bytes()):08x}'
    builder = tfds.builder(data.name, data_dir=prepared_dir)
    download = tfds.download.DownloadConfig(manual_dir=Path(data.dir).expanduser())
    builder.download_and_prepare(download_config=download)
    missing = {'image', 'label'} - set(builder.info.features)
    if missing:
        raise UserError(f'config.data.name: the data set {data.name!r} has no {sorted(missing)}')
    return builder


def load_split(data, name: str) -> Split:
    """Reads a split into memory, images encoded.

    Args:
      data: the section `data` of the config.
      name: name of the split, or a part of it in TFDS's notation: 'train[:33%]'.

    Raises:
      UserError: a split that the data lacks, or images that cannot be decoded.
    """
    builder = prepare(data)
    if name.split('[')[0] not in builder.info.splits:
        raise UserError(
            f'{data.name} has no split {name!r}; it has {", ".join(sorted(builder.info.splits))}'
        )
    dataset = builder.as_dataset(split=name, decoders={'image': tfds.decode.SkipDecoding()})
    images, labels, file_names = [], [], []
    for row, example in enumerate(dataset.as_numpy_iterator()):
        images.append(example['image'])
        labels.append(example['label'])
        file_names.append(example.get('file_name', f'{name}:{row}'.encode()).decode())
    split = Split(
        name,
        images,
        np.array(labels, np.int32),
        file_names,
        list(builder.info.features['label'].names),
    )
    check_images(split, data)
    return split


def check_images(split: Split, data) -> None:
    """Decodes everything once: a corrupt image shall not stop a run in its tenth hour.

    Raises:
      UserError: images that cannot be decoded; names them.
    """
    dataset = tf.data.Dataset.from_tensor_slices(split.images).enumerate()
    # A value of the pixels is returned: TensorFlow drops a decoding that nobody reads.
    decoded = dataset.map(
        lambda row, image: (row, _decode(image, data)[0, 0, 0]), num_parallel_calls=tf.data.AUTOTUNE
    )
    good = {row for row, _ in decoded.ignore_errors().as_numpy_iterator()}
    corrupt = [name for row, name in enumerate(split.file_names) if row not in good]
    if corrupt:
        listed = ', '.join(corrupt[:5]) + (', ...' if len(corrupt) > 5 else '')
        raise UserError(
            f'{data.name}, split {split.name}: {len(corrupt)} of {len(split.images)} images cannot '
            f'be decoded: {listed}'
        )


def check_trainable(split: Split) -> None:
    """Raises UserError for a class with fewer than 2 faces: its anchors would have no positive."""
    counts = np.bincount(split.labels, minlength=len(split.class_names))
    small = [
        f'{name} ({count})'
        for name, count in zip(split.class_names, counts, strict=True)
        if count < 2
    ]
    if small:
        raise UserError(
            f'split {split.name}: every class needs at least 2 faces to form a positive pair; too '
            f'few in {", ".join(small)}'
        )


def train_batches(
    split: Split,
    config,
    *,
    start_step: int = 0,
    host: int = 0,
    num_hosts: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Training batches from `start_step` to the last step, each a pure function of (seed, step).

    Args:
      split: the faces to train on.
      config: the whole config.
      start_step: first step to make a batch for.
      host: number of this host; it makes its share of each global batch.
      num_hosts: number of hosts.

    Yields:
      {'image': float32 [B/hosts, H, W, C], 'label': int32 [B/hosts], 'mask': bool [B/hosts]}.
    """
    gather = _gatherer(split, config.data)
    index = index_by_class(split.labels)
    batch_size, seed = config.data.batch_size, config.seed
    local = slice(host * batch_size // num_hosts, (host + 1) * batch_size // num_hosts)

    def make_batch(step):
        rows = sample_rows(index, batch_size, config.data.samples_per_class, seed=seed, step=step)
        uniforms = draw_uniforms(batch_size, seed=seed, step=step)
        pixels, labels = gather(rows[local])
        pixels = augment(pixels, uniforms[local], config.augment)
        return {
            'image': _normalize(pixels, config.data),
            'label': labels,
            'mask': tf.ones_like(labels, tf.bool),
        }

    return _iterate(tf.data.Dataset.range(start_step, config.train.num_steps), make_batch)


def eval_batches(split: Split, data, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """All faces of a split in order; the last batch is filled up with masked repeats of row 0.

    Args:
      split: the faces.
      data: the section `data` of the config.
      batch_size: rows B of every batch.

    Yields:
      {'image': float32 [B, H, W, C], 'label': int32 [B], 'mask': bool [B]}.
    """
    gather = _gatherer(split, data)

    def make_batch(start):
        rows = start + tf.range(batch_size, dtype=tf.int64)
        mask = rows < len(split.images)
        pixels, labels = gather(tf.where(mask, rows, 0))
        return {'image': _normalize(pixels, data), 'label': labels, 'mask': mask}

    return _iterate(tf.data.Dataset.range(0, len(split.images), batch_size), make_batch)


def _iterate(numbers, make_batch):
    batches = numbers.map(make_batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return batches.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()


def _gatherer(split, data):
    """A function from row numbers [B] to pixels in [0, 1], float32 [B, H, W, C], and labels [B]."""
    images, labels = tf.constant(split.images), tf.constant(split.labels)

    def gather(rows):
        encoded = tf.gather(images, rows)
        pixels = tf.map_fn(lambda x: _decode(x, data), encoded, fn_output_signature=tf.float32)
        return pixels, tf.gather(labels, rows)

    return gather


def _decode(encoded, data):
    pixels = tf.io.decode_image(encoded, channels=data.channels, expand_animations=False)
    pixels = tf.cast(pixels, tf.float32) / 255.0
    size = (data.image_size, data.image_size)
    pixels = tf.cond(
        tf.reduce_all(tf.shape(pixels)[:2] == size),
        lambda: pixels,
        lambda: tf.image.resize(pixels, size, antialias=True),
    )
    return tf.ensure_shape(pixels, (*size, data.channels))


def _normalize(pixels, data):
    return (pixels - tf.constant(data.mean, tf.float32)) / tf.constant(data.std, tf.float32)
