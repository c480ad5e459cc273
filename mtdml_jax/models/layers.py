"""Layers that the backbones share, and the PyTorch names of their arrays."""

import functools
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict

from mtdml_jax.models.convolution import convolve

# Last key of a variable's path -> last part of its name in PyTorch.
ENDS = {
    'kernel': 'weight',
    'scale': 'weight',
    'slope': 'weight',
    'bias': 'bias',
    'mean': 'running_mean',
    'var': 'running_var',
}


# Makes a convolution whose default padding of 1 fits a 3x3 kernel.
conv = partial(
    nn.Conv,
    use_bias=False,
    kernel_init=nn.initializers.he_normal(),
    padding=1,
    conv_general_dilated=convolve,
)


class DepthwiseConv(nn.Module):
    """Separate convolution of each channel: [B, H, W, C] -> [B, H/strides, W/strides, C].

    XLA's depthwise convolution is slow on CPUs. This layer sums over the positions of the kernel there
    instead. A training step then takes a fifth of the time, and a forward pass an eighth
    (MobileNetV3-small, 48 px, jax 0.10).

    Attributes:
      size: side of the kernel, odd; each side is padded by half of it.
      strides: stride of both axes.
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
    """Returns the function that makes the BatchNorm layers of a backbone.

    Args:
      train: whether to use the statistics of the batch and update the running statistics.
      dtype: type of the computation.
      axis_name: mapped axis over whose devices the batch is spread.
      epsilon: number that is added to variances.
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
    """Returns {PyTorch name of an array: its path in the variables} for a backbone.

    The backbone's modules must have PyTorch's names, with _ instead of a point before a number:
    'res_layer_1' for 'res_layer.1'.

    Args:
      backbone: the module.
      first: name of the first convolution's kernel, which the result lists first.
    """
    init = partial(backbone.init, train=False)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    names: dict[str, tuple[str, ...]] = {}
    for path in flatten_dict(jax.eval_shape(init, jax.random.key(0), images)):
        *modules, leaf = (re.sub(r'_(?=\d)', '.', part) for part in path[1:])
        names['.'.join([*modules, ENDS[leaf]])] = path
    return {first: names[first], **names}
