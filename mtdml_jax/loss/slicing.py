"""Cutting an embedding into unit slices, and putting it together again."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mtdml_jax.loss.arguments import as_array


def at_least_float32(x: jax.Array) -> jax.Array:
    """`x` in float32, or in its own type where that is wider: bfloat16 sums lose the triplets' order."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def split_slices(embeddings: ArrayLike, num_slices: int) -> jax.Array:
    """Cuts embeddings into slices and normalises each slice to length 1.

    A slice of zeros stays zero and passes no gradient.

    Args:
      embeddings: array of embeddings, with shape [B, E].
      num_slices: number of slices S; must divide E.

    Returns:
      Unit slices, shape [B, S, E/S], float32 (float64 for float64 input).

    Raises:
      ValueError: embeddings that are not [B, E], or an E that S does not divide.
    """
    embeddings = as_array(embeddings, 'embeddings')
    if embeddings.ndim != 2:
        raise ValueError(f'expected embeddings of shape [B, E], found {embeddings.shape}')
    batch, size = embeddings.shape
    if num_slices < 1 or size % num_slices:
        raise ValueError(
            f'expected an embedding size divisible by the number of slices, found '
            f'{size} and {num_slices}'
        )
    slices = at_least_float32(embeddings).reshape(batch, num_slices, size // num_slices)
    # Scaled by the largest entry first: the squares of very small or large entries leave the range.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(slices), axis=-1, keepdims=True))
    is_zero = largest == 0
    slices = jnp.where(is_zero, 0.0, slices) / jnp.where(is_zero, 1.0, largest)
    norm = jnp.sqrt(jnp.where(is_zero, 1.0, jnp.sum(jnp.square(slices), axis=-1, keepdims=True)))
    return slices / norm


def merge_slices(slices: ArrayLike) -> jax.Array:
    """Puts unit slices side by side and scales the whole to length 1.

    Args:
      slices: unit slices, shape [B, S, D].

    Returns:
      Embeddings, shape [B, S * D]; squared distances are the mean of the slices' squared distances.
    """
    slices = as_array(slices, 'slices')
    batch, num_slices, dim = slices.shape
    return slices.reshape(batch, num_slices * dim) / num_slices**0.5
