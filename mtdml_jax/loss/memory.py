"""Embeddings of earlier batches, in which mining looks for positives and negatives too."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.sharding import PartitionSpec as P

from mtdml_jax.loss.arguments import (
    Arrays,
    AxisName,
    as_array,
    as_labels,
    as_mask,
    check_labels_fit,
    everywhere_if_none,
)
from mtdml_jax.loss.meshes import find_layout, spec_of


class Memory(NamedTuple):
    """The last M embeddings, the same on all devices. A new embedding replaces the oldest one.

    Attributes:
      embeddings: embeddings of earlier batches, [M, E].
      labels: classes of the embeddings, int [M].
      filled: False for rows that hold nothing yet, bool [M].
      next: the row that the next embedding replaces, int scalar.
    """

    embeddings: jax.Array
    labels: jax.Array
    filled: jax.Array
    next: jax.Array


export.register_namedtuple_serialization(Memory, serialized_name='mtdml_jax.Memory')


def empty_memory(size: int, embedding_size: int) -> Memory:
    """Makes a memory for `size` embeddings that holds none yet.

    Args:
      size: number of embeddings M.
      embedding_size: size E of an embedding.

    Examples:
      >>> import mtdml_jax as mt
      >>> memory = mt.empty_memory(3, embedding_size=2)
      >>> memory.embeddings.shape
      (3, 2)
      >>> memory.filled.tolist()
      [False, False, False]
    """
    empty = np.zeros((size, embedding_size)), np.zeros(size, np.int32), np.zeros(size, bool)
    return Memory(*(as_array(x, 'memory') for x in (*empty, np.zeros((), np.int32))))


def remember(
    memory: Memory,
    embeddings: Arrays,
    labels: Arrays,
    *,
    mask: Arrays | None = None,
    axis_name: AxisName | None = None,
) -> Memory:
    """Replaces the oldest embeddings of the memory with those of a batch; they carry no gradient.

    Call it after the loss of the batch, which can choose among the rows of the batch anyway.

    Embeddings age as the network learns. A memory helps where they drift slowly: late in training, and
    after a warm-up without a memory (Wang et al. take 1,000 steps).

    Args:
      memory: the memory before the batch, of M rows.
      embeddings: embeddings of the batch, [B, E]; all devices together may have M rows at most.
      labels: classes of the embeddings, integers or booleans, [B].
      mask: bool [B], False for rows (padding) that the memory leaves out.
      axis_name: mapped axis over whose devices the batch is spread.

    Raises:
      ValueError: shapes do not match, or the batch is larger than the memory.

    Examples:
      The fourth row replaces the first, which is the oldest:

      >>> import mtdml_jax as mt
      >>> memory = mt.empty_memory(3, embedding_size=2)
      >>> embeddings = [[3, 4], [4, 3]]
      >>> for labels in ([5, 6], [7, 8]):
      ...     loss, aux = mt.multi_threshold_loss(embeddings, labels, [0.5], memory=memory)
      ...     memory = mt.remember(memory, embeddings, labels)
      >>> memory.labels.tolist()
      [8, 6, 7]

    References:
      Wang et al., "Cross-batch memory for embedding learning", CVPR 2020.
    """
    memory = as_memory(memory)
    embeddings, labels = as_array(embeddings, 'embeddings'), as_labels(labels)
    check_labels_fit(labels, memory.labels.dtype)
    size, width = memory.embeddings.shape
    num_devices = 1 if axis_name is None else jax.lax.axis_size(axis_name)
    batch = embeddings.shape[0] if embeddings.ndim == 2 else 0
    # What is symbolic, as in `jax.export`, has no size yet.
    is_symbolic = not (isinstance(batch, int) and isinstance(size, int))
    too_many = not is_symbolic and batch * num_devices > size
    if embeddings.shape[1:] != (width,) or too_many:
        raise ValueError(
            f'expected embeddings of shape [B, {width}] with B at most {size}, the rows of the memory, '
            f'found {embeddings.shape}'
        )
    if labels.shape != embeddings.shape[:1]:
        raise ValueError(f'expected labels of shape {embeddings.shape[:1]}, found {labels.shape}')
    rows = embeddings, labels, as_mask(mask, labels.shape)
    return _remember(memory, rows, axis_name=axis_name)


def as_memory(memory: Memory) -> Memory:
    """Returns a memory of arrays; raises ValueError if it is none, or if its shapes do not match."""
    if not isinstance(memory, Memory):
        raise ValueError(f'expected a Memory, found {type(memory).__name__}')
    embeddings, next_row = as_array(memory.embeddings, 'memory'), as_labels(memory.next, 'next')
    labels, filled = as_labels(memory.labels), as_mask(memory.filled, memory.labels.shape, 'filled')
    shapes_match = embeddings.ndim == 2 and labels.shape == embeddings.shape[:1]
    if filled is None or next_row.shape or not shapes_match:
        raise ValueError(
            f'expected a memory of embeddings [M, E], labels [M] and one next row, found '
            f'{embeddings.shape}, {labels.shape} and {next_row.shape}'
        )
    return Memory(embeddings, labels, filled, next_row)


@partial(jax.jit, static_argnames='axis_name', inline=True)
def _remember(memory, rows, *, axis_name):
    # All devices write the rows of all: they hold the same memory.
    layout = find_layout(rows, memory)
    found = layout.run(partial(_write, axis_name=axis_name), (memory, rows), (P(), P()), P())
    return jax.tree.map(lambda new, old: layout.place(new, P(*spec_of(old))), found, memory)


def _write(memory, rows, *, axis_name):
    embeddings, labels, mask = rows
    mask = everywhere_if_none(mask, labels.shape[0])
    if axis_name is not None:
        everywhere = partial(_rows_of_all, axis_name=axis_name)
        embeddings, labels = everywhere(embeddings), everywhere(labels)
        mask = everywhere(mask.astype(jnp.int32)) > 0
    size = memory.labels.shape[0]
    # Rows that are left out go to a row that does not exist, and JAX drops them.
    order = jnp.cumsum(mask, dtype=memory.next.dtype) - 1
    places = jnp.where(mask, (memory.next + order) % size, size)

    def write(kept, new):
        return kept.at[places].set(jax.lax.stop_gradient(new).astype(kept.dtype), mode='drop')

    return Memory(
        write(memory.embeddings, embeddings),
        write(memory.labels, labels),
        write(memory.filled, mask),
        (memory.next + jnp.sum(mask, dtype=memory.next.dtype)) % size,
    )


def _rows_of_all(x, axis_name):
    """Gathers the rows of all devices. Of a sum, JAX knows that it is the same on all devices.

    So the memory may be replicated, or the carry of a scan. Only the newest versions of JAX know it of
    `jax.lax.all_gather`, too.
    """
    count = x.shape[0]
    of_all = jnp.zeros((count * jax.lax.axis_size(axis_name), *x.shape[1:]), x.dtype)
    start = jax.lax.axis_index(axis_name) * count
    return jax.lax.psum(jax.lax.dynamic_update_slice_in_dim(of_all, x, start, axis=0), axis_name)
