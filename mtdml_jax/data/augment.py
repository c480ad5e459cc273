"""Augments a batch of images at random. The result depends only on the images, the seed and the step."""

import math

import tensorflow as tf
from ml_collections import ConfigDict

NUM_DRAWS = 10


def draw_uniforms(batch_size: int, *, seed: int, step: tf.Tensor) -> tf.Tensor:
    """Draws the random numbers of a batch: uniform in [0, 1), float32 [B, NUM_DRAWS].

    B is the size of the global batch. A host that loads only some rows of the batch uses the random
    numbers of those rows.
    """
    seeds = tf.stack([tf.constant(seed, tf.int64), tf.cast(step, tf.int64)])
    return tf.random.stateless_uniform([batch_size, NUM_DRAWS], seeds)


def augment(images: tf.Tensor, uniforms: tf.Tensor, strength: ConfigDict) -> tf.Tensor:
    """Flips, warps, relights and partly erases images, each with its own random numbers.

    Args:
      images: grey values or colours in [0, 1], float32 [B, H, W, C].
      uniforms: one row of random numbers for each image, [B, NUM_DRAWS].
      strength: the section `augment` of the config; a strength of 0 skips that step.

    Returns:
      The augmented images, of the same shape and range.
    """
    draws = tf.unstack(uniforms, axis=1)
    images = _warp(images, draws[:5], strength)
    images = _relight(images, draws[5], draws[6], strength)
    # The last three draws place the erased rectangle; the first also decides whether there is one.
    return _erase(images, draws[7:], strength)


def _signed(uniform):
    return 2.0 * uniform - 1.0


def _warp(images, draws, strength):
    """Flips, rotates, scales and shifts in one bilinear resampling. Border pixels fill the outside."""
    if not any((strength.flip, strength.rotation, strength.scale, strength.shift)):
        return images
    flip, rotation, scale, shift_x, shift_y = draws
    height, width = images.shape[1:3]
    angle = _signed(rotation) * math.radians(strength.rotation)
    # A zoom by z and a zoom by 1/z are equally likely.
    zoom = tf.exp(_signed(scale) * math.log1p(strength.scale))
    mirror = tf.where(flip < strength.flip, -1.0, 1.0)
    cos, sin = tf.cos(angle) / zoom, tf.sin(angle) / zoom
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    to_x = centre_x + _signed(shift_x) * strength.shift * width
    to_y = centre_y + _signed(shift_y) * strength.shift * height
    # Maps each output pixel to the input pixel that it reads; the center reads (to_x, to_y).
    a, b, d, e = cos * mirror, -sin, sin * mirror, cos
    transforms = tf.stack(
        [
            *(a, b, to_x - a * centre_x - b * centre_y),
            *(d, e, to_y - d * centre_x - e * centre_y),
            *(tf.zeros_like(a), tf.zeros_like(a)),
        ],
        axis=1,
    )
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=transforms,
        output_shape=[height, width],
        fill_value=0.0,
        interpolation='BILINEAR',
        fill_mode='NEAREST',
    )


def _relight(images, brightness, contrast, strength):
    """Changes the contrast around each image's mean, then the brightness, both by uniform amounts."""
    if not (strength.brightness or strength.contrast):
        return images
    gain = (1.0 + _signed(contrast) * strength.contrast)[:, None, None, None]
    offset = (_signed(brightness) * strength.brightness)[:, None, None, None]
    mean = tf.reduce_mean(images, axis=(1, 2, 3), keepdims=True)
    return tf.clip_by_value(mean + gain * (images - mean) + offset, 0.0, 1.0)


def _erase(images, draws, strength):
    """Fills a rectangle of up to the share `erasing_area` of the image with the image's mean.

    It does so with probability `erasing` for each image.

    Zhong et al., "Random erasing data augmentation", AAAI 2020.
    """
    if not strength.erasing:
        return images
    choice, centre_x, centre_y = draws
    # A choice below the probability is itself uniform, so it also sets the area.
    area = strength.erasing_area * choice / strength.erasing
    half = tf.where(choice < strength.erasing, tf.sqrt(area) / 2, 0.0)
    inside = _near(centre_y, half, images.shape[1])[:, :, None]
    inside &= _near(centre_x, half, images.shape[2])[:, None, :]
    mean = tf.reduce_mean(images, axis=(1, 2), keepdims=True)
    return tf.where(inside[..., None], mean, images)


def _near(centre, half, size):
    """Whether each of `size` pixels is within `half` of the center, in shares of the side, [B, size]."""
    pixels = (tf.range(size, dtype=tf.float32) + 0.5) / size
    return tf.abs(pixels - centre[:, None]) < half[:, None]
