"""How a training step is mapped over devices, and how arrays travel to them and back.

No other module of the package maps a step. Another way of mapping, such as `jax.shard_map`, would change
`map_over_devices` and the layout of the arrays here, and nothing else.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import jax_utils

# Name of the mapped axis. A batch is spread over its devices.
AXIS = 'batch'


def map_over_devices(step: Callable, devices: Sequence[jax.Device] | None = None) -> Callable:
    """Returns the step mapped over devices, with `AXIS` as the name of the mapped axis.

    Args:
      step: a pure function (state, batch) -> (state, metrics). The memory of the state is reused.
      devices: the devices; None for all devices of all processes. They may be abstract, see
        `jax.experimental.topologies`: such a step can only be lowered and compiled.
    """
    return jax.pmap(step, axis_name=AXIS, devices=devices, donate_argnums=0)


def replicate(tree: Any, devices: Sequence[jax.Device] | None = None) -> Any:
    """Copies a tree of arrays to each device of this process.

    Args:
      tree: arrays on the host or on devices.
      devices: the devices of the step; None for all.
    """
    # `jax_utils.replicate` compiles a copy for each shape if the arrays are on a device.
    return jax_utils.replicate(jax.device_get(tree), _local_devices(devices), axis_name=AXIS)


def split_over_devices(
    batch: dict[str, np.ndarray], devices: Sequence[jax.Device] | None = None
) -> dict[str, np.ndarray]:
    """Reshapes arrays [B, ...] to [devices, B / devices, ...], as the mapped step takes them.

    Args:
      batch: the rows of this process.
      devices: the devices of the step; None for all.
    """
    count = len(_local_devices(devices))
    return {name: x.reshape(count, -1, *x.shape[1:]) for name, x in batch.items()}


def on_host(tree: Any) -> Any:
    """Returns one replica of a tree that the mapped step returned, as NumPy arrays."""
    # These are copies: a later step may overwrite memory that a NumPy array borrows.
    return jax.tree.map(lambda x: np.array(x.addressable_data(0))[0], tree)


def step_shapes(state: Any, batch: Any, num_devices: int) -> tuple[Any, Any]:
    """Returns the shapes that the mapped step takes, for `step.lower` and `jax.make_jaxpr`.

    Args:
      state: the state before it is replicated; arrays or shapes.
      batch: the rows of all devices; arrays or shapes [B, ...].
      num_devices: number of devices of the step.
    """

    def replicated(x):
        return jax.ShapeDtypeStruct((num_devices, *x.shape), x.dtype)

    def split(x):
        rows, *rest = x.shape
        return jax.ShapeDtypeStruct((num_devices, rows // num_devices, *rest), x.dtype)

    return jax.tree.map(replicated, state), jax.tree.map(split, batch)


def _local_devices(devices):
    if devices is None:
        return jax.local_devices()
    return [device for device in devices if device.process_index == jax.process_index()]
