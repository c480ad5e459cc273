"""Meshes: how the functions of the loss run on arrays that lie on several devices.

An array shows, while it is traced, over which mesh it lies, and along axes of type Explicit also how.
Functions that compare all rows then run by `jax.shard_map` over the axes of the mesh, each device on its
share. Nothing is left for the compiler to guess.
"""

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from mtdml_jax.loss.arguments import AxisName


class Layout(NamedTuple):
    """Where arrays lie, and over which devices the work on their rows is split.

    Attributes:
      mesh: the mesh of the arrays; None for arrays on one device, or inside pmap or shard_map.
      axes: the axes of the mesh over which rows are split, in the order of the rows.
    """

    mesh: AbstractMesh | None
    axes: tuple[str, ...] = ()

    @property
    def num_devices(self) -> int:
        """Number of devices over which rows are split."""
        return 1 if self.mesh is None else size_of(self.mesh, self.axes)

    def joined(self, axis_name: AxisName | None) -> AxisName | None:
        """Returns the mapped axes inside `run`: the caller's own ones and those of the layout."""
        return (*_names(axis_name), *self.axes) or None

    def run(
        self, function: Callable[..., Any], arguments: tuple, in_specs: tuple, out_specs: Any
    ) -> Any:
        """Calls `function(*arguments)` on each device's share of the arguments.

        Args:
          function: a pure function of arrays; may use collectives over `axes`.
          arguments: trees of arrays.
          in_specs: how each argument is split, as `jax.shard_map` takes it.
          out_specs: how the results are split.
        """
        if self.mesh is None:
            return function(*arguments)
        if AxisType.Manual in self.mesh.axis_types:
            return function(*self.place(arguments, P()))
        mapped = jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=in_specs,
            out_specs=out_specs,
            axis_names=set(_free_axes(self.mesh)),
        )
        return mapped(*map(self.place, arguments, in_specs))

    def place(self, tree: Any, spec: P) -> Any:
        """Moves arrays to where `spec` says; on Auto axes the compiler does that by itself."""
        mesh = self.mesh
        if mesh is None or AxisType.Explicit not in mesh.axis_types:
            return tree

        def move(x):
            # The axes that split `x` move first. XLA would gather all rows to move all axes at once.
            split = {axis for axes in spec_of(x) for axis in _names(axes)}
            first = tuple(axis for axis in _names(spec[0] if spec else None) if axis in split)
            for step in (P(first or None), spec) if first else (spec,):
                x = jax.sharding.reshard(x, NamedSharding(mesh, step))
            if spec == P() and AxisType.Auto in mesh.axis_types:
                # XLA aborts in some programs where such an array is split along the Auto axes.
                x = jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P()))
            return x

        return jax.tree.map(move, tree)


def find_layout(rows: Any, others: Any = ()) -> Layout:
    """Returns the layout of arrays that are traced: over all devices of their mesh.

    Axes of the mesh that do not divide the rows are left out; devices along them repeat the work. The
    axes that split the first array come first.

    Args:
      rows: a tree of arrays [B, ...].
      others: a tree of the other arrays.
    """
    leaves = jax.tree.leaves((rows, others))
    meshes = (jax.typeof(x).sharding.mesh for x in leaves)
    mesh = next((mesh for mesh in meshes if not mesh.empty), None)
    if mesh is None:
        return Layout(None)
    if AxisType.Manual in mesh.axis_types:
        # jax 0.12 cannot transpose a shard_map inside another one, so the other axes repeat the work.
        return Layout(mesh if AxisType.Explicit in mesh.axis_types else None)
    split = [axis for axes in spec_of(leaves[0]) for axis in _names(axes)]
    taken: tuple[str, ...] = ()
    for axis in sorted(_free_axes(mesh), key=[*split, *mesh.axis_names].index):
        if leaves[0].shape[0] % size_of(mesh, (*taken, axis)) == 0:
            taken = (*taken, axis)
    return Layout(mesh, taken)


def rearrange(function: Callable[[jax.Array], jax.Array], x: jax.Array, *axes: Any) -> jax.Array:
    """Calls a function that changes the shape of a traced array, wherever the array lies.

    Args:
      function: array -> array.
      x: the array.
      axes: the Explicit axes that shall split each dimension of the result, as `spec_of` returns them;
        where they do not divide the dimension, the result has it whole.
    """
    mesh = jax.typeof(x).sharding.mesh
    if AxisType.Explicit not in mesh.axis_types:
        return function(x)
    if AxisType.Manual in mesh.axis_types:
        return function(Layout(mesh).place(x, P()))
    shape = jax.eval_shape(function, jax.ShapeDtypeStruct(x.shape, x.dtype)).shape
    fitting = [
        names if size % size_of(mesh, names) == 0 else None
        for size, names in zip(shape, axes, strict=True)
    ]
    return jax.sharding.auto_axes(
        function, axes=_free_axes(mesh), out_sharding=NamedSharding(mesh, P(*fitting))
    )(x)


def spec_of(x: jax.Array) -> tuple:
    """Returns the Explicit axes that split each dimension of a traced array: a name, names or None."""
    spec = jax.typeof(x).sharding.spec
    return (*spec, *[None] * (x.ndim - len(spec)))


def size_of(mesh: AbstractMesh, axes: str | tuple[str, ...] | None) -> int:
    """Returns the number of devices along axes of a mesh."""
    return prod(mesh.shape[axis] for axis in _names(axes))


def _free_axes(mesh):
    """Returns the Explicit axes; if there are none, all axes, which are Auto."""
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    explicit = tuple(axis for axis, kind in kinds if kind == AxisType.Explicit)
    return explicit or mesh.axis_names


def _names(axes):
    return (axes,) if isinstance(axes, str) else tuple(axes or ())
