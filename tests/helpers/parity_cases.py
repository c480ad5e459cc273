"""200 random float64 batches on which several implementations of the loss must agree.

`test_parity.py` compares the loss with plain loops, `tests/environments/parity_pml.py` with
pytorch-metric-learning. The batches have only a few shapes, so that few programs are compiled.
"""

from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from mtdml_jax import mine_batch_hard, multi_threshold_loss, split_slices, threshold_range


class Shape(NamedTuple):
    """The settings that need a compiled program of their own."""

    batch: int
    num_slices: int
    slice_dim: int
    distance: str
    reduction: str


class Case(NamedTuple):
    """One batch: embeddings float64 [B, E], labels int32 [B], thresholds float64 [S]."""

    name: str
    shape: Shape
    embeddings: np.ndarray
    labels: np.ndarray
    thresholds: np.ndarray


class Computed(NamedTuple):
    """What JAX computes for a case, as NumPy arrays."""

    triplets: tuple
    loss: float
    gradient: np.ndarray


# Number of cases of each shape. pytorch-metric-learning uses another algorithm above 25 rows.
SHAPES = {
    Shape(1, 1, 3, 'euclidean', 'active_mean'): 4,
    Shape(3, 3, 2, 'squared_euclidean', 'mean'): 24,
    Shape(12, 4, 3, 'euclidean', 'mean'): 60,
    Shape(25, 2, 3, 'squared_euclidean', 'active_mean'): 40,
    Shape(26, 2, 5, 'euclidean', 'active_mean'): 36,
    Shape(44, 1, 8, 'euclidean', 'mean'): 20,
    Shape(60, 2, 4, 'squared_euclidean', 'mean'): 16,
}
KINDS = ('clusters', 'duplicates', 'axes', 'duplicates')


def draw_labels(rng, batch):
    """Draws labels of uneven classes, often with a singleton.

    One case in 12 has only one class, and one in 12 has a class for each row.
    """
    kind = rng.integers(12)
    if kind == 0:
        return np.zeros(batch, np.int32)
    if kind == 1:
        return rng.permutation(batch).astype(np.int32)
    shares = rng.dirichlet(np.full(rng.integers(2, 8), 0.7))
    labels = rng.choice(len(shares), size=batch, p=shares)
    if rng.random() < 0.5:
        labels[rng.integers(batch)] = 99
    return labels.astype(np.int32)


def draw_case(index, kind, shape):
    """Draws the case of that number; every call returns the same case.

    The kind 'clusters' has tight or loose clusters by class, with rows of any length. In 'duplicates',
    up to half of such rows equal another row, of the same class or not. The kind 'axes' has rows along
    the axes, some of them 0. Their distances have many ties, and are exact in every order of summation.
    """
    rng = np.random.default_rng([2024, index])
    batch, num_slices, slice_dim, distance, _ = shape
    labels = draw_labels(rng, batch)
    if kind == 'axes':
        vectors = np.eye(slice_dim)[rng.integers(slice_dim, size=(batch, num_slices))]
        lengths = rng.choice([-2.0, -1.0, 0.0, 0.5, 1.0, 4.0], size=(batch, num_slices, 1))
        embeddings = (lengths * vectors).reshape(batch, -1)
        thresholds = rng.choice([0.0, 0.25, 0.5, 1.0], size=num_slices)
    else:
        embeddings = rng.normal(size=(100, num_slices * slice_dim))[labels]
        embeddings += rng.uniform(0.02, 0.6) * rng.normal(size=embeddings.shape)
        embeddings *= rng.uniform(0.1, 10, size=(batch, 1))
        _, high = threshold_range(7, distance=distance)
        # The square favours low thresholds, which some triplets satisfy.
        thresholds = high * rng.uniform(size=num_slices) ** 2
    if kind == 'duplicates':
        copies = rng.integers(batch, size=(batch + 1) // 2)
        embeddings[copies] = embeddings[rng.integers(batch, size=copies.shape)]
    return Case(f'{index}-{kind}-{batch}', shape, embeddings, labels, thresholds)


def draw_cases():
    """Draws all cases, ordered by shape."""
    shapes = [shape for shape, count in SHAPES.items() for _ in range(count)]
    return [draw_case(i, KINDS[i % len(KINDS)], shape) for i, shape in enumerate(shapes)]


CASES = draw_cases()


@partial(jax.jit, static_argnames=('shape', 'duals'))
def _compiled(embeddings, labels, thresholds, shape, duals):
    triplets = mine_batch_hard(split_slices(embeddings, shape.num_slices), labels)
    options = {'distance': shape.distance, 'reduction': shape.reduction}

    def scalar(e, dual):
        return multi_threshold_loss(e, labels, thresholds, dual=dual, **options)[0]

    return triplets, [jax.value_and_grad(scalar)(embeddings, dual) for dual in duals]


def compute_in_jax(case, duals=(False, True)):
    """Returns a `Computed` for each of `duals`, in float64."""
    with jax.enable_x64(True):
        arrays = case.embeddings, case.labels, case.thresholds
        triplets, found = jax.tree.map(np.asarray, _compiled(*arrays, case.shape, duals))
    return [Computed(triplets, loss, gradient) for loss, gradient in found]


def pairs_of(triplets, s):
    """Returns {anchor: (positive, negative)} of slice s of `Triplets`."""
    return {
        int(a): (int(triplets.positive[s, a]), int(triplets.negative[s, a]))
        for a in np.flatnonzero(triplets.valid[s])
    }
