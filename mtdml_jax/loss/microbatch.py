"""Batches larger than a device's memory: embedded in parts, judged as one."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def embed_in_parts(
    embed: Callable[[Any], Any], inputs: Any, part_size: int, *, has_aux: bool = False
) -> Any:
    """What `embed` makes of a batch, computed part by part, to be differentiated as a whole.

    A loss that compares all rows of a batch cannot be split, but the network can: embeddings are small.
    Under `jax.grad` each part is computed again, when its turn comes, instead of being remembered:
    memory is that of one part, of the inputs and of all outputs, for one more pass forward. (On a CPU
    that takes jax 0.12; before, it is more.) The gradient is that of the whole batch, if `embed` treats
    its rows one by one; statistics of a batch, as BatchNorm takes them in training, become those of a
    part.

        def loss(params):
            embed = lambda images: network.apply(params, images)
            embeddings = embed_in_parts(embed, images, 128)
            return multi_threshold_loss(embeddings, labels, thresholds)[0]

    Part i of n has the rows i, i + n, i + 2n, ..., so that batches sorted by class make mixed parts.

    Args:
      embed: inputs [N, ...] -> outputs [N, ...], arrays or trees of them; pure, for any N.
      inputs: an array [B, ...], or a tree of such arrays.
      part_size: rows N of a part; divides B.
      has_aux: whether `embed` returns (outputs, aux), aux a tree of floats of any shape.

    Returns:
      Outputs [B, ...] in the order of the inputs; with has_aux also the mean of aux over the parts.

    Raises:
      ValueError: a part size that does not divide B.

    References:
      Gao et al., "Scaling deep contrastive learning batch size under memory limited setup", RepL4NLP
      2021 (GradCache). Here rematerialisation does what is done there by hand: Chen et al., "Training
      deep nets with sublinear memory cost", 2016.
    """
    count = jax.tree.leaves(inputs)[0].shape[0]
    if part_size < 1 or count % part_size:
        raise ValueError(
            f'expected a part size that divides the batch of {count}, found {part_size}'
        )
    if part_size == count:
        return embed(inputs)
    num_parts = count // part_size

    def split(rows):
        return jnp.swapaxes(rows.reshape(part_size, num_parts, *rows.shape[1:]), 0, 1)

    def join(parts):
        return jnp.swapaxes(parts, 0, 1).reshape(count, *parts.shape[2:])

    parts = jax.tree.map(split, inputs)
    one_by_one = _unrolled if jax.default_backend() == 'cpu' else jax.lax.map
    found = one_by_one(jax.checkpoint(embed), parts)
    outputs, aux = found if has_aux else (found, None)
    outputs = jax.tree.map(join, outputs)
    return (outputs, jax.tree.map(lambda x: x.mean(axis=0), aux)) if has_aux else outputs


def _unrolled(embed, parts):
    """`jax.lax.map` without a loop, in which XLA's convolutions on a CPU take fifteen times as long.

    What nothing keeps in order XLA computes side by side. So each part takes the parameters from the one
    before it, and through their gradients the parts wait for one another on the way back, too. XLA heeds
    such barriers from jax 0.12 on.
    """
    count = jax.tree.leaves(parts)[0].shape[0]
    pure, params = jax.closure_convert(embed, jax.tree.map(lambda x: x[0], parts))

    def next_part(params, part):
        return jax.lax.optimization_barrier((params, pure(part, *params)))

    return jax.lax.scan(next_part, params, parts, unroll=count)[1]
