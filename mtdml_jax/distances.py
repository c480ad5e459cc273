"""Distances between paired vectors, with gradients that are finite where the vectors are equal."""

import jax
import jax.numpy as jnp

DISTANCES = ('euclidean', 'squared_euclidean')


def check_distance(distance: str) -> None:
    """Raises ValueError unless `distance` is one of `DISTANCES`."""
    if distance not in DISTANCES:
        raise ValueError(f'expected distance to be one of {DISTANCES}, found {distance!r}')


def paired_distance(x: jax.Array, y: jax.Array, distance: str = 'euclidean') -> jax.Array:
    """Distance of each vector of `x` to its partner in `y`.

    Computed from the difference, which keeps the digits that |x|^2 - 2xy + |y|^2 would cancel. Where
    the partners are equal up to rounding (|x - y| <= 4 eps |x|), the Euclidean distance is 0 and takes
    the subgradient 0: normalising equal rows may round them apart, and the direction between them would
    be noise of length 1.

    Args:
      x: vectors, shape [..., D].
      y: vectors, shape broadcastable to x.
      distance: 'euclidean' or 'squared_euclidean'.

    Returns:
      Distances, shape [...].

    Raises:
      ValueError: an unknown distance.
    """
    check_distance(distance)
    squared = jnp.sum(jnp.square(x - y), axis=-1)
    if distance == 'squared_euclidean':
        return squared
    rounding = 4 * jnp.finfo(squared.dtype).eps
    is_zero = squared <= rounding**2 * jnp.sum(jnp.square(x), axis=-1)
    # The root of a stand-in, chosen before the root: `where` after it would still multiply 0 by inf.
    return jnp.where(is_zero, 0.0, jnp.sqrt(jnp.where(is_zero, 1.0, squared)))
