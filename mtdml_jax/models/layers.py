"""Layers that the backbones share, and the names of their arrays in PyTorch."""

import functools
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict

# Leaf of the variables -> the end of its name in PyTorch.
ENDS = {
    'kernel': 'weight',
    'scale': 'weight',
    'slope': 'weight',
    'bias': 'bias',
    'mean': 'running_mean',
    'var': 'running_var',
}


class Conv(nn.Conv):
    """`flax.linen.Conv` whose input is computed once: XLA for CPUs would repeat what precedes it.

    For the gradient of the kernel it lays the input out anew, and fuses the BatchNorm, ReLU and
    shortcut that made it into that, where they run badly.
    """

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Applies the convolution."""
        if jax.default_backend() == 'cpu':
            inputs = jax.lax.optimization_barrier(inputs)
        return super().__call__(inputs)


# 3x3 with `padding=1` unless told otherwise.
conv = partial(Conv, use_bias=False, kernel_init=nn.initializers.he_normal(), padding=1)


class DepthwiseConv(nn.Module):
    """Convolution of each channel by itself: [B, H, W, C] -> [B, H/strides, W/strides, C].

    XLA for CPUs has no good one: with a sum over the places of the kernel instead, a training step takes
    a fifth of the time there (MobileNetV3-small, 48 px, jax 0.10), and a look an eighth.

    Attributes:
      size: side of the kernel, odd; half of it pads each side.
      strides: of both axes.
      dtype: type of the computation.
    """

    size: int
    strides: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the convolution."""
        channels, half = x.shape[-1], self.size // 2
        shape = (self.size, self.size, 1, channels)
        kernel = self.param('kernel', nn.initializers.he_normal(), shape)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        if jax.default_backend() != 'cpu':
            return jax.lax.conv_general_dilated(
                x,
                kernel,
                (self.strides, self.strides),
                [(half, half)] * 2,
                dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
                feature_group_count=channels,
            )
        height, width = (-(-side // self.strides) for side in x.shape[1:3])
        padded = jnp.pad(
            jax.lax.optimization_barrier(x), ((0, 0), (half, half), (half, half), (0, 0))
        )
        rows = [
            slice(i, i + (height - 1) * self.strides + 1, self.strides) for i in range(self.size)
        ]
        columns = [
            slice(j, j + (width - 1) * self.strides + 1, self.strides) for j in range(self.size)
        ]
        products = (
            padded[:, row, column] * kernel[i, j, 0]
            for i, row in enumerate(rows)
            for j, column in enumerate(columns)
        )
        return functools.reduce(jnp.add, products)


def make_norm(
    train: bool, dtype: Any, axis_name: str | None, epsilon: float = 1e-5
) -> Callable[..., nn.BatchNorm]:
    """What makes the BatchNorm layers of a backbone.

    Args:
      train: whether statistics are those of the batch, and change the running ones.
      dtype: type of the computation.
      axis_name: mapped axis over whose devices the batch is spread.
      epsilon: added to variances.
    """
    return partial(
        nn.BatchNorm,
        use_running_average=not train,
        momentum=0.9,
        epsilon=epsilon,
        dtype=dtype,
        axis_name=axis_name,
    )


@functools.cache
def torch_names(backbone: nn.Module, first: str) -> dict[str, tuple[str, ...]]:
    """PyTorch's names of the arrays of a backbone -> their paths in its variables.

    Its modules bear PyTorch's names, in which _ before a number stands for a point: 'res_layer_1' for
    'res_layer.1'.

    Args:
      backbone: the module.
      first: name of the first convolution's kernel, which comes first.
    """
    init = partial(backbone.init, train=False)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    names: dict[str, tuple[str, ...]] = {}
    for path in flatten_dict(jax.eval_shape(init, jax.random.key(0), images)):
        *modules, leaf = (re.sub(r'_(?=\d)', '.', part) for part in path[1:])
        names['.'.join([*modules, ENDS[leaf]])] = path
    return {first: names[first], **names}
