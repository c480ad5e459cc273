"""Classifiers, which compute class probabilities from slices and logits of faces, in NumPy."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mtdml_jax.host.errors import UserError
from mtdml_jax.models.neighbors import neighbor_votes


class Facts(NamedTuple):
    """What a classifier may know of a model and of labelled faces.

    Attributes:
      class_names: names of the classes, [C].
      counts: number of training faces of each class, int [C].
      centres: mean embedding of the training faces of each class, [C, E]; 0 without training faces.
      gallery: embeddings of faces to compare with, [G, E].
      gallery_labels: classes of these faces, int [G], below C.
      num_slices: number of slices S of an embedding.
      logit_scale: scale of the logits; it turns scores of other kinds into probabilities.
      has_head: whether the network's own classifiers were trained.
    """

    class_names: tuple[str, ...]
    counts: np.ndarray
    centres: np.ndarray
    gallery: np.ndarray
    gallery_labels: np.ndarray
    num_slices: int
    logit_scale: float
    has_head: bool

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return len(self.class_names)


# A function (unit slices [N, S, D], logits of each slice [N, S, C]) -> class probabilities by all slices
# together [N, C] and by each slice alone [N, S, C], float32.
Probabilities = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


class Classifier(NamedTuple):
    """A way to classify faces.

    Attributes:
      title: its name in reports.
      make: function (facts, number k of neighbours) -> `Probabilities`. It raises UserError if the facts
        lack something that it needs.
      needs_head: whether it needs the network's own classifiers; an evaluation without them omits it.
    """

    title: str
    make: Callable[[Facts, int], Probabilities]
    needs_head: bool = False


def _make_softmax(facts: Facts, k: int) -> Probabilities:
    if not facts.has_head:
        raise UserError("by='softmax': this model has no classifiers (none were trained)")
    return lambda slices, logits: as_probabilities(logits)


def _make_knn(facts: Facts, k: int) -> Probabilities:
    if not len(facts.gallery):
        raise UserError('no face is enrolled: enroll(images, labels) adds faces')
    labels, num_classes, num_slices = facts.gallery_labels, facts.num_classes, facts.num_slices
    parts = facts.gallery.reshape(len(labels), num_slices, -1) * num_slices**0.5

    def probabilities(slices, logits):
        whole = neighbor_votes(join_slices(slices), facts.gallery, labels, num_classes, k)
        if num_slices == 1:
            return whole, whole[:, None]
        by_slice = [
            neighbor_votes(slices[:, s], parts[:, s], labels, num_classes, k)
            for s in range(num_slices)
        ]
        return whole, np.stack(by_slice, axis=1)

    return probabilities


def _make_centroid(facts: Facts, k: int) -> Probabilities:
    total = facts.counts.astype(np.float64)
    sums = facts.centres * total[:, None]
    np.add.at(sums, facts.gallery_labels, facts.gallery)
    np.add.at(total, facts.gallery_labels, 1)
    # An embedding is the concatenation of unit slices, divided by the root of their number.
    centres = (sums / np.maximum(total, 1)[:, None]).reshape(len(sums), facts.num_slices, -1)
    centres = (centres * facts.num_slices**0.5).astype(np.float32)
    squares = np.where(total[:, None] > 0, np.sum(centres**2, axis=2), np.inf)

    def probabilities(slices, logits):
        products = np.einsum('nsd,csd->nsc', slices, centres)
        scores = products - squares.T.astype(np.float32) / 2
        return as_probabilities(facts.logit_scale * scores)

    return probabilities


# Name of a classifier for `Model.predict(by=...)` -> classifier, in the order of reports.
CLASSIFIERS: dict[str, Classifier] = {
    'softmax': Classifier('Softmax head', _make_softmax, needs_head=True),
    'knn': Classifier('k nearest neighbours', _make_knn),
    'centroid': Classifier('Nearest centroid', _make_centroid),
}


def as_probabilities(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the softmax of the mean of scores [N, S, C] over slices, and of each slice's scores."""
    return _softmax(scores.mean(axis=1)), _softmax(scores)


def _softmax(logits):
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def join_slices(slices: np.ndarray) -> np.ndarray:
    """Joins unit slices [N, S, D] to unit embeddings [N, S * D]: `merge_slices` in NumPy."""
    return slices.reshape(len(slices), -1) / np.float32(slices.shape[1] ** 0.5)
