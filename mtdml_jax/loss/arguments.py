"""Turns arguments of the functional API into arrays: anything that `jax.numpy.asarray` takes.

Public functions call these once for each argument; private functions compute without checks.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

# An array, a number, or lists of numbers up to [[[...]]].
Arrays: TypeAlias = (
    ArrayLike
    | Sequence[ArrayLike]
    | Sequence[Sequence[ArrayLike]]
    | Sequence[Sequence[Sequence[ArrayLike]]]
)
# The names of mapped axes, as collectives of `jax.lax` take them.
AxisName: TypeAlias = str | tuple[str, ...]


def as_array(x: Any, name: str) -> jax.Array:
    """Returns `x` as an array.

    Raises:
      ValueError: `x` is not an array of real numbers.
    """
    try:
        # What a caller passes is moved to the device on purpose.
        with jax.transfer_guard('allow'):
            found = jnp.asarray(x)
    except (OverflowError, TypeError, ValueError) as error:
        raise ValueError(f'expected {name} as an array of numbers, found {_describe(x)}') from error
    if not (jnp.issubdtype(found.dtype, jnp.number) or found.dtype == bool):
        raise ValueError(f'expected {name} as an array of numbers, found {found.dtype}')
    if jnp.issubdtype(found.dtype, jnp.complexfloating):
        raise ValueError(f'expected {name} as an array of real numbers, found {found.dtype}')
    return found


def as_number(x: Any, name: str) -> jax.Array:
    """Returns `x` as an array of shape []; raises ValueError unless it is one real number."""
    found = as_array(x, name)
    if found.shape:
        raise ValueError(f'expected {name} as one number, found the shape {found.shape}')
    return found


def known(x: Any) -> np.ndarray | None:
    """Returns the values of an argument; None if they are traced, or on devices of other processes."""
    if isinstance(x, jax.core.Tracer) or (isinstance(x, jax.Array) and not x.is_fully_addressable):
        return None
    try:
        return np.asarray(jax.device_get(x))
    except (TypeError, ValueError):  # A ragged list, which `as_array` reports, or one with tracers.
        return None


def as_labels(labels: Any, name: str = 'labels') -> jax.Array:
    """Returns `labels` as an array of integers or booleans.

    Raises:
      ValueError: the labels have another type (floating-point numbers above 2^24 would merge classes),
        or they are concrete integers that JAX would wrap.
    """
    if isinstance(labels, np.ndarray | list | tuple):
        values = known(labels)
        if values is not None and np.issubdtype(values.dtype, np.integer):
            check_labels_fit(values, jax.dtypes.canonicalize_dtype(values.dtype), name)
    found = as_array(labels, name)
    if not (jnp.issubdtype(found.dtype, jnp.integer) or found.dtype == bool):
        raise ValueError(f'expected {name} of an integer or boolean type, found {found.dtype}')
    return found


def as_mask(mask: Any, shape: tuple[int, ...], name: str = 'mask') -> jax.Array | None:
    """Returns `mask` as booleans, or None for None; raises ValueError for another shape."""
    if mask is None:
        return None
    mask = as_array(mask, name)
    if mask.shape != shape:
        raise ValueError(f'expected {name} of shape {shape}, found {mask.shape}')
    return mask.astype(bool)


def everywhere_if_none(mask: jax.Array | None, count: int) -> jax.Array:
    """Returns a mask of `count` rows that is True everywhere for None."""
    return jnp.ones(count, bool) if mask is None else mask


def check_within(x: Any, low: float, high: float, name: str, mask: Any = None) -> None:
    """Raises ValueError if numbers whose values are known lie outside [low, high], or are NaN.

    Numbers where a mask is known to be False may be anything.
    """
    values, mask = known(x), known(True if mask is None else mask)
    if values is None or mask is None:
        return
    values = values[np.broadcast_to(mask, values.shape).astype(bool)]
    wrong = values[~((values >= low) & (values <= high))]
    if wrong.size:
        raise ValueError(f'expected {name} from {low:g} to {high:g}, found {wrong.flat[0]:g}')


def check_labels_fit(labels: jax.Array | np.ndarray, held_type: Any, name: str = 'labels') -> None:
    """Raises ValueError if labels whose values are known do not fit into a type of integers."""
    if np.can_cast(labels.dtype, held_type):  # Then nothing need be fetched from a device.
        return
    values, held = known(labels), jnp.iinfo(held_type)
    if values is None or not values.size:
        return
    if values.min() < held.min or values.max() > held.max:
        raise ValueError(
            f'expected {name} from {held.min} to {held.max} ({held.dtype}), found {values.min()} to '
            f'{values.max()}; renumber them: numpy.unique({name}, return_inverse=True)[1]'
        )


def of_one_type(labels: jax.Array, others: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns two arrays of labels in a type that holds both."""
    both = jax.dtypes.canonicalize_dtype(np.promote_types(labels.dtype, others.dtype))
    return labels.astype(both), others.astype(both)


def at_least_float32(x: jax.Array) -> jax.Array:
    """Returns `x` in float32, or as it is in float64: bfloat16 would reorder triplets."""
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def as_floating(x: jax.Array) -> jax.Array:
    """Returns whole numbers in float32, and floating-point numbers as they are."""
    return x if jnp.issubdtype(x.dtype, jnp.floating) else at_least_float32(x)


def _describe(x):
    try:
        return f'an array of {np.asarray(x).dtype}'
    except (TypeError, ValueError):
        return f'{type(x).__name__} that is none'
