"""Makes batches of a prepared data set; tf.data decodes images from memory or disk in parallel."""

import functools
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from ml_collections import ConfigDict, FrozenConfigDict

from mtdml_jax.data.augment import augment, draw_uniforms
from mtdml_jax.data.decode import PIXEL_KEYS, load_pixels, normalize
from mtdml_jax.data.prepare import damaged, prepare
from mtdml_jax.data.sampling import fits_all_classes, index_by_class, sample_rows
from mtdml_jax.host.errors import UserError, listed
from mtdml_jax.host.paths import user_path

# TensorFlow only reads data. The accelerators belong to JAX.
tf.config.set_visible_devices([], 'GPU')


class Split(NamedTuple):
    """A split of a data set. Its images are still encoded.

    Attributes:
      name: 'train', 'validation', 'test' or another name that the data set has.
      images: encoded images (PNG, JPEG, ...), or the paths of their files, a string tensor [N].
      in_memory: whether `images` are images; otherwise they are paths.
      labels: class of each image, int32 [N].
      subjects: the person on each image, [N]; '' if unknown.
      file_names: the file of each image, [N].
      class_names: name of each label, [C].
      boxes: left, top, width and height of each face in pixels, int32 [N, 4]; width 0 if unknown.
      votes: share of each class in the label of each image, float32 [N, C]; None if labels are single
        classes.
      is_query: whether each image is a query when retrieval is scored, bool [N]; None if all are.
      is_gallery: whether each image is in the gallery, bool [N]; None if all are.
    """

    name: str
    images: tf.Tensor
    in_memory: bool
    labels: np.ndarray
    subjects: list[str]
    file_names: list[str]
    class_names: list[str]
    boxes: np.ndarray
    votes: np.ndarray | None = None
    is_query: np.ndarray | None = None
    is_gallery: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> 'Split':
        """Returns the split with these rows only."""

        def of_rows(values: np.ndarray | None) -> np.ndarray | None:
            return None if values is None else values[rows]

        return self._replace(
            images=tf.gather(self.images, rows),
            labels=self.labels[rows],
            subjects=[self.subjects[row] for row in rows],
            file_names=[self.file_names[row] for row in rows],
            boxes=self.boxes[rows],
            votes=of_rows(self.votes),
            is_query=of_rows(self.is_query),
            is_gallery=of_rows(self.is_gallery),
        )

    def encoded_image(self, row: int) -> bytes:
        """Returns the encoded image of a row.

        Raises:
          OSError: if its file can no longer be read.
        """
        image = self.images[row].numpy()
        return image if self.in_memory else Path(os.fsdecode(image)).read_bytes()


def load_split(data: ConfigDict, name: str) -> Split:
    """Reads a split into memory: its encoded images, or only their paths.

    Args:
      data: the section `data` of the config.
      name: name of the split, or a piece of it in TFDS's notation, such as 'train[:33%]'.

    Raises:
      UserError: if the data set lacks the split, or records are damaged.
    """
    builder = prepare(data)
    _check_split(data, builder, name)
    found, count = _read_records(data, builder, name)

    def values(key):
        return found[key].numpy() if key in found else None

    def texts(key, default):
        return [x.decode() for x in found[key].numpy()] if key in found else default

    file_names = texts('file_name', [f'{name}:{row}' for row in range(count)])
    folder = user_path(data.dir)
    paths = [os.fsencode(folder / file_name) for file_name in file_names]
    return Split(
        name,
        found['image'] if data.in_memory else tf.constant(paths),
        data.in_memory,
        found['label'].numpy().astype(np.int32),
        texts('subject', [''] * count),
        file_names,
        list(builder.info.features['label'].names),
        found['box'].numpy() if 'box' in found else np.zeros((count, 4), np.int32),
        values('votes'),
        values('query'),
        values('gallery'),
    )


def _check_split(data, builder, name):
    """Raises UserError if a prepared data set lacks a split."""
    if has_split(builder, name):
        return
    hint = ''
    if name == 'test':
        hint = (
            '; cross-validate (crossval, with config.data.folds=5), or evaluate the validation split '
            '(config.eval.split=validation)'
        )
    raise UserError(
        f'{data.name} has no split {name!r}; it has {", ".join(sorted(builder.info.splits))}{hint}'
    )


def _read_records(data, builder, name):
    """Returns all records of a split as one batch, and their number."""
    decoders = {'image': tfds.decode.SkipDecoding()} if data.in_memory else None
    count = builder.info.splits[name].num_examples
    if not count:
        raise UserError(f'{data.name}: the split {name!r} is empty')
    try:
        dataset = builder.as_dataset(split=name, decoders=decoders)
        # One batch holds all images in one string tensor, without a second copy of them.
        return dataset.batch(count).get_single_element(), count
    except tf.errors.OpError as error:
        raise damaged(data, builder.data_path, _reason(error)) from error


def has_split(builder: tfds.core.DatasetBuilder, name: str) -> bool:
    """Whether a prepared data set has a split; `name` may be a piece of it, such as 'train[:33%]'."""
    return name.split('[')[0] in builder.info.splits


def check_trainable(split: Split, data: ConfigDict) -> None:
    """Raises UserError unless batches of P x K faces with positives and negatives can be sampled.

    At least two classes must have faces, and each of these at least 2 faces. Classes without faces are
    allowed; they may be held out.

    Args:
      split: the faces to train on.
      data: the section `data` of the config.
    """
    counts = np.bincount(split.labels, minlength=len(split.class_names))
    num_classes = int(np.count_nonzero(counts))
    if num_classes < 2:
        raise UserError(f'split {split.name}: expected faces of at least 2 classes')
    alone = [split.class_names[label] for label in np.flatnonzero(counts == 1)]
    if alone:
        raise UserError(
            f'split {split.name}: every class needs at least 2 faces to form a positive pair; there is '
            f'only 1 in {", ".join(alone)}'
        )
    fits = fits_all_classes(num_classes, data.batch_size, data.samples_per_class, data.sampling)
    if data.batch_size < 2 * data.samples_per_class and not fits:
        raise UserError(
            f'config.data.batch_size ({data.batch_size}) must hold faces of 2 classes or more to form '
            f'negative pairs: at least twice config.data.samples_per_class ({data.samples_per_class})'
        )
    if data.batch_size % data.samples_per_class and not fits:
        raise UserError(
            f'config.data.samples_per_class ({data.samples_per_class}) must divide '
            f'config.data.batch_size ({data.batch_size}) with config.data.sampling={data.sampling} and '
            f'{num_classes} classes'
        )


def train_batches(
    split: Split,
    config: ConfigDict,
    *,
    start_step: int = 0,
    host: int = 0,
    num_hosts: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields training batches from `start_step` to the last step, each a function of (seed, step).

    Args:
      split: the faces to train on.
      config: the whole config.
      start_step: the first step.
      host: index of this host, which makes its share of each global batch.
      num_hosts: number of hosts.

    Yields:
      {'image': float32 [B/hosts, H, W, C], 'label': int32 [B/hosts], 'mask': bool [B/hosts]}, and
      'votes', float32 [B/hosts, classes], if labels are votes. In the first config.data.early_share
      of the steps H and W are config.data.early_image_size.
    """
    data, seed = config.data, config.seed
    index, batch_size = index_by_class(split.labels), data.batch_size
    local = slice(host * batch_size // num_hosts, (host + 1) * batch_size // num_hosts)

    def rows_of(step):
        rows = sample_rows(
            index, batch_size, data.samples_per_class, data.sampling, seed=seed, step=step
        )
        return rows[local]

    def batches(first, last, side):
        def make_batch(step):
            uniforms = draw_uniforms(batch_size, seed=seed, step=step)
            batch = _gather(split, data, side, rows_of(step))
            pixels = augment(batch['image'], uniforms[local], config.augment)
            mask = tf.ones_like(batch['label'], tf.bool)
            return batch | {'image': normalize(pixels, data), 'mask': mask}

        return _iterate(range(first, last), make_batch, split, data, rows_of)

    num_steps, switch = config.train.num_steps, num_early_steps(config)
    if start_step < switch:
        yield from batches(start_step, switch, data.early_image_size)
    yield from batches(max(start_step, switch), num_steps, data.image_size)


def num_early_steps(config: ConfigDict) -> int:
    """Returns the number of first steps whose images have `config.data.early_image_size`."""
    return round(config.data.early_share * config.train.num_steps)


def eval_batches(
    split: Split, data: ConfigDict, batch_size: int
) -> Iterator[dict[str, np.ndarray]]:
    """Yields all faces of a split in order; masked repeats of row 0 fill up the last batch.

    Args:
      split: the faces.
      data: the section `data` of the config.
      batch_size: rows B of every batch.

    Yields:
      The same keys as `train_batches`, B rows in each batch.
    """
    count = len(split.labels)

    def rows_of(start):
        rows = start + tf.range(batch_size, dtype=tf.int64)
        return tf.where(rows < count, rows, 0)

    def make_batch(start):
        batch = _gather(split, data, data.image_size, rows_of(start))
        mask = start + tf.range(batch_size, dtype=tf.int64) < count
        return batch | {'image': normalize(batch['image'], data), 'mask': mask}

    return _iterate(range(0, count, batch_size), make_batch, split, data, rows_of)


def _iterate(numbers, make_batch, split, data, rows_of):
    """Yields the batch that `make_batch` makes of each number.

    Raises:
      UserError: if images can no longer be decoded that could be when prepared; the message names some.
      OSError: if images can no longer be read.
    """
    # AutoGraph is slow and not needed, see `_pixels_loader`.
    make_batch = tf.autograph.experimental.do_not_convert(make_batch)
    dataset = tf.data.Dataset.range(numbers.start, numbers.stop, numbers.step)
    batches = dataset.map(make_batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    batches = batches.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()
    for number in numbers:
        try:
            batch = next(batches)
        except tf.errors.OpError as error:
            rows = rows_of(tf.constant(number, tf.int64)).numpy()
            raise _failure(split, data, rows, error) from error
        yield batch


def _reason(error):
    """Returns TensorFlow's error message without the place in its graph."""
    line = error.message.partition('\n')[0]
    return re.sub(r'\{\{.*?\}\} |Error in user.*? with iterator: \S+ | \[Op:.*', '', line)


def _failure(split, data, rows, error):
    """Returns the error for rows whose images could not be loaded; it names some of the images."""
    failed = [*itertools.islice(_failing(split, data, rows), 6)]
    names = listed(split.file_names[row] for row in failed) or 'it is not known which'
    message = (
        f'split {split.name}: images that could be read when they were prepared cannot be now: {names} '
        f'({_reason(error)}); put them back, and the same command continues'
    )
    try:
        for row in failed:
            split.encoded_image(row)
    except OSError:
        failed = []
    # A file that is not an image is wrong. A file that is missing may come back with its disk.
    return UserError(message) if failed else OSError(message)


def _failing(split, data, rows):
    """Yields the rows whose images cannot be loaded."""
    for row in np.unique(rows):
        try:
            _gather(split, data, data.image_size, [row])
        except tf.errors.OpError:
            yield row


def _gather(split, data, side, rows):
    """Returns the batch of rows [B]: pixels in [0, 1], labels, and votes if there are any."""
    seen = FrozenConfigDict({key: data[key] for key in PIXEL_KEYS})
    images, boxes = tf.gather(split.images, rows), tf.gather(split.boxes, rows)
    pixels = _pixels_loader(seen, side, split.in_memory)(images, boxes)
    fields = {'label': split.labels} | ({} if split.votes is None else {'votes': split.votes})
    return {
        'image': tf.ensure_shape(pixels, (*images.shape, side, side, data.channels)),
        **{name: tf.gather(x, rows) for name, x in fields.items()},
    }


@functools.lru_cache(maxsize=16)
def _pixels_loader(data, side, in_memory):
    """Returns a function from images [B], or paths, and boxes [B, 4] to pixels [B, H, W, channels].

    It is traced once for all splits and pipelines, because tracing takes longer than loading a batch.
    """

    def load(image_and_box):
        image, box = image_and_box
        return load_pixels(image if in_memory else tf.io.read_file(image), box, data, side)

    def load_all(images, boxes):
        # Reads many files from disk at once.
        parallel = 1 if in_memory else 16
        return tf.map_fn(
            load, (images, boxes), fn_output_signature=tf.float32, parallel_iterations=parallel
        )

    # AutoGraph takes seconds and has nothing to convert: no Python control flow depends on a tensor.
    signature = tf.TensorSpec([None], tf.string), tf.TensorSpec([None, 4], tf.int32)
    return tf.function(load_all, input_signature=signature, autograph=False)
