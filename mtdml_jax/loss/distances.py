"""Distances between paired vectors, with gradients that are finite where the vectors are equal."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Distance(NamedTuple):
    """A distance as a function of the squared Euclidean distance, which is what mining compares.

    Attributes:
      of_squares: (squares, xp) -> distances, elementwise, with `xp` either `jax.numpy` or `numpy`. It
        rises with the squares, from 0 at 0.
      is_steep_at_zero: whether its derivative at 0 is infinite.
    """

    of_squares: Callable[[Any, Any], Any]
    is_steep_at_zero: bool = False


DISTANCES = {
    'euclidean': Distance(lambda squares, xp: xp.sqrt(squares), is_steep_at_zero=True),
    'squared_euclidean': Distance(lambda squares, xp: squares),
}


def check_distance(distance: str) -> None:
    """Raises ValueError unless `distance` is one of `DISTANCES`."""
    if distance not in DISTANCES:
        raise ValueError(f'expected distance to be one of {tuple(DISTANCES)}, found {distance!r}')


def paired_distance(x: jax.Array, y: jax.Array, distance: str = 'euclidean') -> jax.Array:
    """Distance of each vector of `x` to its partner in `y`.

    Computed from the difference, which keeps the digits that |x|^2 - 2xy + |y|^2 would cancel. Where
    the partners are equal up to rounding (|x - y| <= 4 eps |x|), a distance that is steep at 0, as the
    Euclidean is, is 0 and takes the subgradient 0: normalising equal rows may round them apart, and the
    direction between them would be noise of length 1.

    Args:
      x: vectors, shape [..., D].
      y: vectors, shape broadcastable to x.
      distance: a name in `DISTANCES`.

    Returns:
      Distances, shape [...].

    Raises:
      ValueError: an unknown distance.
    """
    check_distance(distance)
    squared = jnp.sum(jnp.square(x - y), axis=-1)
    of_squares, is_steep_at_zero = DISTANCES[distance]
    if not is_steep_at_zero:
        return of_squares(squared, jnp)
    rounding = 4 * jnp.finfo(squared.dtype).eps
    is_zero = squared <= rounding**2 * jnp.sum(jnp.square(x), axis=-1)
    # Of a stand-in, chosen before the root: `where` after it would still multiply 0 by inf.
    return jnp.where(is_zero, 0.0, of_squares(jnp.where(is_zero, 1.0, squared), jnp))


def from_squares(squares: np.ndarray | float, distance: str) -> np.ndarray:
    """Distances of squared Euclidean distances, outside of JAX, of the same shape.

    Args:
      squares: squared Euclidean distances, any shape.
      distance: a name in `DISTANCES`.

    Raises:
      ValueError: an unknown distance.
    """
    check_distance(distance)
    return np.asarray(DISTANCES[distance].of_squares(np.asarray(squares), np))
