"""How a training step is mapped over devices, and how arrays travel to them and back.

No other module of the package maps a step. Each way of mapping is one function here, which returns a
`Mapping`; the rest of the package holds that object and does not know how it lays out arrays.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import jax_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Name of the mapped axis. A batch is spread over its devices.
AXIS = 'batch'


class Mapping(NamedTuple):
    """One way of mapping a step over devices.

    Attributes:
      map_step: maps a pure function (state, batch) -> (state, metrics) over the devices, with `AXIS` as
        the name of the mapped axis. The memory of the state is reused.
      replicate: copies a tree of arrays, on the host or on devices, to each device of this process.
      split: spreads the rows of this process, {name: [B, ...]}, over its devices.
      on_host: returns one replica of a tree that the mapped step returned, as NumPy arrays. These are
        copies: a later step may overwrite memory that a NumPy array borrows.
      shapes: returns the shapes that the mapped step takes, for `step.lower` and `jax.make_jaxpr`. Its
        arguments are the state before it is replicated and the rows of all devices, {name: [B, ...]};
        both may be shapes. With one process, a later call of the step runs the program that
        `step.lower(*shapes).compile()` made.
    """

    map_step: Callable[[Callable], Callable]
    replicate: Callable[[Any], Any]
    split: Callable[[dict[str, np.ndarray]], dict[str, Any]]
    on_host: Callable[[Any], Any]
    shapes: Callable[[Any, Any], tuple[Any, Any]]


def make_mapping(name: str, devices: Sequence[jax.Device] | None = None) -> Mapping:
    """Returns a way of mapping over devices.

    Args:
      name: one of `MAPPINGS`: the setting `config.train.mapping`.
      devices: the devices; None for all devices of all processes. They may be abstract, see
        `jax.experimental.topologies`: a step can then only be lowered and compiled.
    """
    return MAPPINGS[name](devices)


def _by_pmap(devices):
    """Maps by `jax.pmap`: arrays have a first axis of devices, [devices, ...]."""

    def map_step(step):
        return jax.pmap(step, axis_name=AXIS, devices=devices, donate_argnums=0)

    def local_devices():
        if devices is None:
            return jax.local_devices()
        return [device for device in devices if device.process_index == jax.process_index()]

    def replicate(tree):
        # `jax_utils.replicate` compiles a copy for each shape if the arrays are on a device.
        return jax_utils.replicate(jax.device_get(tree), local_devices(), axis_name=AXIS)

    def split(batch):
        count = len(local_devices())
        return {name: x.reshape(count, -1, *x.shape[1:]) for name, x in batch.items()}

    def on_host(tree):
        return jax.tree.map(lambda x: np.array(x.addressable_data(0))[0], tree)

    def shapes(state, batch):
        mesh = Mesh(np.array(jax.devices() if devices is None else devices), (AXIS,))
        count, each = mesh.size, NamedSharding(mesh, PartitionSpec(AXIS))

        def replicated(x):
            return jax.ShapeDtypeStruct((count, *x.shape), x.dtype, sharding=each)

        def spread(x):
            rows, *rest = x.shape
            return jax.ShapeDtypeStruct((count, rows // count, *rest), x.dtype)

        return jax.tree.map(replicated, state), jax.tree.map(spread, batch)

    return Mapping(map_step, replicate, split, on_host, shapes)


def _by_shard_map(devices):
    """Maps by `jax.shard_map`: arrays have their own shapes and span the devices of all processes."""
    mesh = Mesh(np.array(jax.devices() if devices is None else devices), (AXIS,))
    everywhere, by_rows = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), (AXIS,)))

    def map_step(step):
        # The step itself averages over devices. With `check_vma`, JAX has already summed the gradients
        # there, so that they would be sent twice. JAX 0.10 also rejects `embed_in_parts` with it.
        mapped = jax.shard_map(
            step,
            mesh=mesh,
            in_specs=(everywhere.spec, by_rows.spec),
            out_specs=everywhere.spec,
            check_vma=False,
        )
        return jax.jit(
            mapped,
            in_shardings=(everywhere, by_rows),
            out_shardings=everywhere,
            donate_argnums=0,
        )

    def replicate(tree):
        return jax.make_array_from_process_local_data(everywhere, jax.device_get(tree))

    def split(batch):
        return jax.make_array_from_process_local_data(by_rows, batch)

    def on_host(tree):
        return jax.tree.map(lambda x: np.array(x.addressable_data(0)), tree)

    def shapes(state, batch):
        def on(sharding, tree):
            return jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
            )

        return on(everywhere, state), on(by_rows, batch)

    return Mapping(map_step, replicate, split, on_host, shapes)


MAPPINGS = {'pmap': _by_pmap, 'shard_map': _by_shard_map}
