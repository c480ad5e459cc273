"""Batches larger than the memory of a device: embedded in micro-batches, one loss for all rows."""

from collections.abc import Callable
from typing import Any, TypeVar, overload

import jax
import jax.numpy as jnp
import numpy as np

from mtdml_jax.loss.arguments import as_array
from mtdml_jax.loss.meshes import rearrange, spec_of

Inputs = TypeVar('Inputs')
# With has_aux, the pair (outputs, aux).
Outputs = TypeVar('Outputs')


# `embed` receives arrays of JAX even if the inputs are arrays of NumPy.
@overload
def embed_in_parts(
    embed: Callable[[jax.Array], Outputs],
    inputs: jax.Array | np.ndarray,
    part_size: int,
    *,
    has_aux: bool = False,
) -> Outputs: ...
@overload
def embed_in_parts(
    embed: Callable[[Inputs], Outputs], inputs: Inputs, part_size: int, *, has_aux: bool = False
) -> Outputs: ...
def embed_in_parts(
    embed: Callable[[Any], Any], inputs: Any, part_size: int, *, has_aux: bool = False
) -> Any:
    """Embeds a batch in micro-batches; the result can be differentiated as a whole.

    A loss that compares all rows of a batch cannot be split, but the network can: embeddings are small.
    `jax.grad` computes the forward pass of each micro-batch again instead of storing it. Memory is that
    of one micro-batch, of the inputs and of all outputs, at the cost of one more forward pass. (On a CPU
    this needs jax 0.12; older versions take more memory.) The gradient is that of the whole batch if
    `embed` treats rows independently. Statistics of a batch, which BatchNorm computes in training,
    become those of a micro-batch.

    Micro-batch i of n has the rows i, i + n, i + 2n, ..., so a batch that is sorted by class gives mixed
    micro-batches.

    Args:
      embed: inputs [N, ...] -> outputs [N, ...], arrays or trees of arrays; pure, for any N.
      inputs: an array [B, ...], or a tree of such arrays.
      part_size: number of rows N of a micro-batch; must divide B.
      has_aux: whether `embed` returns (outputs, aux), where aux is a tree of floats of any shape.

    Returns:
      Outputs [B, ...] in the order of the inputs; with has_aux also the mean of aux over micro-batches.

    Raises:
      ValueError: the size of a micro-batch does not divide B.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import mtdml_jax as mt
      >>> images, labels = jnp.array([[3.0, 4], [-3, 4], [-3, -4], [3, -4]]), jnp.array([0, 0, 1, 1])
      >>> def loss(params):
      ...     embeddings = mt.embed_in_parts(lambda part: part @ params, images, part_size=2)
      ...     return mt.multi_threshold_loss(embeddings, labels, [1.0])[0]
      >>> loss_of_all_rows, gradient = jax.value_and_grad(loss)(jnp.eye(2))
      >>> f'{loss_of_all_rows:.2f}', gradient.shape
      ('0.40', (2, 2))

    References:
      Gao et al., "Scaling deep contrastive learning batch size under memory limited setup", RepL4NLP
      2021 (GradCache). Rematerialisation does here what GradCache does by hand: Chen et al., "Training
      deep nets with sublinear memory cost", 2016.
    """
    inputs = jax.tree.map(
        lambda x: as_array(x, 'inputs') if isinstance(x, np.ndarray) else x, inputs
    )
    count = jax.tree.leaves(inputs)[0].shape[0]
    if part_size < 1 or count % part_size:
        raise ValueError(
            f'expected a part size that divides the batch of {count}, found {part_size}'
        )
    if part_size == count:
        return embed(inputs)
    num_batches = count // part_size

    def split(rows):
        return jnp.swapaxes(rows.reshape(part_size, num_batches, *rows.shape[1:]), 0, 1)

    def join(outputs):
        return jnp.swapaxes(outputs, 0, 1).reshape(count, *outputs.shape[2:])

    def split_anywhere(x):
        return rearrange(split, x, None, *spec_of(x))

    def join_anywhere(x):
        _, rows, *others = spec_of(x)
        return rearrange(join, x, rows, *others)

    micro_batches = jax.tree.map(split_anywhere, inputs)
    unrolls = jax.default_backend() == 'cpu' and isinstance(num_batches, int)
    one_by_one = _unrolled if unrolls else jax.lax.map
    found = one_by_one(jax.checkpoint(embed), micro_batches)
    outputs, aux = found if has_aux else (found, None)
    outputs = jax.tree.map(join_anywhere, outputs)
    return (outputs, jax.tree.map(lambda x: x.mean(axis=0), aux)) if has_aux else outputs


def _unrolled(embed, micro_batches):
    """Does the work of `jax.lax.map` without a loop, which slows XLA's convolutions on a CPU 15 times.

    XLA computes side by side what nothing keeps in order. So each micro-batch takes the parameters from
    the one before it. Through the gradients of the parameters, micro-batches wait for one another in the
    backward pass, too. XLA respects such barriers from jax 0.12 on.
    """
    count = jax.tree.leaves(micro_batches)[0].shape[0]
    first = jax.tree.map(lambda x: jax.lax.index_in_dim(x, 0, keepdims=False), micro_batches)
    pure, params = jax.closure_convert(embed, first)

    def next_batch(params, micro_batch):
        return jax.lax.optimization_barrier((params, pure(micro_batch, *params)))

    return jax.lax.scan(next_batch, params, micro_batches, unroll=count)[1]
