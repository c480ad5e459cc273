"""Distances of pairs of vectors, with gradients that are finite where the vectors are equal."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np


class Distance(NamedTuple):
    """A distance as a function of the squared Euclidean distance, which mining compares.

    Attributes:
      of_squares: (squares, xp) -> distances, elementwise, with `xp` either `jax.numpy` or `numpy`. It
        rises with the squares, from 0 at 0.
      is_steep_at_zero: whether its derivative at 0 is infinite.
    """

    of_squares: Callable[[Any, Any], Any]
    is_steep_at_zero: bool = False


# The names in `DISTANCES` that come with the package.
DistanceName: TypeAlias = Literal['euclidean', 'squared_euclidean']
DISTANCES = {
    'euclidean': Distance(lambda squares, xp: xp.sqrt(squares), is_steep_at_zero=True),
    'squared_euclidean': Distance(lambda squares, xp: squares),
}


def check_distance(distance: str) -> Distance:
    """Returns the distance of that name; raises ValueError unless it is one of `DISTANCES`."""
    if not isinstance(distance, str) or distance not in DISTANCES:
        raise ValueError(f'expected distance to be one of {tuple(DISTANCES)}, found {distance!r}')
    return DISTANCES[distance]


def paired_distance(
    x: jax.Array, y: jax.Array, distance: Distance = DISTANCES['euclidean']
) -> jax.Array:
    """Distance of each vector of `x` to its partner in `y`.

    The difference of the vectors keeps the digits that |x|^2 - 2xy + |y|^2 would cancel. Partners that
    are equal up to rounding (|x - y| <= 4 eps |x|) have distance 0 and subgradient 0 if the distance is
    steep at 0, as the Euclidean distance is: normalising may round equal rows apart, and the direction
    between them would be noise of length 1.

    Args:
      x: vectors, shape [..., D].
      y: vectors, shape broadcastable to x.
      distance: one of `DISTANCES`.

    Returns:
      Distances, shape [...].
    """
    of_squares, is_steep_at_zero = distance
    squared = jnp.sum(jnp.square(x - y), axis=-1)
    if not is_steep_at_zero:
        return of_squares(squared, jnp)
    rounding = 4 * jnp.finfo(squared.dtype).eps
    is_zero = squared <= rounding**2 * jnp.sum(jnp.square(x), axis=-1)
    # 1 stands in for 0 before the root: a `where` after the root would still multiply 0 by inf.
    return jnp.where(is_zero, 0.0, of_squares(jnp.where(is_zero, 1.0, squared), jnp))


def from_squares(squares: np.ndarray | float, distance: str) -> np.ndarray:
    """Turns squared Euclidean distances into distances of the same shape, in NumPy.

    Args:
      squares: squared Euclidean distances, any shape.
      distance: a name in `DISTANCES`.

    Raises:
      ValueError: the distance is unknown.
    """
    return np.asarray(check_distance(distance).of_squares(np.asarray(squares), np))
