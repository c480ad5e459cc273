"""Cutting an embedding into unit slices, and joining unit slices into one embedding."""

from functools import partial

import jax
import jax.numpy as jnp

from mtdml_jax.loss.arguments import Arrays, as_array, as_floating, at_least_float32
from mtdml_jax.loss.meshes import rearrange, spec_of


def split_slices(embeddings: Arrays, num_slices: int) -> jax.Array:
    """Cuts embeddings into slices and normalises each slice to length 1.

    A slice of zeros stays zero and passes no gradient.

    Args:
      embeddings: array of embeddings, with shape [B, E].
      num_slices: number of slices S; must divide E.

    Returns:
      Unit slices, shape [B, S, E/S], float32 (float64 for float64 input).

    Raises:
      ValueError: the embeddings are not [B, E], or S does not divide E.

    Examples:
      >>> import mtdml_jax as mt
      >>> slices = mt.split_slices([[3, 4, 0, 2]], num_slices=2)
      >>> slices.shape
      (1, 2, 2)
      >>> [[round(x, 1) for x in unit] for unit in slices[0].tolist()]
      [[0.6, 0.8], [0.0, 1.0]]
    """
    embeddings = as_array(embeddings, 'embeddings')
    if embeddings.ndim != 2:
        raise ValueError(f'expected embeddings of shape [B, E], found {embeddings.shape}')
    check_num_slices(embeddings.shape[1], num_slices)
    return _split_slices(embeddings, num_slices=num_slices)


@partial(jax.jit, static_argnames='num_slices', inline=True)
def _split_slices(embeddings, *, num_slices):
    rows, columns = spec_of(embeddings)
    return rearrange(partial(unit_slices, num_slices=num_slices), embeddings, rows, columns, None)


def check_num_slices(size: int, num_slices: int) -> None:
    """Raises ValueError unless an embedding of that size can be cut into that many slices."""
    if num_slices < 1 or size % num_slices:
        raise ValueError(
            f'expected an embedding size divisible by the number of slices, found '
            f'{size} and {num_slices}'
        )


def unit_slices(embeddings: jax.Array, num_slices: int) -> jax.Array:
    """Computes `split_slices` without checking its arguments."""
    batch, size = embeddings.shape
    slices = at_least_float32(embeddings).reshape(batch, num_slices, size // num_slices)
    # The largest entry scales a slice first: squares of very small or large entries leave the range.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(slices), axis=-1, keepdims=True))
    is_zero = largest == 0
    slices = jnp.where(is_zero, 0.0, slices) / jnp.where(is_zero, 1.0, largest)
    norm = jnp.sqrt(jnp.where(is_zero, 1.0, jnp.sum(jnp.square(slices), axis=-1, keepdims=True)))
    return slices / norm


def merge_slices(slices: Arrays) -> jax.Array:
    """Joins unit slices side by side and scales the whole embedding to length 1.

    Args:
      slices: unit slices, shape [B, S, D].

    Returns:
      Embeddings, shape [B, S * D]; their squared distances are the means of the slices' squared
      distances.

    Raises:
      ValueError: the slices are not an array of numbers [B, S, D].

    Examples:
      Four slices of length 1 become one embedding of length 1, for retrieval:

      >>> import mtdml_jax as mt
      >>> slices = [[[1.0, 0], [0, 1], [1, 0], [0, 1]]]
      >>> mt.merge_slices(slices).tolist()
      [[0.5, 0.0, 0.0, 0.5, 0.5, 0.0, 0.0, 0.5]]
    """
    slices = as_array(slices, 'slices')
    if slices.ndim != 3:
        raise ValueError(f'expected slices of shape [B, S, D], found {slices.shape}')
    return _merge_slices(slices)


@partial(jax.jit, inline=True)
def _merge_slices(slices):
    def merge(slices):
        batch, num_slices, dim = slices.shape
        return slices.reshape(batch, num_slices * dim) / num_slices**0.5

    rows, columns, _ = spec_of(slices)
    return rearrange(merge, as_floating(slices), rows, columns)
