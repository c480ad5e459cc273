"""IR-50 backbone, the residual network of face recognition."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mtdml_jax.host.errors import check_choice
from mtdml_jax.models import layers
from mtdml_jax.models.layers import conv, make_norm

# Stem -> stride of the first stage.
STEMS = {'small': 2, 'cifar': 1}


class PReLU(nn.Module):
    """max(x, 0) + slope * min(x, 0), with a learned slope per channel; the shape [..., C] stays."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the layer."""
        slope = self.param('slope', nn.initializers.constant(0.25), x.shape[-1:])
        return jnp.where(x >= 0, x, slope.astype(x.dtype) * x)


class Unit(nn.Module):
    """BatchNorm, 3x3, PReLU, 3x3 with the strides, BatchNorm, and a shortcut.

    It maps [B, H, W, C] to [B, H/strides, W/strides, features]. Nothing follows the sum. If the width
    stays the same, the shortcut takes every strides-th pixel; otherwise it is a 1x1 convolution and a
    BatchNorm.
    """

    features: int
    strides: int
    norm: Callable[..., nn.Module]
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the unit."""
        make = partial(conv, self.features, dtype=self.dtype)
        y = make((3, 3), name='res_layer_1')(self.norm(name='res_layer_0')(x))
        y = PReLU(name='res_layer_2')(y)
        y = make((3, 3), strides=self.strides, name='res_layer_3')(y)
        y = self.norm(name='res_layer_4')(y)
        if x.shape[-1] == self.features:
            return y + x[:, :: self.strides, :: self.strides]
        x = make((1, 1), strides=self.strides, padding=0, name='shortcut_layer_0')(x)
        return y + self.norm(name='shortcut_layer_1')(x)


class IR(nn.Module):
    """IR-50 up to its last map, [H/16, W/16], and an average over this map.

    The published network is for 112 px. It ends with a linear layer ('output_layer' in its files, 12.8
    of 43.6 million parameters), which has separate weights for each of the 7x7 positions and computes
    the embedding that distinguishes persons. This class omits the layer: the sliced embedding replaces
    it, and faces may have any size.

    Attributes:
      width_factor: multiplies the 64, 128, 256 and 512 channels of the four stages.
      stem: 'small', as published; or 'cifar', which has stride 1 in the first stage, so that every map
        has twice the side. Both have the same arrays.
      dtype: type of the computation; parameters are float32.
      axis_name: mapped axis over whose devices BatchNorm takes its batch statistics.
      stages: number of units in each stage.

    References:
      Deng et al., "ArcFace: additive angular margin loss for deep face recognition", CVPR 2019 (the
      unit). Layout and names: https://github.com/ZhaoJ9014/face.evoLVe.
    """

    width_factor: float = 1.0
    stem: str = 'small'
    dtype: Any = jnp.float32
    axis_name: str | None = None
    stages: tuple[int, ...] = (3, 4, 14, 3)

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images [B, H, W, any number of channels] -> features [B, F], averaged over the map."""
        norm = make_norm(train, self.dtype, self.axis_name)
        width = max(1, round(64 * self.width_factor))
        x = images.astype(self.dtype)
        x = norm(name='input_layer_1')(
            conv(width, (3, 3), dtype=self.dtype, name='input_layer_0')(x)
        )
        x = PReLU(name='input_layer_2')(x)
        number = 0
        for stage, num_units in enumerate(self.stages):
            for index in range(num_units):
                first_strides = STEMS[self.stem] if stage == 0 else 2
                strides = first_strides if index == 0 else 1
                unit = Unit(width * 2**stage, strides, norm, self.dtype, name=f'body_{number}')
                x, number = unit(x), number + 1
        return jnp.mean(x.astype(jnp.float32), axis=(1, 2))


def make_ir(model: Any, *, dtype: Any, axis_name: str | None) -> IR:
    """See `Backbone`."""
    check_choice('model.stem', model.stem, STEMS)
    return IR(model.width_factor, model.stem, dtype, axis_name)


def torch_names(model: Any) -> dict[str, tuple[str, ...]]:
    """Returns face.evoLVe's names; see `Backbone`."""
    return layers.torch_names(IR(model.width_factor), 'input_layer.0.weight')
