"""dlib's network for face recognition, of 29 layers, as a backbone."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mtdml_jax.host.errors import UserError
from mtdml_jax.models.layers import conv, make_norm, max_pool

# Channels of the first convolution.
STEM_FEATURES = 32
# Channels of each block, and whether it halves the side of the map.
BLOCKS = (
    *[(32, False)] * 3,
    *[(64, True), (64, False), (64, False), (64, False)],
    *[(128, True), (128, False), (128, False)],
    *[(256, True), (256, False), (256, False)],
    (256, True),
)
# Smallest side of images in pixels of which the max-pool leaves a map.
MIN_SIDE = 11
# Means of red, green and blue that are subtracted from pixels in [0, 255] before they are divided by
# SCALE. Their mean is subtracted from images of one channel.
MEANS, SCALE = (122.782, 117.001, 104.298), 256.0
GREY_MEAN = sum(MEANS) / 3


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut without weights: [B, H, W, C] -> [B, H', W', features].

    If the block halves the map, its first convolution has stride 2 and no padding, and the shortcut is a
    2x2 mean pool without padding. H' is the larger side of the two; the smaller map is padded with zeros
    below and at the right. Missing channels of the shortcut are zeros.

    Attributes:
      features: number of channels.
      halves: whether the block halves the side of the map.
      norm: makes a BatchNorm.
      dtype: type of the computation.
    """

    features: int
    halves: bool
    norm: Callable[..., nn.Module]
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the block."""
        make = partial(conv, self.features, (3, 3), dtype=self.dtype)
        if self.halves:
            # dlib has nothing left of a map of fewer than 3 pixels. Here it is padded.
            y = make(strides=2, padding=[(int(side < 3),) * 2 for side in x.shape[1:3]])(x)
        else:
            y = make()(x)
        y = make()(nn.relu(self.norm()(y)))
        y = self.norm()(y)
        if self.halves:
            pool = tuple(min(2, side) for side in x.shape[1:3])
            x = nn.avg_pool(x, window_shape=pool, strides=pool)
        shape = tuple(map(max, x.shape, y.shape))
        return nn.relu(_padded(y, shape) + _padded(x, shape))


def _padded(x, shape):
    return jnp.pad(x, [(0, large - side) for side, large in zip(x.shape, shape, strict=True)])


class DlibResNet(nn.Module):
    """The network of dlib_face_recognition_resnet_model_v1.dat, without its last, linear layer.

    dlib's network has a bias in each convolution, and after it a scale and shift of each channel, which
    was a BatchNorm in training. Here they are a BatchNorm again: its running mean is the negative bias,
    and its running variance is 1 - epsilon.

    Attributes:
      width_factor: multiplies the 32, 64, 128 and 256 channels.
      dtype: type of the computation; parameters are float32.
      axis_name: mapped axis over whose devices BatchNorm takes its batch statistics.

    References:
      King, "High quality face recognition with deep metric learning", 2017
      (http://blog.dlib.net/2017/02/high-quality-face-recognition-with-deep.html). The layers are those
      of dlib's examples/dnn_face_recognition_ex.cpp.
    """

    width_factor: float = 1.0
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images [B, H, W, any number of channels] -> features [B, F], averaged over the map."""
        if min(images.shape[1:3]) < MIN_SIDE:
            raise UserError(
                f'config.data.image_size: dlib_resnet needs at least {MIN_SIDE} pixels a side, found '
                f'{images.shape[1]} x {images.shape[2]}'
            )
        norm = make_norm(train, self.dtype, self.axis_name)
        width = _width(STEM_FEATURES, self.width_factor)
        x = conv(width, (7, 7), strides=2, padding=0, dtype=self.dtype)(images.astype(self.dtype))
        x = nn.relu(max_pool(norm()(x)))  # dlib has the ReLU first, with the same result.
        for features, halves in BLOCKS:
            x = Block(_width(features, self.width_factor), halves, norm, self.dtype)(x)
        return jnp.mean(x.astype(jnp.float32), axis=(1, 2))


def _width(features, factor):
    return max(1, round(features * factor))


def make_dlib_resnet(model: Any, *, dtype: Any, axis_name: str | None) -> DlibResNet:
    """See `Backbone`."""
    return DlibResNet(model.width_factor, dtype, axis_name)


def torch_names(model: Any) -> dict[str, tuple[str, ...]]:
    """Returns the names that `read_dlib` gives to the arrays; see `Backbone`."""
    modules = [(), *((f'Block_{i}',) for i in range(len(BLOCKS)) for _ in range(2))]
    names: dict[str, tuple[str, ...]] = {}
    for number, module in enumerate(modules):
        i = (number - 1) % 2 if module else 0
        norm = (*module, f'BatchNorm_{i}')
        names |= {
            f'conv{number}.weight': ('params', *module, f'Conv_{i}', 'kernel'),
            f'bn{number}.weight': ('params', *norm, 'scale'),
            f'bn{number}.bias': ('params', *norm, 'bias'),
            f'bn{number}.running_mean': ('batch_stats', *norm, 'mean'),
            f'bn{number}.running_var': ('batch_stats', *norm, 'var'),
        }
    return names


def advise(found: tuple[int, ...], expected: tuple[int, ...]) -> list[str]:
    """See `Backbone`."""
    same = found[0] == expected[0]
    return [] if same else [f'config.model.width_factor={found[0] / STEM_FEATURES}']


def to_grey(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the arrays of the network for images of one channel.

    A grey image, less `GREY_MEAN`, then has the features of the same image in three channels, less
    `MEANS`: the first convolution has no padding, so the different means are one bias.

    Args:
      arrays: arrays for three channels, by the names of `torch_names`.
    """
    kernel = arrays['conv0.weight'].astype(np.float64)
    bias = np.einsum('ochw,c->o', kernel, (GREY_MEAN - np.array(MEANS)) / SCALE)
    return {
        **arrays,
        'conv0.weight': kernel.sum(axis=1, keepdims=True).astype(np.float32),
        'bn0.running_mean': (arrays['bn0.running_mean'] - bias).astype(np.float32),
    }
