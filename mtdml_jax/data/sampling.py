"""P x K sampling: chooses the faces of a step's batch, as a pure function of (seed, step)."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf


class ClassIndex(NamedTuple):
    """The rows of a split, grouped by class. Classes without rows are left out.

    Attributes:
      rows: row numbers sorted by class, int64 [N].
      start: where each class begins in `rows`, int64 [C].
      size: number of rows of each class, int64 [C].
    """

    rows: np.ndarray
    start: np.ndarray
    size: np.ndarray


def index_by_class(labels: np.ndarray) -> ClassIndex:
    """Groups the rows of a split by label ([N] -> `ClassIndex`)."""
    _, start, size = np.unique(np.sort(labels), return_index=True, return_counts=True)
    rows = np.argsort(labels, kind='stable')
    return ClassIndex(rows.astype(np.int64), start.astype(np.int64), size.astype(np.int64))


# Sampling -> relative frequency with which a class of n faces is drawn.
FREQUENCIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    'class': np.ones_like,
    'instance': lambda n: n,
    'sqrt': np.sqrt,
}


def fits_all_classes(
    num_classes: int, batch_size: int, samples_per_class: int, sampling: str
) -> bool:
    """Whether every class is in every batch; otherwise K must divide the batch size."""
    return sampling == 'class' and num_classes <= batch_size // samples_per_class


def sample_rows(
    index: ClassIndex,
    batch_size: int,
    samples_per_class: int,
    sampling: str = 'class',
    *,
    seed: int,
    step: tf.Tensor,
) -> tf.Tensor:
    """Returns the rows of the batch of `step`: P classes with K faces each.

    Sampling 'instance' and 'sqrt' draw groups of K faces of a class in proportion to its number of
    faces, or to the square root of that number. A batch may then hold several groups of one class. All
    rounds have the same random order of classes.

    Sampling 'class' draws all classes equally often. If P = batch_size / samples_per_class is at least
    the number of classes C, every class is in every batch. The classes have equal shares; if C does not
    divide the batch size, shares differ by one, and the classes take turns. If there are more classes,
    each batch holds P different ones. Every class is drawn once, in random order, before any class is
    drawn again. The only exceptions are the classes that complete the last batch of a round; classes
    take turns at this.

    In each case all faces of a class are drawn once, in random order, before any of them repeats.

    Args:
      index: the rows by class.
      batch_size: number of rows B, over all hosts.
      samples_per_class: faces K of each class. It must divide the batch size if C > P or if the
        sampling is not 'class'.
      sampling: 'class', 'instance' or 'sqrt'.
      seed: seed of the run.
      step: int64 scalar.

    Returns:
      Row numbers, int64 [B].

    Raises:
      ValueError: if K must divide the batch size and does not.
    """
    num_classes = len(index.start)
    classes_per_batch = batch_size // samples_per_class
    step = tf.cast(step, tf.int64)
    if fits_all_classes(num_classes, batch_size, samples_per_class, sampling):
        draw = step * batch_size + tf.range(batch_size, dtype=tf.int64)
        return _draw_faces(index, draw % num_classes, draw // num_classes, seed)
    if batch_size % samples_per_class:
        raise ValueError(
            f'expected samples_per_class to divide the batch size when not all {num_classes} classes '
            f'fit a batch or their sampling is not class, found {samples_per_class} and {batch_size}'
        )
    if sampling == 'class':
        classes, visits = _draw_classes(num_classes, classes_per_batch, seed, step)
    else:
        groups = count_groups(index.size, samples_per_class, sampling)
        classes, visits = _draw_groups(groups, classes_per_batch, seed, step)
    draw = visits[:, None] * samples_per_class + tf.range(samples_per_class, dtype=tf.int64)
    return _draw_faces(index, tf.repeat(classes, samples_per_class), tf.reshape(draw, [-1]), seed)


def count_groups(size: np.ndarray, samples_per_class: int, sampling: str) -> np.ndarray:
    """Returns the number of groups of each class in a round, int64 [C].

    Together they have about as many places as there are faces.

    Args:
      size: number of faces of each class, [C].
      samples_per_class: faces K of a group.
      sampling: a key of FREQUENCIES.
    """
    frequency = FREQUENCIES[sampling](size).astype(float)
    groups = frequency / frequency.sum() * size.sum() / samples_per_class
    return np.maximum(np.round(groups), 1).astype(np.int64)


def _draw_groups(groups, groups_per_batch, seed, step):
    """Returns the class of each group, int64 [P], and its number of earlier groups, int64 [P]."""
    classes = np.repeat(np.arange(len(groups)), groups)
    order = np.random.default_rng(seed).permutation(len(classes))
    # A stable sort keeps the groups of a class in their order.
    by_class = np.argsort(classes[order], kind='stable')
    before = np.empty_like(order)
    before[by_class] = np.arange(len(order)) - np.repeat(np.cumsum(groups) - groups, groups)
    draw = step * groups_per_batch + tf.range(groups_per_batch, dtype=tf.int64)
    round_, place = draw // len(order), draw % len(order)
    drawn = tf.gather(classes[order], place)
    return drawn, round_ * tf.gather(groups, drawn) + tf.gather(before, place)


def _draw_classes(num_classes, classes_per_batch, seed, step):
    """Returns P different classes, int64 [P], and how often each was drawn before, int64 [P].

    A round of ceil(C / P) batches has all C classes. Its last batch repeats the first `surplus` classes
    of the round. These are the next `surplus` classes in a fixed order, round after round, so that the
    number of visits of a class has a closed form.
    """
    batches = math.ceil(num_classes / classes_per_batch)
    surplus = batches * classes_per_batch - num_classes
    round_ = step // batches
    place = (step % batches) * classes_per_batch + tf.range(classes_per_batch, dtype=tf.int64)
    again = tf.cast(place >= num_classes, tf.int64)
    place -= again * num_classes
    others = num_classes - surplus
    shuffled = surplus + _shuffle(tf.maximum(place - surplus, 0), others, (seed, round_, 1))
    turn = (round_ * surplus + tf.where(place < surplus, place, shuffled)) % num_classes
    visits = round_ + (round_ * surplus + num_classes - 1 - turn) // num_classes + again
    return _shuffle(turn, num_classes, (seed, 0, 2)), visits


def _draw_faces(index, classes, draw, seed):
    """Returns the row of the `draw`-th face of each class, [B]; the order changes every size[class]."""
    size, start = tf.gather(index.size, classes), tf.gather(index.start, classes)
    return tf.gather(index.rows, start + _shuffle(draw % size, size, (seed, draw // size, classes)))


def _shuffle(position, size, seed):
    """Maps each `position` by a random permutation of `size` items, drawn from three seeds."""
    seeds = [tf.broadcast_to(tf.cast(x, tf.int64), tf.shape(position)) for x in seed]
    return tf.raw_ops.RandomIndexShuffle(
        index=position,
        seed=tf.cast(tf.stack(seeds, axis=-1), tf.int32),
        max_index=tf.broadcast_to(tf.cast(size, tf.int64) - 1, tf.shape(position)),
    )
