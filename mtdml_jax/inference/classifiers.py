"""The ways in which a model says what class a face is of."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from mtdml_jax.host.errors import UserError

if TYPE_CHECKING:  # It imports this module.
    from mtdml_jax.inference.model import Gallery, Model

# Of faces, unit slices [N, S, D] and logits of each slice [N, S, C] -> probabilities of the classes as a
# whole [N, C'] and by each slice alone [N, S, C'], float32.
Judge = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def _make_softmax(model: Model, k: int) -> tuple[tuple[str, ...], Judge]:
    if not model.settings.has_head:
        raise UserError("by='softmax': this model has no classifiers (it was trained without)")
    return model.class_names, lambda slices, logits: as_probabilities(logits)


def _make_centroid(model: Model, k: int) -> tuple[tuple[str, ...], Judge]:
    gallery, counts = model.gallery, np.array(model.settings.class_counts)
    names = known_classes(model, gallery)
    sums = np.zeros((len(names), model.centres.shape[1]), np.float64)
    sums[: len(counts)] = model.centres * counts[:, None]
    total = np.zeros(len(names))
    total[: len(counts)] = counts
    labels = np.array([names.index(label) for label in gallery.labels], int)
    np.add.at(sums, labels, gallery.embeddings)
    np.add.at(total, labels, 1)
    num_slices = model.settings.network.num_slices
    # Embeddings are unit slices side by side, divided by the root of their number.
    centres = (sums / np.maximum(total, 1)[:, None]).reshape(len(names), num_slices, -1)
    centres = (centres * num_slices**0.5).astype(np.float32)
    squares = np.where(total[:, None] > 0, np.sum(centres**2, axis=2), np.inf)

    def judge(slices, logits):
        products = np.einsum('nsd,csd->nsc', slices, centres)
        scores = products - squares.T.astype(np.float32) / 2
        return as_probabilities(model.logit_scale * scores)

    return names, judge


def _make_knn(model: Model, k: int) -> tuple[tuple[str, ...], Judge]:
    gallery = need_faces(model.gallery)
    names = known_classes(model, gallery)
    labels = np.array([names.index(label) for label in gallery.labels])
    num_slices = model.settings.network.num_slices
    parts = gallery.embeddings.reshape(len(labels), num_slices, -1) * num_slices**0.5

    def vote(found, among):
        rows, _ = find_nearest(found, among, k)
        votes = labels[rows][..., None] == np.arange(len(names))
        return votes.mean(axis=1, dtype=np.float32)

    def judge(slices, logits):
        by_slice = [vote(slices[:, s], parts[:, s]) for s in range(num_slices)]
        return vote(side_by_side(slices), gallery.embeddings), np.stack(by_slice, axis=1)

    return names, judge


# Name, as `Model.predict(by=...)` takes it -> function (model, number k of neighbours) -> (names of the
# classes [C'], `Judge`). It raises UserError for a model that lacks what it takes.
CLASSIFIERS: dict[str, Callable[[Model, int], tuple[tuple[str, ...], Judge]]] = {
    'softmax': _make_softmax,
    'centroid': _make_centroid,
    'knn': _make_knn,
}


def known_classes(model: Model, gallery: Gallery) -> tuple[str, ...]:
    """Those of training, then the others that were enrolled, in the order of enrolment."""
    return tuple(dict.fromkeys((*model.class_names, *gallery.labels)))


def need_faces(gallery: Gallery) -> Gallery:
    """The gallery; raises UserError if no face is enrolled."""
    if not gallery.labels:
        raise UserError('no face is enrolled: enroll(images, labels) adds them')
    return gallery


def as_probabilities(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Softmax of the mean of the slices' scores [N, S, C], and of each slice's: [N, C], [N, S, C]."""
    return _softmax(scores.mean(axis=1)), _softmax(scores)


def _softmax(logits):
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def side_by_side(slices: np.ndarray) -> np.ndarray:
    """Unit slices [N, S, D] as unit embeddings [N, S * D]."""
    return slices.reshape(len(slices), -1) / np.float32(slices.shape[1] ** 0.5)


def find_nearest(found: np.ndarray, among: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows int [N, K], distances float32 [N, K]) of unit vectors, nearest first, ties by the row."""
    if k < 1:
        raise UserError(f'k: expected at least 1, found {k}')
    # Differences, not products: near faces keep their digits.
    squares = np.stack([np.sum((among - x) ** 2, axis=1) for x in found])
    rows = np.argsort(squares, axis=1, kind='stable')[:, :k]
    return rows, np.sqrt(np.take_along_axis(squares, rows, axis=1))
