"""The state of one visitor of the demo page, and the actions on it; this module does not use Gradio."""

from collections.abc import Callable, Mapping, Sequence
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
# Name on the page -> model.
Models = Mapping[str, Model]


class Session(NamedTuple):
    """The state of one visitor.

    Attributes:
      chosen: name of the model that the visitor has chosen.
      galleries: name of a model -> its enrolled faces, and those that the visitor has enrolled while the
        model was chosen: distances between embeddings of two models mean nothing.
      picture: the last picture, reduced in size.
      boxes: left, top, width and height of the N faces in pixels of `picture`, the largest face first.
      faces: name of a model -> the N faces as its network's input, float32 [N, side, side, channels].
      predictions: the chosen model's predictions for the N faces; None without faces.
    """

    chosen: str
    galleries: Mapping[str, Gallery]
    picture: Image.Image | None = None
    boxes: tuple[Box, ...] = ()
    faces: Mapping[str, np.ndarray] = {}
    predictions: Predictions | None = None

    @property
    def gallery(self) -> Gallery:
        """The enrolled faces of the chosen model."""
        return self.galleries[self.chosen]

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


def start_session(models: Models) -> Session:
    """Returns the session of a visitor who has done nothing yet; the first model is chosen."""
    return Session(next(iter(models)), {name: model.gallery for name, model in models.items()})


def read_faces(models: Models, detect: Detect | None, content: bytes, session: Session) -> Session:
    """Reads a picture, and returns the session with its faces, at most 24.

    Args:
      models: the models.
      detect: finds faces in a picture; None takes the whole picture as the face.
      content: content of the picture's file.
      session: the session.

    Raises:
      UserError: the content is not a picture, or it cannot be decoded.
    """
    with opened(content) as picture:
        found = [(0, 0, *picture.size)] if detect is None else detect(picture)
        boxes = sorted(found, key=lambda box: -box[2] * box[3])[:MOST_FACES]
        # Every model's, because only the reduced picture is kept.
        faces = {
            name: [cut_pixels(picture, model.settings.preprocessing, detect and x) for x in boxes]
            for name, model in models.items()
        }
        factor = min(1, SHOWN_SIDE / max(picture.size))
        size = [max(round(factor * x), 1) for x in picture.size]
        shown = picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=2)
    session = session._replace(
        picture=shown,
        boxes=tuple((factor * x, factor * y, factor * w, factor * h) for x, y, w, h in boxes),
        faces={name: np.array(pixels) for name, pixels in faces.items()},
    )
    return choose_model(models, session, session.chosen)


def choose_model(models: Models, session: Session, name: str) -> Session:
    """Returns the session with a model chosen, and with its predictions for the faces."""
    predictions = None
    if session.boxes:
        model = models[name]
        outputs = model.forward(session.faces[name], batch_size=MOST_FACES)()
        predictions = model.make_classifier().classify(*outputs)
    return session._replace(chosen=name, predictions=predictions)


def describe_models(models: Models) -> list[tuple[str, str]]:
    """Returns a label for each model, with its measured accuracy if it has one, and its name."""
    return [(_label(name, model), name) for name, model in models.items()]


def _label(name, model):
    accuracy = measured_accuracy(model)
    if accuracy is None:
        return name
    measured = model.settings.measured
    return f'{name}: right for {100 * accuracy:.1f} % of {measured["num_examples"]:,} faces'


def measured_accuracy(model: Model) -> float | None:
    """Returns the share of faces for which the softmax was right when the model was measured."""
    scores = model.settings.measured.get('classifiers', {}).get('softmax')
    return scores and scores['accuracy']


def enroll(session: Session, row: int, label: str, name: str) -> Session:
    """Returns the session with a face added to the gallery of the chosen model.

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
    return session._replace(galleries={**session.galleries, session.chosen: gallery})


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
