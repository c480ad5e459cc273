"""Decodes, crops, resizes and normalizes images inside tf.data, with TensorFlow; for training.

mtdml_jax/images/pixels.py does the same without TensorFlow, for inference. tests/images/test_pixels.py
checks that both give the same result.
"""

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from mtdml_jax.images.pixels import open_upright

# The keys of the section `data` of the config that `load_pixels` reads.
PIXEL_KEYS = ('channels', 'crop', 'crop_margin')
_JPEG, _PNG = b'\xff\xd8\xff', b'\x89PNG'


def decode_image(encoded: tf.Tensor, channels: int) -> tf.Tensor:
    """Returns the pixels of an encoded image, uint8 [H, W, channels], rotated by its EXIF orientation.

    The pixels equal Pillow's, whether TensorFlow or Pillow decodes them. Transparency is dropped. The
    upper 8 of 16 bits are kept, and the first of several frames. Whether an image can be decoded does
    not depend on `channels`.

    Args:
      encoded: content of the file, a bytes scalar.
      channels: 1 (grey: 0.299 R + 0.587 G + 0.114 B for a color image) or 3 (RGB).
    """
    pixels = tf.cond(
        _is_plain(encoded),
        # decode_jpeg decodes PNG too. Pillow's libjpeg uses the accurate method by default.
        lambda: tf.io.decode_jpeg(encoded, dct_method='INTEGER_ACCURATE'),
        lambda: tf.py_function(_decode_with_pillow, [encoded], tf.uint8),
    )
    is_coloured = tf.shape(pixels)[2] >= 3
    if channels == 1:
        pixels = tf.cond(is_coloured, lambda: _luminance(pixels), lambda: pixels[:, :, :1])
    else:
        grey = [pixels[:, :, :1]] * 3
        pixels = tf.cond(is_coloured, lambda: pixels[:, :, :3], lambda: tf.concat(grey, axis=2))
    return tf.ensure_shape(pixels, (None, None, channels))


def _is_plain(encoded):
    """Whether TensorFlow can decode the image: a JPEG or PNG without EXIF, which could rotate it."""

    def lacks(word):
        # This is TensorFlow's fastest search: if deleting the word shortens nothing, it is absent.
        rest = tf.strings.regex_replace(encoded, word, '', replace_global=False)
        return tf.strings.length(rest) == tf.strings.length(encoded)

    return tf.cond(
        tf.strings.substr(encoded, 0, 3) == _JPEG,
        lambda: lacks('Exif'),
        lambda: tf.cond(
            tf.strings.substr(encoded, 0, 4) == _PNG, lambda: lacks('eXIf'), lambda: False
        ),
    )


def _luminance(pixels):
    """Returns the same grey values as Pillow, to the bit: weights in units of 1/2^16, rounded."""
    red, green, blue = (tf.cast(pixels[:, :, i : i + 1], tf.int32) for i in range(3))
    weighted = 19595 * red + 38470 * green + 7471 * blue + 2**15
    return tf.cast(tf.bitwise.right_shift(weighted, 16), tf.uint8)


def _decode_with_pillow(encoded):
    """Returns the pixels as uint8 [H, W, 1 or 3]."""
    image = open_upright(encoded.numpy())
    return np.asarray(image).reshape(image.height, image.width, -1)


def load_pixels(encoded: tf.Tensor, box: tf.Tensor, data: ConfigDict, side: int) -> tf.Tensor:
    """Returns the input of the network before normalization, float32 [side, side, channels].

    Args:
      encoded: content of the file, a bytes scalar.
      box: left, top, width and height of the face in pixels, int32 [4]; width 0 if it is unknown.
      data: the section `data` of the config.
      side: side in pixels to which the image is resized.
    """
    pixels = decode_image(encoded, data.channels)
    if data.crop:
        pixels = crop_square(pixels, box, data.crop_margin)
    pixels = tf.cast(pixels, tf.float32) / 255.0
    size = (side, side)
    pixels = tf.cond(
        tf.reduce_all(tf.shape(pixels)[:2] == size),
        lambda: pixels,
        lambda: tf.image.resize(pixels, size, antialias=True),
    )
    return tf.ensure_shape(pixels, (*size, data.channels))


def crop_square(pixels: tf.Tensor, box: tf.Tensor, margin: float) -> tf.Tensor:
    """Cuts out the square around a face: it has the box's center and longer side, plus a margin.

    If the box is unknown, the square is the largest one in the middle of the image. A square that
    crosses an edge of the image is moved inside. A square that is larger than the image is made as large
    as fits.

    Args:
      pixels: the image, [H, W, channels].
      box: left, top, width and height of the face in pixels, int32 [4]; width 0 if it is unknown.
      margin: added on each side, as a share of the box's side; below 0 it cuts into the box.
    """
    shape = tf.shape(pixels)[:2]
    shortest = tf.reduce_min(shape)
    known = box[2] > 0
    side = tf.where(known, tf.maximum(box[2], box[3]), shortest)
    side = tf.cast(tf.round(tf.cast(side, tf.float32) * (1.0 + 2.0 * margin)), tf.int32)
    side = tf.clip_by_value(side, 1, shortest)
    twice_centre = tf.where(known, tf.stack([2 * box[1] + box[3], 2 * box[0] + box[2]]), shape)
    start = tf.clip_by_value((twice_centre - side) // 2, 0, shape - side)
    return pixels[start[0] : start[0] + side, start[1] : start[1] + side]


def normalize(pixels: tf.Tensor, data: ConfigDict) -> tf.Tensor:
    """Returns (pixels - mean) / std per channel, with mean and std from the section `data`."""
    return (pixels - tf.constant(data.mean, tf.float32)) / tf.constant(data.std, tf.float32)
