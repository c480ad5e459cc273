"""Tiles: work on many rows, a few rows at a time, in as much memory as suits the device.

The number of rows may be symbolic, as in `jax.export`. A tile then has `_TILE_ANCHORS` rows.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

# Number of distances in a tile of anchors by gallery rows. On a CPU they take 2 MiB, which fits the
# caches of its cores. Other devices get enough work to outlast the start of the next kernel.
_TILE_ENTRIES = {'cpu': 2**19, 'default': 2**24}
# A product of fewer anchors is slow.
_TILE_ANCHORS = 64


def with_tile_of_device(
    mine: Callable[..., Any], by_slice: tuple[jax.Array, jax.Array], tile: int | None
) -> Any:
    """Calls `mine(anchors [S, B, D], gallery [S, G, D], tile=)` with a tile that suits the device.

    Args:
      mine: the function.
      by_slice: anchors and gallery.
      tile: number of anchors in a tile; None for the tile that suits the device.
    """
    batch, size = (vectors.shape[1] for vectors in by_slice)
    if not (isinstance(batch, int) and isinstance(size, int)):
        return mine(*by_slice, tile=tile or _TILE_ANCHORS)
    tiles = {k: min(batch, max(_TILE_ANCHORS, n // size)) for k, n in _TILE_ENTRIES.items()}
    if tile or min(tiles.values()) == batch:
        return mine(*by_slice, tile=tile or batch)
    # XLA decides when it compiles: the traced code may be for another device than JAX's default one.
    branches = {name: partial(mine, tile=tile) for name, tile in tiles.items()}
    return jax.lax.platform_dependent(*by_slice, **branches)


def map_tiles(function: Callable[[Any], Any], arrays: Any, tile: int) -> Any:
    """Calls `function` on `tile` rows of the arrays at a time and joins its outputs, [..., tile].

    Unlike `jax.lax.map(batch_size=tile)`, it passes the tile as a whole. Rows of zeros fill up the last
    tile; their results are dropped.
    """
    batch = jax.tree.leaves(arrays)[0].shape[0]
    if isinstance(batch, int):
        if batch <= tile:
            return function(arrays)
        tile = -(-batch // -(-batch // tile))  # Tiles of equal size have the fewest rows of zeros.
    results = jax.lax.map(function, jax.tree.map(lambda x: in_blocks(x, tile), arrays))
    return jax.tree.map(lambda x: x.reshape(-1)[:batch], results)


def in_blocks(x: jax.Array, size: int, fill: float = 0) -> jax.Array:
    """Cuts rows [N, ...] into blocks [ceil(N / size), size, ...]; the last is filled up."""
    rows, *shape = x.shape
    count = (rows + size - 1) // size
    filling = jnp.full((count * size - rows, *shape), fill, x.dtype)
    return jnp.concatenate([x, filling]).reshape(count, size, *shape)
