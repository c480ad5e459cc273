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
