"""Turns a stream of pictures into rows of their faces, in constant memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from mtdml_jax.host.errors import UserError
from mtdml_jax.images.pixels import cut_pixels, opened
from mtdml_jax.inference.batches import NUM_THREADS, in_batches, one_behind
from mtdml_jax.inference.media import Picture
from mtdml_jax.inference.model import Model, ModelClassifier
from mtdml_jax.inference.rows import NO_FACE, Row

# A function (picture, its image) -> boxes (left, top, width, height) of its faces, or None if the whole
# picture is the face.
FindBoxes = Callable[[Picture, Image.Image], Sequence[Sequence[int]] | None]


def find_boxes(faces: str) -> FindBoxes:
    """Returns the function that finds the faces in pictures.

    Args:
      faces: 'none' if each picture is a face; 'detect' to detect faces; or a csv file of boxes.

    Raises:
      UserError: `faces` is none of these, or the file is not a list of boxes.
    """
    if faces == 'none':
        return lambda picture, image: None
    if faces != 'detect' and not faces.endswith('.csv'):
        raise UserError(f'--faces: expected none, detect or a csv file, found {faces!r}')
    # Imported here, because detection needs a library of its own.
    from mtdml_jax.inference import faces as detection

    if faces == 'detect':
        return lambda picture, image: detection.find_faces(image)
    boxes = detection.read_boxes(faces)
    return lambda picture, image: boxes.get(Path(picture.path).resolve(), [])


def predict_rows(
    model: Model,
    pictures: Iterable[Picture],
    find_boxes: FindBoxes,
    classifier: ModelClassifier,
    *,
    keep_frames: bool = False,
    batch_size: int = 64,
) -> Iterator[Row]:
    """Yields a row for each face, in the order of the pictures.

    A picture without a face, or one that cannot be read, yields one row that gives the reason.

    Args:
      model: the model.
      pictures: the pictures; they are read a few batches ahead of the rows that are consumed.
      find_boxes: returns the boxes of the faces in a picture.
      classifier: one of the model's classifiers.
      keep_frames: whether rows keep the frames of videos, which takes memory.
      batch_size: number of faces in a forward pass.
    """

    def cut(picture):
        return _cut_faces(picture, find_boxes, model.settings.preprocessing, keep_frames)

    def start(faces):
        pixels = [pixels for _, pixels in faces if pixels is not None]
        wait = model.forward(np.stack(pixels), batch_size) if pixels else None
        return lambda: list(_fill(faces, classifier.classify(*wait()) if wait else None))

    faces = (face for found in _map_ahead(cut, pictures) for face in found)
    for rows in one_behind(map(start, in_batches(faces, batch_size))):
        yield from rows


def _cut_faces(picture, find_boxes, preprocessing, keep_frames):
    """Returns [(row without `found`, pixels)] for a picture; pixels are None if it has an error."""
    place = (
        picture if keep_frames or isinstance(picture.image, Path) else picture._replace(image=None)
    )
    if picture.error:
        return [(Row(place, None, None, picture.error), None)]
    try:
        with opened(picture.image) as image:
            boxes = find_boxes(picture, image)
            if boxes is not None and not boxes:
                return [(Row(place, None, None, NO_FACE), None)]
            return [
                (Row(place, box, None), cut_pixels(image, preprocessing, box))
                for box in ([None] if boxes is None else boxes)
            ]
    except UserError as error:
        return [(Row(place, None, None, str(error).removeprefix(f'{picture.path}: ')), None)]


def _fill(faces, found):
    """Yields each row with its own predictions out of `found`."""
    number = 0
    for row, pixels in faces:
        if pixels is None:
            yield row
            continue
        yield row._replace(found=found.rows(number, number + 1))
        number += 1


def _map_ahead(function, items):
    """Like `map`, but threads compute a few items ahead."""
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        waiting: deque[Future] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * NUM_THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
