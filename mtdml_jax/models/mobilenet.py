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
# Of each block: side of its depthwise kernel, width inside, width of its output, whether it squeezes and
# excites, whether its activation is hard-swish (else ReLU), stride.
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
    """Channels weighed by what their means over the map say: [B, H, W, C] -> the same."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies it."""
        channels = x.shape[-1]
        means = jnp.mean(x, axis=(1, 2), keepdims=True)
        options = {'padding': 0, 'use_bias': True, 'dtype': self.dtype}
        hidden = nn.relu(conv(multiple_of_8(channels // 4), (1, 1), name='fc1', **options)(means))
        return x * nn.hard_sigmoid(conv(channels, (1, 1), name='fc2', **options)(hidden))


class InvertedResidual(nn.Module):
    """1x1 convolution to a width inside, depthwise convolution, 1x1 to the width of the output.

    [B, H, W, C] -> [B, H/strides, W/strides, features], plus the input where it has that shape. Where
    the input has the width inside, the first convolution is left out, as in torchvision.
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
      stem: 'imagenet', as published: maps of 7x7 for 224 px; 'small' begins with stride 1, which leaves
        maps of 3x3 for 48 px; in 'cifar' the first block has stride 1 too. The arrays are the same.
      dtype: type of the computation; parameters are float32.
      axis_name: mapped axis over whose devices BatchNorm takes its batch statistics.

    References:
      Howard et al., "Searching for MobileNetV3", ICCV 2019. BatchNorm's epsilon is torchvision's; its
      running statistics move as in the other backbones, ten times as fast as there.
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
    """The nearest multiple of 8, at least 8, and no less than nine tenths of the width."""
    nearest = max(8, int(width + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * width else nearest


def make_mobilenet(model: Any, *, dtype: Any, axis_name: str | None) -> MobileNetV3Small:
    """See `Backbone`."""
    check_choice('model.stem', model.stem, STEMS)
    return MobileNetV3Small(model.width_factor, model.stem, dtype, axis_name)


def torch_names(model: Any) -> dict[str, tuple[str, ...]]:
    """torchvision's names: see `Backbone`."""
    return layers.torch_names(MobileNetV3Small(model.width_factor), 'features.0.0.weight')
