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

from mtdml_jax.models.convolution import convolve, convolve_depthwise

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


_max_pool_by_xla = partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2))


@jax.custom_jvp
def max_pool(x: jax.Array) -> jax.Array:
    """Takes the maximum of 3x3 places with stride 2, without padding.

    XLA for CPUs is slow at the gradient of a max-pool. For a gradient, the maximum is taken there of
    three rows, and then of three columns. Where two places hold the maximum, each gets a part of it.

    Args:
      x: [B, H, W, C], with H and W at least 3.

    Returns:
      [B, (H - 1) // 2, (W - 1) // 2, C].
    """
    # jax2onnx knows this form, but no choice by the device. It also needs the names of both arguments.
    return _max_pool_by_xla(x)


@max_pool.defjvp
def _differentiate_max_pool(primals, tangents):
    def on_cpu(x):
        for axis in (1, 2):
            size = 2 * ((x.shape[axis] - 1) // 2)
            places = (jax.lax.slice_in_dim(x, i, i + size - 1, 2, axis) for i in range(3))
            x = functools.reduce(jnp.maximum, places)
        return x

    def pool(x):
        return jax.lax.platform_dependent(x, cpu=on_cpu, default=_max_pool_by_xla)

    return jax.jvp(pool, primals, tangents)


class DepthwiseConv(nn.Module):
    """Separate convolution of each channel: [B, H, W, C] -> [B, H/strides, W/strides, C].

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
        shape = (self.size, self.size, 1, x.shape[-1])
        kernel = self.param('kernel', nn.initializers.he_normal(), shape)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        return convolve_depthwise(x, kernel, self.strides)


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
