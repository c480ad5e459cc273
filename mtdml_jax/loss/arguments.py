"""Turns arguments of the functional API into arrays: anything that `jax.numpy.asarray` takes.

Public functions call these once for each argument; private functions compute without checks.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def as_array(x: Any, name: str) -> jax.Array:
    """Returns `x` as an array.

    Raises:
      ValueError: `x` is not an array of numbers.
    """
    try:
        return jnp.asarray(x)
    except (OverflowError, TypeError, ValueError) as error:
        raise ValueError(f'expected {name} as an array of numbers, found {_describe(x)}') from error


def as_labels(labels: Any, name: str = 'labels') -> jax.Array:
    """Returns `labels` as an array of integers or booleans.

    Raises:
      ValueError: the labels have another type (floating-point numbers above 2^24 would merge classes),
        or they are concrete integers that JAX would wrap.
    """
    if isinstance(labels, np.ndarray | list | tuple):
        _check_range(labels, name)
    found = as_array(labels, name)
    if not (jnp.issubdtype(found.dtype, jnp.integer) or found.dtype == bool):
        raise ValueError(f'expected {name} of an integer or boolean type, found {found.dtype}')
    return found


def _check_range(labels, name):
    try:
        host = np.asarray(labels)
    except (TypeError, ValueError):  # `as_array` reports traced numbers and ragged lists.
        return
    if not np.issubdtype(host.dtype, np.integer) or not host.size:
        return
    held = np.iinfo(jax.dtypes.canonicalize_dtype(host.dtype))
    if host.min() < held.min or host.max() > held.max:
        raise ValueError(
            f'expected {name} from {held.min} to {held.max} ({held.dtype}), found {host.min()} to '
            f'{host.max()}; renumber them: numpy.unique({name}, return_inverse=True)[1]'
        )


def _describe(x):
    try:
        return f'an array of {np.asarray(x).dtype}'
    except (TypeError, ValueError):
        return f'{type(x).__name__} that is none'
