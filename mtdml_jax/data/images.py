"""Images as they come: decoding, square crops, resizing and normalisation, inside tf.data."""

import io

import numpy as np
import tensorflow as tf
from PIL import Image

# What TensorFlow decodes into any number of channels; everything else is left to Pillow.
_JPEG, _PNG = b'\xff\xd8\xff', b'\x89PNG'


def decode_image(encoded: tf.Tensor, channels: int) -> tf.Tensor:
    """Pixels of an encoded image, uint8 [H, W, channels]; PNG, JPEG, or what Pillow reads (TIFF, BMP).

    Args:
      encoded: content of the file, a bytes scalar.
      channels: 1 (grey) or 3 (RGB), whatever the file has.
    """
    known = (tf.strings.substr(encoded, 0, 3) == _JPEG) | (tf.strings.substr(encoded, 0, 4) == _PNG)
    pixels = tf.cond(
        known,
        lambda: tf.io.decode_image(encoded, channels=channels, expand_animations=False),
        lambda: tf.py_function(_decode_with_pillow, [encoded, channels], tf.uint8),
    )
    return tf.ensure_shape(pixels, (None, None, channels))


def _decode_with_pillow(encoded, channels):
    image = Image.open(io.BytesIO(encoded.numpy()))
    if image.mode.startswith('I;16'):
        # Of 16 bits the upper 8: `convert` would make all above 255 white.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    image = image.convert('L' if channels == 1 else 'RGB')
    return np.asarray(image).reshape(image.height, image.width, -1)


def load_pixels(encoded: tf.Tensor, box: tf.Tensor, data, side: int) -> tf.Tensor:
    """Pixels as the network is to see them but for normalisation, float32 [side, side, channels].

    Args:
      encoded: content of the file, a bytes scalar.
      box: left, top, width and height of the face in pixels, int32 [4]; width 0 where unknown.
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
    """The square around a face: centred on its box, as large as its larger side, and a margin.

    Where the box is unknown it is the largest square in the middle of the image. A square that
    reaches over an edge is moved inside, one that is larger than the image is as large as fits.

    Args:
      pixels: the image, [H, W, channels].
      box: left, top, width and height of the face in pixels, int32 [4]; width 0 where unknown.
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


def normalize(pixels: tf.Tensor, data) -> tf.Tensor:
    """(pixels - mean) / std, per channel, by the section `data` of the config."""
    return (pixels - tf.constant(data.mean, tf.float32)) / tf.constant(data.std, tf.float32)
