"""What one visitor of the demo page has before him, and what he can do with it; without Gradio."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from mtdml_jax.host.errors import UserError
from mtdml_jax.images.pixels import cut_pixels, opened
from mtdml_jax.inference.answers import Gallery, Predictions
from mtdml_jax.inference.model import Model
from mtdml_jax.models.neighbors import find_nearest

# The picture on the page, in pixels of its longest side; faces are cut out of the upload itself.
SHOWN_SIDE = 1280
MOST_FACES, NUM_NEAREST, MAX_NAME = 24, 5, 60

Box = tuple[float, float, float, float]
Detect = Callable[[Image.Image], Sequence[Box]]


class Session(NamedTuple):
    """What one visitor has before him.

    Attributes:
      gallery: the model's faces and those enrolled here.
      picture: the last picture, made small.
      boxes: left, top, width and height of its faces in its pixels, largest first, N of them.
      predictions: of these N faces; None without any.
    """

    gallery: Gallery
    picture: Image.Image | None = None
    boxes: tuple[Box, ...] = ()
    predictions: Predictions | None = None

    @property
    def captions(self) -> list[str]:
        """'2 happy 83 %' of each face; of one face without its number."""
        if self.predictions is None:
            return []
        best = zip(self.predictions.names, self.predictions.probabilities, strict=True)
        numbered = len(self.boxes) > 1
        return [
            f'{f"{number} " if numbered else ""}{name} {100 * max(shares):.0f} %'
            for number, (name, shares) in enumerate(best, 1)
        ]


def read_faces(model: Model, detect: Detect | None, content: bytes, gallery: Gallery) -> Session:
    """The faces of a picture, at most 24 of them, as a session with this gallery.

    Args:
      model: the model.
      detect: finds faces in a picture; None to take the whole picture as the face.
      content: the picture's file.
      gallery: the session's gallery.

    Raises:
      UserError: no picture, or one that cannot be decoded.
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
    """The session with a face added to its gallery.

    Args:
      session: the session.
      row: which of its faces.
      label: name of the face's class, also one that training never saw.
      name: the face's own name, '' for none.

    Raises:
      UserError: no name of a class, or names that are too long.
    """
    label, name = label.strip(), name.strip()
    if not label:
        raise UserError('An enrolled face needs the name of an expression.')
    if max(len(label), len(name)) > MAX_NAME:
        raise UserError(f'A name has at most {MAX_NAME} letters.')
    gallery = session.gallery.add(_embedding(session, row), [label], [name])
    return session._replace(gallery=gallery)


def nearest_faces(session: Session, row: int) -> list[tuple[str, str, float]]:
    """(label, name, distance between unit embeddings) of the 5 enrolled faces nearest to a face."""
    gallery = session.gallery
    rows, distances = find_nearest(_embedding(session, row), gallery.embeddings, NUM_NEAREST)
    return [
        (gallery.labels[i], gallery.names[i], float(distance))
        for i, distance in zip(rows[0], distances[0], strict=True)
    ]


def _embedding(session, row):
    """Of one of its faces, [1, E]."""
    if session.predictions is None:
        raise UserError('There is no face.')
    return session.predictions.embeddings[row : row + 1]
