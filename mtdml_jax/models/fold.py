"""Folds BatchNorm into the layers before it, for inference: the same values with fewer operations."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.ad_checkpoint import checkpoint_name

from mtdml_jax.models.layers import DepthwiseConv

Path = tuple[str, ...]
# Layers that are linear in their parameters, whose last axis is that of the features. Other subclasses
# need not be linear.
LINEAR = (nn.Conv, nn.Dense, DepthwiseConv)


def fold_norms(
    network: nn.Module, variables: Mapping[str, Any], images: Any
) -> tuple[Callable, Any]:
    """Folds each BatchNorm that takes the output of a linear layer, if nothing else uses the output.

    The layer's parameters are multiplied by scale / sqrt(var + epsilon), and only a sum remains of the
    BatchNorm. This holds for float32. In bfloat16 the product would be rounded differently, so layers
    with outputs of this type stay as they are, as do all other BatchNorm layers.

    Args:
      network: the network; `network.apply(variables, images)` must use the running statistics.
      variables: {'params', 'batch_stats'} as NumPy arrays.
      images: shape and type of a batch, a `jax.ShapeDtypeStruct`.

    Returns:
      A function (folded variables, images) that computes what `network.apply` computes, and the folded
      variables as NumPy arrays.
    """
    pairs = _find_pairs(network, variables, images)
    leaves = flatten_dict(variables)
    for linear, norm, epsilon in pairs:
        mean, var = (
            leaves.pop(('batch_stats', *norm, x)).astype(np.float64) for x in ('mean', 'var')
        )
        factor = leaves.pop(('params', *norm, 'scale'), 1) / np.sqrt(var + epsilon)
        bias = leaves.get(('params', *norm, 'bias'), 0) - mean * factor
        leaves[('params', *norm, 'bias')] = bias.astype(np.float32)
        for name in ('kernel', 'bias'):
            place = ('params', *linear, name)
            if place in leaves:
                leaves[place] = (leaves[place] * factor).astype(np.float32)
    folded = {norm for _, norm, _ in pairs}

    def add_bias(call, args, options, context):
        module = context.module
        if module.path in folded and context.method_name == '__call__':
            return args[0] + module.get_variable('params', 'bias')
        return call(*args, **options)

    def apply(variables, images):
        with nn.intercept_methods(add_bias):
            return network.apply(variables, images)

    return apply, unflatten_dict(leaves)


def _find_pairs(network, variables, images) -> list[tuple[Path, Path, float]]:
    """Returns (path of the linear layer, path of the BatchNorm, its epsilon) of each pair to fold."""
    calls: Counter[Path] = Counter()
    running: set[Path] = set()
    epsilons: dict[Path, float] = {}

    def mark(call, args, options, context):
        """Names the outputs of linear layers and the inputs of BatchNorm in the computation."""
        module, path = context.module, context.module.path
        # A layer that calls its base class is one call.
        if context.method_name != '__call__' or path in running:
            return call(*args, **options)
        calls[path] += 1
        if type(module) is nn.BatchNorm and module.use_running_average and module.axis == -1:
            x = call(checkpoint_name(args[0], '/'.join(path)), *args[1:], **options)
            if x.dtype == np.float32:
                epsilons[path] = module.epsilon
            return x
        if type(module) not in LINEAR:
            return call(*args, **options)
        running.add(path)
        x = checkpoint_name(call(*args, **options), '/'.join(path))
        running.remove(path)
        return x

    with nn.intercept_methods(mark):
        jaxpr = jax.make_jaxpr(network.apply)(variables, images).jaxpr
    uses = Counter(x for step in jaxpr.eqns for x in step.invars if not hasattr(x, 'val'))
    uses.update(x for x in jaxpr.outvars if not hasattr(x, 'val'))
    made: dict[Any, Path] = {}
    pairs = []
    for step in jaxpr.eqns:
        if step.primitive.name != 'name':
            continue
        path, taken = tuple(step.params['name'].split('/')), step.invars[0]
        made[step.outvars[0]] = path
        if path in epsilons and taken in made and taken.aval.dtype == np.float32:
            linear = made[taken]
            if uses[taken] == calls[path] == calls[linear] == 1 and linear not in epsilons:
                pairs.append((linear, path, epsilons[path]))
    return pairs
