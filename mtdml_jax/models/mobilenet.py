"""MobileNetV3-small backbone."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mtdml_jax.host.errors import check_choice
from mtdml_jax.models import layers
from mtdml_jax.models.layers import DepthwiseConv, conv, make_norm

# Stem -> strides of the first convolution and of the first block.
STEMS = {'imagenet': (2, 2), 'small': (1, 2), 'cifar': (1, 1)}
# For each block: side of the depthwise kernel, width inside the block, width of the output, whether it
# has a squeeze-and-excite layer, whether its activation is hard-swish (else ReLU), and the stride.
BLOCKS = (
    (3, 16, 16, True, False, 2),
    (3, 72, 24, False, False, 2),
    (3, 88, 24, False, False, 1),
    (5, 96, 40, True, True, 2),
    (5, 240, 40, True, True, 1),
    (5, 240, 40, True, True, 1),
    (5, 120, 48, True, True, 1),
    (5, 144, 48, True, True, 1),
    (5, 288, 96, True, True, 2),
    (5, 576, 96, True, True, 1),
    (5, 576, 96, True, True, 1),
)


class SqueezeExcite(nn.Module):
    """Weights channels by a function of their means over the map; the shape [B, H, W, C] stays."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the layer."""
        channels = x.shape[-1]
        means = jnp.mean(x, axis=(1, 2), keepdims=True)
        options = {'padding': 0, 'use_bias': True, 'dtype': self.dtype}
        hidden = nn.relu(conv(multiple_of_8(channels // 4), (1, 1), name='fc1', **options)(means))
        return x * nn.hard_sigmoid(conv(channels, (1, 1), name='fc2', **options)(hidden))


class InvertedResidual(nn.Module):
    """1x1 convolution to the inner width, depthwise convolution, and 1x1 to the output's width.

    It maps [B, H, W, C] to [B, H/strides, W/strides, features], and adds the input if it has this shape.
    If the input already has the inner width, the first convolution is omitted, as in torchvision.
    """

    size: int
    inside: int
    features: int
    squeezes: bool
    activation: Callable[[jax.Array], jax.Array]
    strides: int
    norm: Callable[..., nn.Module]
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the block."""
        y, names = x, (f'block_{number}' for number in itertools.count())

        def layer(y, make, *args, **options):
            name = next(names)
            y = make(*args, dtype=self.dtype, name=f'{name}_0', **options)(y)
            return self.norm(name=f'{name}_1')(y)

        if self.inside != x.shape[-1]:
            y = self.activation(layer(y, conv, self.inside, (1, 1), padding=0))
        y = self.activation(layer(y, DepthwiseConv, self.size, self.strides))
        if self.squeezes:
            y = SqueezeExcite(self.dtype, name=next(names))(y)
        y = layer(y, conv, self.features, (1, 1), padding=0)
        return x + y if x.shape == y.shape else y


class MobileNetV3Small(nn.Module):
    """MobileNetV3-small without its classifier.

    Attributes:
      width_factor: multiplies all widths, which are then rounded to multiples of 8.
      stem: 'imagenet', as published, has last maps of 7x7 for 224 px. 'small' begins with stride 1, and
        has last maps of 3x3 for 48 px. In 'cifar' the first block has stride 1 too. All stems have the
        same arrays.
      dtype: type of the computation; parameters are float32.
      axis_name: mapped axis over whose devices BatchNorm takes its batch statistics.

    References:
      Howard et al., "Searching for MobileNetV3", ICCV 2019. BatchNorm's epsilon is torchvision's. Its
      running statistics are updated as in the other backbones, ten times as fast as in torchvision.
    """

    width_factor: float = 1.0
    stem: str = 'imagenet'
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images [B, H, W, any number of channels] -> features [B, F], averaged over the map."""
        norm = make_norm(train, self.dtype, self.axis_name, epsilon=1e-3)
        strides, first_strides = STEMS[self.stem]
        width = multiple_of_8(16 * self.width_factor)
        x = images.astype(self.dtype)
        x = conv(width, (3, 3), strides=strides, dtype=self.dtype, name='features_0_0')(x)
        x = nn.hard_swish(norm(name='features_0_1')(x))
        for number, (size, inside, outputs, squeezes, swishes, strides) in enumerate(BLOCKS, 1):
            inside, width = (multiple_of_8(x * self.width_factor) for x in (inside, outputs))
            x = InvertedResidual(
                size,
                inside,
                width,
                squeezes,
                nn.hard_swish if swishes else nn.relu,
                first_strides if number == 1 else strides,
                norm,
                self.dtype,
                name=f'features_{number}',
            )(x)
        x = conv(6 * width, (1, 1), padding=0, dtype=self.dtype, name='features_12_0')(x)
        x = nn.hard_swish(norm(name='features_12_1')(x))
        return jnp.mean(x.astype(jnp.float32), axis=(1, 2))


def multiple_of_8(width: float) -> int:
    """Returns the nearest multiple of 8 that is at least 8 and at least nine tenths of the width."""
    nearest = max(8, int(width + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * width else nearest


def make_mobilenet(model: Any, *, dtype: Any, axis_name: str | None) -> MobileNetV3Small:
    """See `Backbone`."""
    check_choice('model.stem', model.stem, STEMS)
    return MobileNetV3Small(model.width_factor, model.stem, dtype, axis_name)


def torch_names(model: Any) -> dict[str, tuple[str, ...]]:
    """Returns torchvision's names; see `Backbone`."""
    return layers.torch_names(MobileNetV3Small(model.width_factor), 'features.0.0.weight')
