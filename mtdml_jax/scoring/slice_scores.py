"""Measures what each slice of the embedding has learned at its threshold."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import jax
import numpy as np

from mtdml_jax.loss.multi_threshold import LossAux, multi_threshold_loss
from mtdml_jax.loss.slicing import split_slices
from mtdml_jax.models.neighbors import neighbor_votes

if TYPE_CHECKING:  # This import loads TensorFlow, which nothing here needs.
    from mtdml_jax.scoring.embed import EmbeddedSplit

TRIPLET_STATISTICS = (
    'active_share',
    'positive_distance',
    'negative_distance',
    'spread',
    'collapse',
)
# A slice whose unit vectors have a smaller spread than this counts as a single point.
POINT_SPREAD = 1e-6


def slice_study(
    gallery: EmbeddedSplit | None,
    queries: EmbeddedSplit,
    thresholds: np.ndarray,
    *,
    num_neighbors: int,
    distance: str,
    dual: bool,
    batch_size: int,
) -> list[dict[str, float]]:
    """Computes the accuracy and the triplet statistics of each slice.

    Args:
      gallery: labelled faces to compare with, [G, E]; None if no face has a class of the queries.
      queries: faces to classify, [N, E].
      thresholds: one threshold per slice, [S], in units of the distance.
      num_neighbors: k of the kNN classifier.
      distance: distance of the triplet statistics, 'euclidean' or 'squared_euclidean'.
      dual: whether the active share is that of the dual triplet loss.
      batch_size: number of queries in a mined batch.

    Returns:
      A dictionary for each slice. It has 'threshold', and over batches of the queries with batch-hard
      mining 'active_share', 'positive_distance', 'negative_distance', 'spread' and 'collapse' (see
      `mtdml_jax.LossAux`). With a gallery it has 'knn_accuracy' of this slice alone, and
      'knn_accuracy_first' of all slices up to this one together. If there are several slices, it has
      the similarity to the other slices, as a mean over them: 'cka' (`linear_cka` of the queries) and,
      with a gallery, 'agreement' (`agreement` of the predictions).
    """
    thresholds = np.asarray(thresholds, np.float32)
    num_slices = len(thresholds)
    query_slices = np.asarray(split_slices(queries.embeddings, num_slices))
    columns = {
        'threshold': thresholds,
        **_triplet_statistics(queries, thresholds, distance, dual, batch_size),
    }
    if num_slices > 1:
        columns['cka'] = _mean_over_others(linear_cka(query_slices))
    if gallery is not None:
        gallery_slices = np.asarray(split_slices(gallery.embeddings, num_slices))

        num_classes = int(gallery.labels.max()) + 1

        def predict(first: int, last: int) -> np.ndarray:
            chosen = gallery_slices[:, first:last], query_slices[:, first:last]
            known, asked = (slices.reshape(len(slices), -1) for slices in chosen)
            votes = neighbor_votes(asked, known, gallery.labels, num_classes, num_neighbors)
            return np.argmax(votes, axis=1)

        alone = np.stack([predict(s, s + 1) for s in range(num_slices)])
        first = np.stack([predict(0, s + 1) for s in range(num_slices)])
        columns['knn_accuracy'] = np.mean(alone == queries.labels, axis=1)
        columns['knn_accuracy_first'] = np.mean(first == queries.labels, axis=1)
        if num_slices > 1:
            columns['agreement'] = _mean_over_others(agreement(alone))
    return [{name: float(x[s]) for name, x in columns.items()} for s in range(num_slices)]


def agreement(predictions: np.ndarray) -> np.ndarray:
    """Returns the share of the queries to which two classifiers give the same class, [S, S].

    Args:
      predictions: predicted classes of S classifiers, int [S, N].
    """
    return np.stack([np.mean(predictions == row, axis=1) for row in predictions])


def linear_cka(slices: np.ndarray) -> np.ndarray:
    """Computes the linear centred kernel alignment of each pair of slices, [S, S], from 0 to 1.

      CKA(X, Y) = ||X^T Y||_F^2 / (||X^T X||_F ||Y^T Y||_F),  columns of X and Y centred

    It is 1 for slices that differ only by a rotation and a scale, and 0 if a slice is a single point.

    Args:
      slices: unit vectors of N queries, [N, S, D].

    References:
      Kornblith et al., "Similarity of neural network representations revisited", ICML 2019.
    """
    num_rows, num_slices, slice_dim = slices.shape
    centred = np.asarray(slices, np.float64) - np.mean(slices, axis=0, dtype=np.float64)
    rows = centred.reshape(num_rows, -1)
    blocks = (rows.T @ rows).reshape(num_slices, slice_dim, num_slices, slice_dim)
    products = np.sum(np.square(blocks), axis=(1, 3))
    norms = np.sqrt(np.diag(products))
    # The centred rows of a point contain only float32 rounding, which has no meaningful direction.
    extended = norms > num_rows * POINT_SPREAD**2
    scale, known = np.outer(norms, norms), np.outer(extended, extended)
    return np.divide(products, scale, out=np.zeros_like(products), where=known)


def _mean_over_others(similarity: np.ndarray) -> np.ndarray:
    """Returns the means over the rows of [S, S] without the diagonal, [S]."""
    return (similarity.sum(axis=1) - np.diag(similarity)) / (len(similarity) - 1)


def _triplet_statistics(queries, thresholds, distance, dual, batch_size) -> dict[str, np.ndarray]:
    """Computes fields of `LossAux` for the queries, each [S].

    The spread is a mean over the faces; all other fields are means over the anchors with a triplet.
    Batches take the rows in a fixed random order. The last batch is padded under a mask, so that all
    batches share one compiled program.
    """
    order = np.random.default_rng(0).permutation(len(queries.labels))
    num_batches = -(-len(order) // batch_size)
    rows = np.resize(order, (num_batches, batch_size))
    mask = (np.arange(rows.size) < len(order)).reshape(rows.shape)
    batches = [
        jax.device_get(
            _measure_batch(
                queries.embeddings[row], queries.labels[row], thresholds, used, distance, dual
            )
        )
        for row, used in zip(rows, mask, strict=True)
    ]
    # A batch without triplets reports distances of 0, which must not lower the means.
    anchors = np.stack([aux.num_valid for aux in batches])
    faces = np.broadcast_to(mask.sum(axis=1, keepdims=True), anchors.shape)

    def mean(name):
        weights = faces if name == 'spread' else anchors
        total = np.sum(weights * np.stack([getattr(aux, name) for aux in batches]), axis=0)
        return total / np.maximum(weights.sum(axis=0), 1)

    return {name: mean(name) for name in TRIPLET_STATISTICS}


@partial(jax.jit, static_argnames=('distance', 'dual'))
def _measure_batch(embeddings, labels, thresholds, mask, distance, dual) -> LossAux:
    return multi_threshold_loss(
        embeddings, labels, thresholds, distance=distance, dual=dual, mask=mask
    )[1]
