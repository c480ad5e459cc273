"""What a model answers: predictions, neighbours, and the gallery that it compares faces with."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Predictions(NamedTuple):
    """Predictions for N images.

    Attributes:
      class_names: name of each class, [C].
      labels: the most probable class of each image, int [N].
      probabilities: probability of each class, float32 [N, C].
      slice_probabilities: the probabilities by each slice alone, float32 [N, S, C].
      embeddings: unit vectors, float32 [N, E].
    """

    class_names: tuple[str, ...]
    labels: np.ndarray
    probabilities: np.ndarray
    slice_probabilities: np.ndarray
    embeddings: np.ndarray

    @property
    def names(self) -> list[str]:
        """Name of the most probable class of each image, [N]."""
        return [self.class_names[label] for label in self.labels]

    def rows(self, start: int, stop: int) -> 'Predictions':
        """Returns the predictions for the images from `start` to before `stop`."""
        return Predictions(self.class_names, *(values[start:stop] for values in self[1:]))


def join_predictions(parts: Sequence[Predictions]) -> Predictions:
    """Joins several `Predictions` of the same classes into one."""
    arrays = (np.concatenate(values) for values in zip(*(part[1:] for part in parts), strict=True))
    return Predictions(parts[0].class_names, *arrays)


class Neighbors(NamedTuple):
    """The enrolled faces nearest to N images, nearest first.

    Attributes:
      labels: class names of the faces, N lists of K.
      names: names of the faces themselves, N lists of K.
      rows: places of the faces in the order of enrolment, int [N, K].
      distances: Euclidean distances between unit embeddings, float32 [N, K].
    """

    labels: list[list[str]]
    names: list[list[str]]
    rows: np.ndarray
    distances: np.ndarray


class Gallery(NamedTuple):
    """Enrolled faces: embeddings, float32 [G, E]; names of their classes, [G]; their own names, [G]."""

    embeddings: np.ndarray
    labels: tuple[str, ...]
    names: tuple[str, ...]

    def add(self, embeddings: np.ndarray, labels: Sequence[str], names: Sequence[str]) -> 'Gallery':
        """Returns this gallery with more faces: embeddings [N, E], N labels and N names."""
        return Gallery(
            np.concatenate([self.embeddings, embeddings]),
            (*self.labels, *labels),
            (*self.names, *names),
        )
