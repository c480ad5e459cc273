"""The state of one visitor of the demo page, and the actions on it; this module does not use Gradio."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from mtdml_jax.host.errors import UserError
from mtdml_jax.images.pixels import cut_pixels, opened
from mtdml_jax.inference.answers import Gallery, Predictions
from mtdml_jax.inference.model import Model
from mtdml_jax.models.neighbors import find_nearest

# Longest side of the picture on the page, in pixels. Faces are cut out of the upload in its own size.
SHOWN_SIDE = 1280
MOST_FACES, NUM_NEAREST, MAX_NAME = 24, 5, 60

Box = tuple[float, float, float, float]
Detect = Callable[[Image.Image], Sequence[Box]]


class Session(NamedTuple):
    """The state of one visitor.

    Attributes:
      gallery: the model's enrolled faces, and those that the visitor has enrolled.
      picture: the last picture, reduced in size.
      boxes: left, top, width and height of the N faces in pixels of `picture`, the largest face first.
      predictions: predictions for the N faces; None without faces.
    """

    gallery: Gallery
    picture: Image.Image | None = None
    boxes: tuple[Box, ...] = ()
    predictions: Predictions | None = None

    @property
    def captions(self) -> list[str]:
        """A caption for each face, such as '2 happy 83 %'; a single face has no number."""
        if self.predictions is None:
            return []
        best = zip(self.predictions.names, self.predictions.probabilities, strict=True)
        numbered = len(self.boxes) > 1
        return [
            f'{f"{number} " if numbered else ""}{name} {100 * max(shares):.0f} %'
            for number, (name, shares) in enumerate(best, 1)
        ]


def read_faces(model: Model, detect: Detect | None, content: bytes, gallery: Gallery) -> Session:
    """Reads a picture, and returns a session with its faces, at most 24, and with this gallery.

    Args:
      model: the model.
      detect: finds faces in a picture; None takes the whole picture as the face.
      content: content of the picture's file.
      gallery: gallery of the session.

    Raises:
      UserError: the content is not a picture, or it cannot be decoded.
    """
    with opened(content) as picture:
        found = [(0, 0, *picture.size)] if detect is None else detect(picture)
        boxes = sorted(found, key=lambda box: -box[2] * box[3])[:MOST_FACES]
        pixels = [
            cut_pixels(picture, model.settings.preprocessing, detect and box) for box in boxes
        ]
        factor = min(1, SHOWN_SIDE / max(picture.size))
        size = [max(round(factor * x), 1) for x in picture.size]
        shown = picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=2)
    predictions = None
    if pixels:
        wait = model.forward(np.stack(pixels), batch_size=MOST_FACES)
        predictions = model.make_classifier().classify(*wait())
    shown_boxes = tuple((factor * x, factor * y, factor * w, factor * h) for x, y, w, h in boxes)
    return Session(gallery, shown, shown_boxes, predictions)


def enroll(session: Session, row: int, label: str, name: str) -> Session:
    """Returns the session with a face added to its gallery.

    Args:
      session: the session.
      row: number of the face in the session.
      label: name of the face's class, which may be new to the model.
      name: the face's own name; '' for none.

    Raises:
      UserError: the label is empty, or a name is too long.
    """
    label, name = label.strip(), name.strip()
    if not label:
        raise UserError('An enrolled face needs the name of an expression.')
    if max(len(label), len(name)) > MAX_NAME:
        raise UserError(f'A name has at most {MAX_NAME} letters.')
    gallery = session.gallery.add(_embedding(session, row), [label], [name])
    return session._replace(gallery=gallery)


def nearest_faces(session: Session, row: int) -> list[tuple[str, str, float]]:
    """Returns the 5 enrolled faces nearest to a face: (label, name, distance of unit embeddings)."""
    gallery = session.gallery
    rows, distances = find_nearest(_embedding(session, row), gallery.embeddings, NUM_NEAREST)
    return [
        (gallery.labels[i], gallery.names[i], float(distance))
        for i, distance in zip(rows[0], distances[0], strict=True)
    ]


def _embedding(session, row):
    """Returns the embedding of one face of the session, [1, E]."""
    if session.predictions is None:
        raise UserError('There is no face.')
    return session.predictions.embeddings[row : row + 1]
