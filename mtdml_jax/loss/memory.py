"""Embeddings of earlier batches, in which mining looks for positives and negatives too."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mtdml_jax.loss.arguments import as_array, as_labels
from mtdml_jax.loss.mining import as_mask


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


def empty_memory(size: int, embedding_size: int) -> Memory:
    """Makes a memory for `size` embeddings that holds none yet.

    Args:
      size: number of embeddings M.
      embedding_size: size E of an embedding.
    """
    return Memory(
        jnp.zeros((size, embedding_size)),
        jnp.zeros(size, jnp.int32),
        jnp.zeros(size, bool),
        jnp.zeros((), jnp.int32),
    )


def remember(
    memory: Memory,
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    axis_name: str | None = None,
) -> Memory:
    """Replaces the oldest embeddings of the memory with those of a batch; they carry no gradient.

    Call it after the loss of the batch, which can choose among the rows of the batch anyway:

        loss, aux = multi_threshold_loss(embeddings, labels, thresholds, memory=memory)
        memory = remember(memory, embeddings, labels)

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

    References:
      Wang et al., "Cross-batch memory for embedding learning", CVPR 2020.
    """
    embeddings, labels = as_array(embeddings, 'embeddings'), as_labels(labels)
    rows = embeddings, labels, as_mask(mask, labels.shape)
    if axis_name is not None:
        rows = jax.lax.all_gather(rows, axis_name, tiled=True)
    embeddings, labels, mask = rows
    size, width = memory.embeddings.shape
    if embeddings.ndim != 2 or embeddings.shape[1] != width or len(embeddings) > size:
        raise ValueError(
            f'expected embeddings of shape [B, {width}] with B at most {size}, the rows of the memory, '
            f'found {embeddings.shape}'
        )
    # Rows that are left out go to a row that does not exist, and JAX drops them.
    places = jnp.where(mask, (memory.next + jnp.cumsum(mask) - 1) % size, size)

    def write(kept, new):
        return kept.at[places].set(jax.lax.stop_gradient(new).astype(kept.dtype), mode='drop')

    return Memory(
        write(memory.embeddings, embeddings),
        write(memory.labels, labels),
        write(memory.filled, mask),
        (memory.next + jnp.sum(mask, dtype=memory.next.dtype)) % size,
    )
