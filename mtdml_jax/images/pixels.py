"""Anything that is an image to the pixels that a network was trained on, by Pillow and NumPy.

What data/images.py does inside tf.data; tests/images/test_pixels.py holds both to one result.
"""

import contextlib
import io
import math
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
from PIL import Image

from mtdml_jax.host.errors import UserError

# What is read, by Pillow's names; other plugins start programs (EPS) or read what is no photograph.
FORMATS = ('PNG', 'JPEG', 'BMP', 'TIFF', 'GIF', 'WEBP', 'AVIF', 'JPEG2000', 'PPM')
# Decoding a hostile file of a few kB may ask for any memory: larger pictures are refused.
MAX_PIXELS, MAX_BYTES = 2**26, 2**28
# Of pixels; above it a picture is decoded while no other is.
LARGE = 2**23
_ALONE = threading.RLock()
# Tag 274 of EXIF -> what puts the picture upright.
_ORIENTATION = 274
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What may be given as an image: what Pillow opens, a file or its content, or has; or an array.
PillowLike = str | Path | bytes | bytearray | memoryview | Image.Image
ImageLike = PillowLike | np.ndarray


class Preprocessing(NamedTuple):
    """What is done to a face before the network sees it; keys of the section `data` of a config.

    Attributes:
      image_size: side in pixels.
      channels: 1 (grey) or 3 (RGB).
      crop: whether a picture without a box is cut to the square in its middle, or stretched to one.
      crop_margin: added on each side of a square, as a share of it.
      mean: subtracted from pixel values in [0, 1]; one number, or one a channel.
      std: by which they are divided.
    """

    image_size: int
    channels: int
    crop: bool
    crop_margin: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


def load_pixels(
    image: ImageLike, preprocessing: Preprocessing, box: Sequence[float] | None = None
) -> np.ndarray:
    """What the network sees of an image, float32 [side, side, channels].

    Args:
      image: as `open_image` takes it.
      preprocessing: what the network was trained on.
      box: left, top, width and height of the face in pixels; the square around it is cut out.

    Raises:
      UserError: no image, or one that cannot be decoded.
    """
    with opened(image) as upright:
        return cut_pixels(upright, preprocessing, box)


@overload
def opened(image: PillowLike) -> contextlib.AbstractContextManager[Image.Image]: ...
@overload
def opened(
    image: ImageLike,
) -> contextlib.AbstractContextManager[Image.Image | np.ndarray]: ...
@contextlib.contextmanager
def opened(image: ImageLike) -> Iterator[Any]:
    """`open_image` for the time that its value is in use: large pictures are so one after the other.

    Several threads would take several times the memory else.
    """
    found, name = _find(image)
    with _ALONE if math.prod(_size(found)) > LARGE else contextlib.nullcontext():
        yield _guard(lambda: _decode(found), name)


def cut_pixels(
    image: Image.Image | np.ndarray,
    preprocessing: Preprocessing,
    box: Sequence[float] | None = None,
) -> np.ndarray:
    """`load_pixels` of an image as `open_image` returns it."""
    if box is not None or preprocessing.crop:
        image = _crop(image, square_around(_size(image), box, preprocessing.crop_margin))
    side = preprocessing.image_size
    # Made one after the other, for they may be large.
    planes = [_resize(plane, side) for plane in _planes(_to_colours(image, preprocessing.channels))]
    pixels = np.stack(planes, axis=-1) / 255.0
    mean, std = (np.asarray(x, np.float32) for x in (preprocessing.mean, preprocessing.std))
    return (pixels - mean) / std


def square_around(
    size: tuple[int, int], box: Sequence[float] | None, margin: float
) -> tuple[int, int, int]:
    """Left, top and side of the square that is cut out; the rule of `data.images.crop_square`.

    Args:
      size: width and height of the image.
      box: left, top, width and height of the face in pixels; None or width 0 where unknown.
      margin: added on each side, as a share of the box's side.
    """
    width, height = size
    left, top, box_width, box_height = (0, 0, 0, 0) if box is None else map(int, box)
    shortest = min(width, height)
    side, twice_centre = shortest, (width, height)
    if box_width > 0:
        side, twice_centre = (
            max(box_width, box_height),
            (2 * left + box_width, 2 * top + box_height),
        )
    # In float32, half to even: as tf.round does.
    side = int(np.round(np.float32(side) * np.float32(1.0 + 2.0 * margin)))
    side = min(max(side, 1), shortest)
    x, y = (
        min(max((twice - side) // 2, 0), length - side)
        for twice, length in zip(twice_centre, size, strict=True)
    )
    return x, y, side


@overload
def open_image(image: PillowLike) -> Image.Image: ...
@overload
def open_image(image: ImageLike) -> Image.Image | np.ndarray: ...
def open_image(image: ImageLike) -> Image.Image | np.ndarray:
    """An image as Pillow's, of mode L or RGB and upright; an array of floats as it is.

    Args:
      image: the path of a file; its content, bytes; an image of Pillow's; an array [H, W] or
        [H, W, 1, 3 or 4] of uint8, or of floats from 0 to 1.

    Raises:
      UserError: none of these, or one that cannot be decoded.
    """
    with opened(image) as upright:
        return upright


def _find(image):
    """(array of floats or an image of Pillow's that may not be decoded yet, what errors call it)."""
    if isinstance(image, Image.Image):
        return image, 'image'
    name = 'image'
    if isinstance(image, (str, Path)):
        name = str(image)
        image = _read(Path(image).expanduser())
    if not isinstance(image, (bytes, bytearray, memoryview)):
        return _check_array(image), name
    found = _guard(lambda: _open(image), name)
    if math.prod(found.size) > MAX_PIXELS:
        raise UserError(
            f'{name}: {found.width} x {found.height} pixels are more than {MAX_PIXELS:,} in all'
        )
    return found, name


def _read(path):
    if path.exists() and not path.is_file():
        raise UserError(f'{path}: it is no file')
    try:
        with path.open('rb') as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path.
        reason = getattr(error, 'strerror', None) or error
        raise UserError(f'{path}: it cannot be read ({reason})') from error
    if len(content) > MAX_BYTES:
        raise UserError(f'{path}: it is larger than {MAX_BYTES:,} bytes')
    return content


def _decode(image):
    return make_upright(image) if isinstance(image, Image.Image) else image


def open_upright(encoded: bytes) -> Image.Image:
    """An encoded image of any size as `make_upright` leaves it, with whatever error Pillow raises."""
    return make_upright(_open(encoded))


def _open(encoded):
    return Image.open(io.BytesIO(encoded), formats=FORMATS)


def _guard(function, name):
    """The function's value; whatever Pillow raises of a damaged file is a UserError."""
    try:
        return function()
    except Image.UnidentifiedImageError as error:
        raise UserError(f'{name}: it is no image of a known format') from error
    except Exception as error:
        raise UserError(
            f'{name}: it cannot be decoded ({error or type(error).__name__})'
        ) from error


def make_upright(image: Image.Image) -> Image.Image:
    """The first frame in mode L or RGB, upright by its EXIF orientation.

    Transparency is dropped, and of 16 bits the upper 8 are kept.

    Raises:
      ValueError, OSError and what else Pillow raises: it cannot be decoded.
    """
    if image.mode in ('I', 'F'):
        raise ValueError(f'expected 8 or 16 bits a channel, found mode {image.mode}')
    image.load()
    orientation = _read_orientation(image)
    if image.mode.startswith('I;16'):
        # Of 16 bits the upper 8: `convert` would make all above 255 white.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ('1', 'LA'):
        image = image.convert('L')
    elif image.mode not in ('L', 'RGB'):
        # A palette's transparency becomes alpha first, or Pillow warns.
        image = image.convert('RGBA' if image.mode == 'P' else 'RGB').convert('RGB')
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
        # It is upright now, whatever the file says.
        image.info.pop('exif', None)
    return image


def _read_orientation(image):
    """1 to 8; of TIFF 1, which Pillow has put upright."""
    exif = Image.Exif()
    try:
        exif.load(image.info.get('exif', b''))
        return exif.get(_ORIENTATION, 1)
    except Exception:  # Whatever Pillow makes of broken EXIF: the picture is none the worse.
        return 1


def _check_array(image):
    """Pillow's image of an array of uint8; floats as [H, W, 1 or 3], from 0 to 1."""
    try:
        array = np.asarray(image)
    except Exception as error:
        raise UserError(f'expected an image, found {type(image).__name__}') from error
    is_float = np.issubdtype(array.dtype, np.floating)
    if not is_float and array.dtype != np.uint8:
        raise UserError(
            f'expected an image: a path, bytes, an image of Pillow, or an array of uint8 or of floats '
            f'from 0 to 1; found {type(image).__name__} of {array.dtype}'
        )
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        raise UserError(
            f'expected an image of shape [H, W] or [H, W, 1, 3 or 4], found {np.shape(image)}'
        )
    array = array[..., :3]
    if not is_float:
        return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    if not (array.min() >= 0 and array.max() <= 1):  # NaN is neither.
        raise UserError(
            f'expected floats from 0 to 1, found {array.min():g} to {array.max():g}; pixels from 0 to '
            f'255 are to be uint8'
        )
    return array.astype(np.float32)


def _size(image):
    """Width and height."""
    return image.size if isinstance(image, Image.Image) else image.shape[1::-1]


def _crop(image, square):
    left, top, side = square
    if isinstance(image, Image.Image):
        return image.crop((left, top, left + side, top + side))
    return image[top : top + side, left : left + side]


def _to_colours(image, channels):
    """The image in grey or RGB."""
    if isinstance(image, Image.Image):
        return image.convert('L' if channels == 1 else 'RGB')
    if channels == 1 and image.shape[2] == 3:
        image = image @ np.array([[0.299], [0.587], [0.114]], np.float32)
    return np.broadcast_to(image, (*image.shape[:2], channels))


def _planes(image):
    """Each channel as an image of Pillow's, with values from 0 to 255."""
    if isinstance(image, Image.Image):
        yield from map(image.getchannel, range(len(image.getbands())))
    else:
        yield from (Image.fromarray(255 * image[..., i]) for i in range(image.shape[2]))


def _resize(plane, side):
    """Values from 0 to 255, float32 [side, side]."""
    if plane.size != (side, side):
        # In floating point: Pillow's 8 bits would be rounded twice.
        plane = plane.convert('F').resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(plane, np.float32)
