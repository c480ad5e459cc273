"""Turns anything that is an image into the input of a network, with Pillow and NumPy; for inference.

mtdml_jax/data/decode.py does the same inside tf.data, for training. tests/images/test_pixels.py checks
that both give the same result.
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
from mtdml_jax.host.paths import user_path

# Pillow's names of the formats that are read. Other plugins start programs (EPS) or read files that are
# not photographs.
FORMATS = ('PNG', 'JPEG', 'BMP', 'TIFF', 'GIF', 'WEBP', 'AVIF', 'JPEG2000', 'PPM')
# Larger images are refused, because a hostile file of a few kB could request any amount of memory.
MAX_PIXELS, MAX_BYTES = 2**26, 2**28
# Number of pixels above which an image is decoded alone, while no other large image is.
LARGE = 2**23
_ALONE = threading.RLock()
# The EXIF tag of the orientation, and the transposition that puts each orientation upright.
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
# An image may be a path, the content of a file, a Pillow image or an array.
PillowLike = str | Path | bytes | bytearray | memoryview | Image.Image
ImageLike = PillowLike | np.ndarray


class Preprocessing(NamedTuple):
    """How an image is prepared for the network; the fields are keys of the section `data` of a config.

    Attributes:
      image_size: side in pixels.
      channels: 1 (grey) or 3 (RGB).
      crop: whether an image without a box is cropped to the square in its middle; otherwise it is
        stretched to a square.
      crop_margin: margin added on each side of a square, as a share of its side.
      mean: value subtracted from pixel values in [0, 1]; one number, or one for each channel.
      std: value by which the difference is divided; one number, or one for each channel.
    """

    image_size: int
    channels: int
    crop: bool
    crop_margin: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the network's input for an image: (side, side, channels)."""
        return self.image_size, self.image_size, self.channels


def load_pixels(
    image: ImageLike, preprocessing: Preprocessing, box: Sequence[float] | None = None
) -> np.ndarray:
    """Returns the network's input for an image, float32 [side, side, channels].

    Args:
      image: the image, see `open_image`.
      preprocessing: the preprocessing that the network was trained with.
      box: left, top, width and height of the face in pixels; the square around it is cut out.

    Raises:
      UserError: if this is not an image, or one that cannot be decoded.
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
    """Opens an image like `open_image`, as a context manager. Only one large image is open at a time.

    Otherwise several threads that open large images would need several times the memory.
    """
    found, name = _find(image)
    with _ALONE if math.prod(_size(found)) > LARGE else contextlib.nullcontext():
        yield _guard(lambda: _decode(found), name)


def cut_pixels(
    image: Image.Image | np.ndarray,
    preprocessing: Preprocessing,
    box: Sequence[float] | None = None,
) -> np.ndarray:
    """Does what `load_pixels` does, for an image that `open_image` returned."""
    if box is not None or preprocessing.crop:
        image = _crop(image, square_around(_size(image), box, preprocessing.crop_margin))
    pixels = _resize(_to_colours(image, preprocessing.channels), preprocessing.image_size) / 255.0
    mean, std = (np.asarray(x, np.float32) for x in (preprocessing.mean, preprocessing.std))
    return (pixels - mean) / std


def square_around(
    size: tuple[int, int], box: Sequence[float] | None, margin: float
) -> tuple[int, int, int]:
    """Returns left, top and side of the square to cut out, by the rule of `data.decode.crop_square`.

    Args:
      size: width and height of the image.
      box: left, top, width and height of the face in pixels; None or width 0 if unknown.
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
    # Rounds in float32, half to even, like tf.round.
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
    """Returns an upright Pillow image of mode L or RGB; an array of floats stays an array of floats.

    Args:
      image: the path of a file, the content of a file as bytes, a Pillow image, or an array [H, W] or
        [H, W, 1, 3 or 4] of uint8 or of floats from 0 to 1.

    Raises:
      UserError: if the image is none of these, or cannot be decoded.
    """
    with opened(image) as upright:
        return upright


def _find(image):
    """Returns an array of floats or a Pillow image (perhaps not decoded yet), and its name in errors."""
    if isinstance(image, Image.Image):
        return image, 'image'
    name = 'image'
    if isinstance(image, (str, Path)):
        name = str(image)
        image = _read(user_path(image))
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
        raise UserError(f'{path}: it is not a file')
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
    """Decodes an image of any size and calls `make_upright`; raises whatever Pillow raises."""
    return make_upright(_open(encoded))


def _open(encoded):
    return Image.open(io.BytesIO(encoded), formats=FORMATS)


def _guard(function, name):
    """Calls a function. Turns whatever Pillow raises for a damaged file into a UserError."""
    try:
        return function()
    except Image.UnidentifiedImageError as error:
        raise UserError(f'{name}: it is not an image of a known format') from error
    except Exception as error:
        raise UserError(
            f'{name}: it cannot be decoded ({error or type(error).__name__})'
        ) from error


def make_upright(image: Image.Image) -> Image.Image:
    """Returns the first frame in mode L or RGB, rotated by its EXIF orientation.

    Transparency is dropped. The upper 8 of 16 bits are kept.

    Raises:
      ValueError, OSError or another error of Pillow's: if the image cannot be decoded.
    """
    if image.mode in ('I', 'F'):
        raise ValueError(f'expected 8 or 16 bits a channel, found mode {image.mode}')
    image.load()
    orientation = _read_orientation(image)
    if image.mode.startswith('I;16'):
        # Keeps the upper 8 of 16 bits; `convert` would turn all values above 255 white.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ('1', 'LA'):
        image = image.convert('L')
    elif image.mode not in ('L', 'RGB'):
        # Pillow warns unless a palette's transparency becomes alpha first.
        image = image.convert('RGBA' if image.mode == 'P' else 'RGB').convert('RGB')
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
        # The image is upright now, so the orientation in its EXIF is wrong.
        image.info.pop('exif', None)
    return image


def _read_orientation(image):
    """Returns the orientation, 1 to 8. It is 1 for a TIFF, which Pillow has already put upright."""
    exif = Image.Exif()
    try:
        exif.load(image.info.get('exif', b''))
        return exif.get(_ORIENTATION, 1)
    except Exception:  # Broken EXIF raises anything; the image itself may be fine.
        return 1


def _check_array(image):
    """Returns a Pillow image for an array of uint8; returns floats as [H, W, 1 or 3]; checks both."""
    try:
        array = np.asarray(image)
    except Exception as error:
        raise UserError(f'expected an image, found {type(image).__name__}') from error
    is_float = np.issubdtype(array.dtype, np.floating)
    if not is_float and array.dtype != np.uint8:
        raise UserError(
            f'expected an image: a path, bytes, a Pillow image, or an array of uint8 or of floats '
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
    if not (array.min() >= 0 and array.max() <= 1):  # The comparison also fails for NaN.
        raise UserError(
            f'expected floats from 0 to 1, found {array.min():g} to {array.max():g}; an array of '
            f'values from 0 to 255 must be uint8'
        )
    return array.astype(np.float32)


def _size(image):
    """Returns width and height."""
    return image.size if isinstance(image, Image.Image) else image.shape[1::-1]


def _crop(image, square):
    left, top, side = square
    if isinstance(image, Image.Image):
        return image.crop((left, top, left + side, top + side))
    return image[top : top + side, left : left + side]


def _to_colours(image, channels):
    """Converts the image to grey or RGB."""
    if isinstance(image, Image.Image):
        mode = 'L' if channels == 1 else 'RGB'
        return image if image.mode == mode else image.convert(mode)
    if channels == 1 and image.shape[2] == 3:
        image = image @ np.array([[0.299], [0.587], [0.114]], np.float32)
    return np.broadcast_to(image, (*image.shape[:2], channels))


def _planes(image):
    """Yields each channel as a Pillow image with values from 0 to 255."""
    if isinstance(image, Image.Image):
        yield from map(image.getchannel, range(len(image.getbands())))
    else:
        yield from (Image.fromarray(255 * image[..., i]) for i in range(image.shape[2]))


def _resize(image, side):
    """Resizes an image of any kind; returns values from 0 to 255, float32 [side, side, channels]."""
    if isinstance(image, Image.Image) and image.size == (side, side):
        return np.asarray(image, np.float32).reshape(side, side, -1)
    # Resizes in floating point, because resizing in 8 bits rounds twice. The planes may be large, so
    # they are made one after the other.
    planes = (
        plane.convert('F').resize((side, side), Image.Resampling.BILINEAR)
        for plane in _planes(image)
    )
    return np.stack([np.asarray(plane) for plane in planes], axis=-1)
