"""Puts BatchNorm back into a pretrained network: new statistics, with which outputs stay the same."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

# Number of images that are measured at a time.
PART = 64


def recalibrate(network: nn.Module, variables: Mapping[str, Any], images: Any) -> Any:
    """Returns the variables with each BatchNorm's statistics measured on these images.

    Scale and bias are rewritten with them, so that the network with running statistics computes what it
    did. The statistics of a batch of such images are then near the running ones, so training that uses
    them starts from the pretrained function. Otherwise, each layer of a network that was trained on
    images of another kind, or whose BatchNorm became a scale and shift, gets inputs of another scale.

    A BatchNorm without scale or without bias keeps its statistics. Memory is that of `PART` images.

    Args:
      network: the network; `network.apply(variables, images, train=False)` uses running statistics.
      variables: {'params', 'batch_stats'} of the network.
      images: [B, H, W, channels]; of more than `PART` images, a whole number of parts is measured.
    """
    # One program: without `jit` each operation on an array of another shape would be one.
    return jax.jit(partial(_recalibrate, network))(variables, images)


def _recalibrate(network, variables, images):
    leaves = flatten_dict(variables, keep_empty_nodes=True)
    for path, (mean, var, epsilon) in _measure(network, variables, images).items():
        places = [('params', *path, x) for x in ('scale', 'bias')]
        if not all(place in leaves for place in places):
            continue
        old_mean, old_var = (leaves['batch_stats', *path, x] for x in ('mean', 'var'))
        scale, bias = (leaves[place] for place in places)
        factor = scale * jax.lax.rsqrt(old_var + epsilon)
        leaves |= {
            ('batch_stats', *path, 'mean'): mean,
            ('batch_stats', *path, 'var'): var,
            places[0]: factor * jnp.sqrt(var + epsilon),
            places[1]: bias + (mean - old_mean) * factor,
        }
    return unflatten_dict(leaves)


def _measure(network, variables, images):
    """Returns {path of a BatchNorm: (mean and variance of its input, float32 [C], its epsilon)}."""
    epsilons = {}

    def moments_of_part(images):
        found = {}

        def measure(call, args, options, context):
            module = context.module
            if isinstance(module, nn.BatchNorm) and context.method_name == '__call__':
                x = args[0].astype(jnp.float32)
                axes = tuple(range(x.ndim - 1))
                found[module.path] = jnp.mean(x, axes), jnp.var(x, axes)
                epsilons[module.path] = module.epsilon
            return call(*args, **options)

        with nn.intercept_methods(measure):
            network.apply(variables, images, train=False)
        return found

    size = min(PART, len(images))
    parts = images[: len(images) // size * size].reshape(-1, size, *images.shape[1:])
    return {
        path: (jnp.mean(means, 0), jnp.mean(variances, 0) + jnp.var(means, 0), epsilons[path])
        for path, (means, variances) in jax.lax.map(moments_of_part, parts).items()
    }
