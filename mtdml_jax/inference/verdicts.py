"""What each slice predicts for a face, and whether its distances satisfy the slice's threshold."""

from typing import NamedTuple

import numpy as np

from mtdml_jax.inference.answers import Gallery, Predictions
from mtdml_jax.inference.model import Model
from mtdml_jax.loss.distances import from_squares


class Verdict(NamedTuple):
    """What a slice predicts for a face.

    Attributes:
      threshold: the slice's threshold, in units of the distance.
      label: the class that is most probable for this slice.
      probability: probability of that class, by this slice alone.
      distance: distance to that class; infinite if the class has no known face.
      rival: the nearest other class.
      rival_distance: distance to the rival; infinite if no other class has a known face.
    """

    threshold: float
    label: str
    probability: float
    distance: float
    rival: str
    rival_distance: float

    @property
    def lead(self) -> float:
        """How much farther away the rival is than the class that the slice predicts."""
        return self.rival_distance - self.distance

    @property
    def keeps_threshold(self) -> bool:
        """Whether the lead is at least the threshold, as the loss demands of triplets in training."""
        return self.lead >= self.threshold


def slice_verdicts(
    model: Model, gallery: Gallery, predictions: Predictions, row: int
) -> list[Verdict]:
    """Returns the verdict of each slice on a face, [S].

    The distance to a class is the distance from the face's unit slice to the slice of the class's
    centre, scaled to length 1. For a class without training faces it is the distance to its nearest
    enrolled face.

    Args:
      model: the model.
      gallery: the enrolled faces.
      predictions: predictions for faces.
      row: row of the face in the predictions.
    """
    distances = _class_distances(
        model, gallery, predictions.class_names, predictions.embeddings[row]
    )
    shares = predictions.slice_probabilities[row]
    return [
        _verdict(threshold, predictions.class_names, shares[s], distances[:, s])
        for s, threshold in enumerate(model.settings.thresholds)
    ]


def _verdict(threshold, names, shares, distances):
    label = int(np.argmax(shares))
    others = np.where(np.arange(len(names)) == label, np.inf, distances)
    rival = int(np.argmin(others))
    return Verdict(
        threshold,
        names[label],
        float(shares[label]),
        float(distances[label]),
        names[rival],
        float(others[rival]),
    )


def _class_distances(model, gallery, names, embedding):
    """Returns the distances from a face's unit slices to each class, [C, S]; infinite without a face."""
    settings = model.settings
    num_slices = settings.network.num_slices
    face, centres, enrolled = (
        _split(x, num_slices) for x in (embedding[None], model.centres, gallery.embeddings)
    )
    labels = np.array(gallery.labels, object)
    distances = np.empty((len(names), num_slices))
    for number, name in enumerate(names):
        is_trained = number < len(centres) and settings.class_counts[number] > 0
        known = centres[number : number + 1] if is_trained else enrolled[labels == name]
        found = from_squares(np.sum(np.square(known - face), axis=2), settings.distance)
        distances[number] = np.min(found, axis=0, initial=np.inf)
    return distances


def _split(embeddings, num_slices):
    """Splits embeddings [N, E] into unit slices [N, S, D]; zeros stay zeros."""
    count, size = embeddings.shape
    slices = embeddings.reshape(count, num_slices, size // num_slices)
    return slices / np.maximum(np.linalg.norm(slices, axis=2, keepdims=True), 1e-12)
