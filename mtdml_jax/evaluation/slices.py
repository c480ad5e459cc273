"""What every slice of the embedding has learned at its threshold."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import jax
import numpy as np

from mtdml_jax.evaluation.classify import fit_neighbors
from mtdml_jax.losses import LossAux, multi_threshold_loss
from mtdml_jax.slicing import split_slices

if TYPE_CHECKING:  # It loads TensorFlow, which nothing here needs.
    from mtdml_jax.evaluation.embed import EmbeddedSplit

TRIPLET_STATISTICS = ('active_share', 'positive_distance', 'negative_distance', 'spread')


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
    """Accuracy and triplet statistics of each slice.

    Args:
      gallery: labelled faces to compare with, [G, E]; None if it has none of the queries' classes.
      queries: faces to classify, [N, E].
      thresholds: one threshold a slice, [S], in units of the distance.
      num_neighbors: k of the kNN classifier.
      distance: 'euclidean' or 'squared_euclidean', of the triplet statistics.
      dual: whether the active share is that of the dual triplet loss.
      batch_size: number of queries mined together.

    Returns:
      For each slice 'threshold'; with a gallery 'knn_accuracy' of this slice alone and
      'knn_accuracy_first' of the slices up to this one together; and, as in `mtdml_jax.LossAux`,
      'active_share', 'positive_distance', 'negative_distance', 'spread' over batches of the queries.
    """
    thresholds = np.asarray(thresholds, np.float32)
    statistics = _triplet_statistics(queries, thresholds, distance, dual, batch_size)
    study = [
        {'threshold': float(x), **{name: float(values[s]) for name, values in statistics.items()}}
        for s, x in enumerate(thresholds)
    ]
    if gallery is None:
        return study
    gallery_slices = np.asarray(split_slices(gallery.embeddings, len(thresholds)))
    query_slices = np.asarray(split_slices(queries.embeddings, len(thresholds)))

    def knn_accuracy(first: int, last: int) -> float:
        chosen = gallery_slices[:, first:last], query_slices[:, first:last]
        known, asked = (slices.reshape(len(slices), -1) for slices in chosen)
        knn = fit_neighbors(known, gallery.labels, num_neighbors)
        return float(np.mean(knn.predict(asked) == queries.labels))

    return [
        found
        | {'knn_accuracy': knn_accuracy(s, s + 1), 'knn_accuracy_first': knn_accuracy(0, s + 1)}
        for s, found in enumerate(study)
    ]


def _triplet_statistics(queries, thresholds, distance, dual, batch_size) -> dict[str, np.ndarray]:
    """Fields of `LossAux` of the queries, each [S]: means over the anchors mined, of
    the spread over the faces.

    Batches follow one another in a fixed random order of the rows; the last is padded under a mask,
    so that one trace serves all.
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
    # A batch without a triplet reports distances of 0: it must not pull the means down.
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
