"""Batch-hard mining and its softer relatives: one positive and one negative an anchor, per slice."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mtdml_jax.loss.arguments import as_array, as_labels
from mtdml_jax.loss.slicing import at_least_float32

# Distances in a tile of anchors by gallery rows: on a CPU 2 MiB, what the caches of its cores hold;
# elsewhere as many as keep a device busy for longer than it takes to start the next kernel.
_TILE_ENTRIES = {'cpu': 2**19, 'default': 2**24}
# Fewer anchors than these make slow products.
_TILE_ANCHORS = 64
# Gallery rows whose maximum is taken first.
_BLOCK_ROWS = 32


class Triplets(NamedTuple):
    """Mined triplets as row indices into the gallery.

    Attributes:
      positive: the positive's row, int32 [S, B] ([B] for unsliced input).
      negative: the negative's row, int32, same shape.
      valid: True where the anchor counts and has both a positive and a negative; elsewhere the
        rows are meaningless, though in range.
    """

    positive: jax.Array
    negative: jax.Array
    valid: jax.Array


def check_quantile(quantile: float | jax.Array) -> None:
    """Raises ValueError unless `quantile` lies in [0, 1], as far as it is a Python number."""
    if isinstance(quantile, int | float) and not 0 <= quantile <= 1:
        raise ValueError(f'expected quantile from 0 to 1, found {quantile}')


def mine_batch_hard(
    slices: ArrayLike,
    labels: ArrayLike,
    *,
    mining: str = 'hard',
    quantile: float | jax.Array = 0.25,
    gallery: ArrayLike | None = None,
    gallery_labels: ArrayLike | None = None,
    gallery_mask: ArrayLike | None = None,
    rows: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    tile: int | None = None,
) -> Triplets:
    """The hardest positive and the hardest negative of every anchor, in each slice by itself.

    With P_a the other members of the anchor's class and N_a the members of other classes:

        hard:      p = argmax_{P_a} D(a, p),  n = argmin_{N_a} D(a, n)
        semihard:  p as before,               n = argmin_{N_a, D(a, n) > D(a, p)} D(a, n)
        quantile:  p of rank floor(q (|P_a| - 1)) among P_a from the farthest, counted from 0,
                   n of rank floor(q (|N_a| - 1)) among N_a from the nearest

    A quantile q of 0 is `hard`, 0.5 the median, 1 the easiest; where labels are noisy, the very hardest
    pairs are the wrong labels. Ties go to the lowest row. No gradient flows through the choice. Works
    on any vectors, of unit length or not, under jit, vmap, pmap and shard_map. Memory is O(tile * G):
    the distances of one tile of anchors of one slice.

    Args:
      slices: anchors, shape [B, S, D], or [B, D] for one slice.
      labels: class of each anchor, integers or booleans, [B]. Under jit, JAX without x64 wraps labels of
        int64 beyond 2^31 unseen: renumber such with `numpy.unique(labels, return_inverse=True)[1]`.
      mining: 'hard', 'semihard', 'quantile', or what else `PAIR_MININGS` has.
      quantile: q in [0, 1], for mining 'quantile'; may be traced.
      gallery: vectors to choose from, shape [G, S, D] or [G, D]; by default the anchors themselves.
      gallery_labels: class of each gallery row, int [G]; goes with gallery.
      gallery_mask: bool [G], False for rows that nobody may choose; goes with gallery.
      rows: int [B], the gallery row that holds each anchor itself and that it may not choose; by
        default row i for anchor i without a gallery, and none with one.
      mask: bool [B], False for anchors (and, without a gallery, rows) that take part in nothing.
      tile: anchors compared at a time; by default as many as make a tile of 2^19 distances on a CPU,
        2^24 elsewhere, and at least 64.

    Returns:
      Triplets with rows of shape [S, B], or [B] for one slice.

    Raises:
      ValueError: shapes that do not fit each other, no rows, labels of another type, an unknown mining,
        or a quantile outside [0, 1] that is not traced.

    References:
      Hermans et al., "In defense of the triplet loss", 2017 (batch hard). Schroff et al., "FaceNet",
      CVPR 2015 (semi-hard).
    """
    if mining not in PAIR_MININGS:
        raise ValueError(f'expected mining to be one of {tuple(PAIR_MININGS)}, found {mining!r}')
    check_quantile(quantile)
    slices, labels = as_array(slices, 'slices'), as_labels(labels)
    if slices.ndim not in (2, 3) or labels.shape != slices.shape[:1]:
        raise ValueError(
            f'expected slices of shape [B, S, D] or [B, D] and labels of shape [B], found '
            f'{slices.shape} and {labels.shape}'
        )
    sliced = slices if slices.ndim == 3 else slices[:, None]
    mask = as_mask(mask, labels.shape)
    if gallery is None:
        if gallery_labels is not None or gallery_mask is not None:
            raise ValueError(
                'found gallery_labels or gallery_mask without a gallery, which they go with'
            )
        gallery, gallery_labels, gallery_mask = sliced, labels, mask
        rows = jnp.arange(len(labels)) if rows is None else rows
    else:
        gallery = as_array(gallery, 'gallery')
        gallery = gallery[:, None] if gallery.ndim == 2 else gallery
        if gallery_labels is None:
            raise ValueError(
                f'expected gallery_labels of shape {gallery.shape[:1]} with the gallery, found None'
            )
        gallery_labels = as_labels(gallery_labels, 'gallery_labels')
    rows = jnp.full(labels.shape, -1) if rows is None else as_labels(rows, 'rows')
    _check_shapes(sliced, rows, gallery, gallery_labels)
    gallery_mask = as_mask(gallery_mask, gallery_labels.shape, 'gallery_mask')

    sliced, gallery = jax.lax.stop_gradient((at_least_float32(sliced), at_least_float32(gallery)))
    mine_slice = partial(
        _mine_slice,
        labels=labels,
        gallery_labels=gallery_labels,
        gallery_mask=gallery_mask,
        rows=rows,
        choose=partial(PAIR_MININGS[mining], quantile=quantile),
    )

    def mine_slices(anchors, gallery, *, tile):
        return jax.lax.map(lambda vectors: mine_slice(*vectors, tile=tile), (anchors, gallery))

    by_slice = jnp.swapaxes(sliced, 0, 1), jnp.swapaxes(gallery, 0, 1)
    triplets = _with_tile_of_device(mine_slices, by_slice, tile)
    triplets = triplets._replace(valid=triplets.valid & mask)
    return triplets if slices.ndim == 3 else jax.tree.map(lambda x: x[0], triplets)


def _with_tile_of_device(mine_slices, by_slice, tile):
    """`mine_slices` of (anchors [S, B, D], gallery [S, G, D]), in tiles for the device that runs it."""
    batch, size = (vectors.shape[1] for vectors in by_slice)
    tiles = {k: min(batch, max(_TILE_ANCHORS, n // size)) for k, n in _TILE_ENTRIES.items()}
    if tile or min(tiles.values()) == batch:
        return mine_slices(*by_slice, tile=tile or batch)
    # Decided when XLA compiles: what is traced may be for another device than JAX's default one.
    branches = {name: partial(mine_slices, tile=tile) for name, tile in tiles.items()}
    return jax.lax.platform_dependent(*by_slice, **branches)


def _mine_slice(anchors, gallery, *, labels, gallery_labels, gallery_mask, rows, choose, tile):
    """Triplets of one slice: anchors [B, D], gallery [G, D]."""
    # Seen from one of the rows: where all vectors nearly agree, |g|^2 - 2ag would cancel their
    # differences. A row, not the mean, because whole numbers stay whole.
    origin = gallery[jnp.argmax(gallery_mask)]
    anchors, gallery = anchors - origin, gallery - origin
    squared_norms = jnp.sum(jnp.square(gallery), axis=-1)

    def mine_tile(tile_of_anchors):
        anchors, labels, rows = tile_of_anchors
        # |a - g|^2 without |a|^2, which is the same for all, as [G, tile]: reductions over the leading
        # axis are vectorised. Full precision: a TPU's default product of bfloat16 terms would choose
        # other rows.
        products = jnp.matmul(gallery, anchors.T, precision='highest')
        distances = squared_norms[:, None] - 2.0 * products
        same_class = gallery_labels[:, None] == labels
        is_self = jnp.arange(len(gallery))[:, None] == rows
        is_positive = same_class & gallery_mask[:, None] & ~is_self
        is_negative = ~same_class & gallery_mask[:, None]
        return choose(distances, is_positive, is_negative)

    return map_tiles(mine_tile, (anchors, labels, rows), tile)


def map_tiles(function: Callable[[Any], Any], arrays: Any, tile: int) -> Any:
    """`function` of `tile` rows of the arrays at a time, put together; its outputs end in [tile].

    Unlike `jax.lax.map(batch_size=tile)`, the function sees the tile as a whole. The last tile is
    filled up with copies of row 0, whose results are dropped.
    """
    batch = len(jax.tree.leaves(arrays)[0])
    num_tiles = -(-batch // tile)
    if num_tiles <= 1:
        return function(arrays)
    tile = -(-batch // num_tiles)
    take = jnp.arange(num_tiles * tile)
    take = jnp.where(take < batch, take, 0).reshape(num_tiles, tile)
    results = jax.lax.map(
        lambda rows: function(jax.tree.map(lambda x: jnp.asarray(x)[rows], arrays)), take
    )
    return jax.tree.map(lambda x: x.reshape(-1)[:batch], results)


def _hardest(distances, is_positive, is_negative, quantile):
    positive, _, has_positive = farthest(distances, is_positive)
    negative, _, has_negative = farthest(-distances, is_negative)
    return Triplets(positive, negative, has_positive & has_negative)


def _semihard(distances, is_positive, is_negative, quantile):
    positive, positive_distance, has_positive = farthest(distances, is_positive)
    # Not `distances > positive_distance`: a NaN shall stay in, and be seen in the loss.
    is_farther = ~(distances <= positive_distance)
    negative, _, has_negative = farthest(-distances, is_negative & is_farther)
    return Triplets(positive, negative, has_positive & has_negative)


def _quantile(distances, is_positive, is_negative, quantile):
    positive = _farthest_but(distances, is_positive, quantile)
    negative = _farthest_but(-distances, is_negative, quantile)
    return Triplets(positive, negative, jnp.any(is_positive, axis=0) & jnp.any(is_negative, axis=0))


# Name -> function (distances, is_positive, is_negative, quantile) -> Triplets of a tile of anchors: rows
# [tile], chosen by columns of [G, tile]. The distances are squared, without a term that is the same for
# all rows of a column; what else is in mine_batch_hard, such as masks, is seen to.
PAIR_MININGS: dict[str, Callable[..., Triplets]] = {
    'hard': _hardest,
    'semihard': _semihard,
    'quantile': _quantile,
}


def farthest(distances: jax.Array, among: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(row, distance, whether there is one) of the largest distance in each column of [G, tile].

    The lowest row that attains it, by plain maxima: first of blocks of rows, then of the blocks; the row
    is sought in the one block that has it. So the distances are read once, and `argmax`, which compares
    pairs one by one and takes a CPU ten times longer, is not needed. A NaN among the distances counts as
    one, at any row.

    Args:
      distances: [G, tile]; their negatives find the nearest.
      among: bool, False for rows that do not count, same shape.

    Returns:
      int32, the type of the distances, and bool, each [tile].
    """
    distances = jnp.where(among, distances, -jnp.inf)
    rest = -len(distances) % _BLOCK_ROWS
    distances = jnp.pad(distances, ((0, rest), (0, 0)), constant_values=-jnp.inf)
    blocks = distances.reshape(-1, _BLOCK_ROWS, distances.shape[1])
    # The barriers keep XLA from computing the maxima anew inside of what compares with them.
    of_blocks = jax.lax.optimization_barrier(jnp.max(blocks, axis=1))
    largest = jax.lax.optimization_barrier(jnp.max(of_blocks, axis=0))
    start = _BLOCK_ROWS * _first_row(of_blocks == largest)
    rows = start + jnp.arange(_BLOCK_ROWS, dtype=jnp.int32)[:, None]
    of_rows = jnp.take_along_axis(distances, rows, axis=0, mode='promise_in_bounds')
    return start + _first_row(of_rows == largest), largest, largest != -jnp.inf


def _farthest_but(distances, among, q):
    """Row of rank floor(q (n - 1)) from the largest of the n distances of each column that count.

    Bisects the range of the numbers' bit patterns, one bit of the answer a step: exact, and on a CPU
    hundreds of times faster than sorting columns.
    """
    keys = jnp.where(among, _ordered_bits(distances), jnp.iinfo(_bits_type(distances)).min)
    rank = jnp.floor(q * (jnp.sum(among, axis=0) - 1)).astype(jnp.int32)

    def bisect(_, bounds):
        # low <= answer < high. The mean of two integers without overflow.
        low, high = bounds
        middle = (low & high) + ((low ^ high) >> 1)
        enough = jnp.sum(keys >= middle, axis=0) > rank
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    low, high = jnp.min(keys, axis=0), jnp.max(keys, axis=0) + 1
    answer, _ = jax.lax.fori_loop(0, jnp.iinfo(keys.dtype).bits, bisect, (low, high))
    return _first_row(among & (keys == answer))


def _bits_type(x):
    return jnp.int64 if x.dtype == jnp.float64 else jnp.int32


def _ordered_bits(x):
    """Integers in the order of the floating-point numbers."""
    # -0.0 equals 0.0 and gets its bits.
    bits = jax.lax.bitcast_convert_type(jnp.where(x == 0, 0.0, x), _bits_type(x))
    return jnp.where(bits < 0, bits ^ jnp.iinfo(bits.dtype).max, bits)


def _first_row(hit):
    """The lowest row that is True in each column of [G, tile]; row 0 where none is."""
    rows = jnp.arange(len(hit), dtype=jnp.int32)[:, None]
    return jnp.min(jnp.where(hit, rows, len(hit)), axis=0) % len(hit)


def as_mask(mask: ArrayLike | None, shape: tuple[int, ...], name: str = 'mask') -> jax.Array:
    """`mask` as booleans of that shape (True for None); raises ValueError for another shape."""
    if mask is None:
        return jnp.ones(shape, bool)
    mask = as_array(mask, name)
    if mask.shape != shape:
        raise ValueError(f'expected {name} of shape {shape}, found {mask.shape}')
    return mask.astype(bool)


def _check_shapes(slices, rows, gallery, gallery_labels):
    if rows.shape != slices.shape[:1]:
        raise ValueError(f'expected rows of shape {slices.shape[:1]}, found {rows.shape}')
    if gallery_labels.shape != gallery.shape[:1]:
        raise ValueError(
            f'expected gallery_labels of shape {gallery.shape[:1]} with the gallery, found '
            f'{gallery_labels.shape}'
        )
    if not len(slices) or not len(gallery):
        raise ValueError(f'expected at least one row, found {len(slices)} and {len(gallery)}')
    if gallery.shape[1:] != slices.shape[1:]:
        raise ValueError(
            f'expected gallery rows shaped like the anchors {slices.shape[1:]}, found '
            f'{gallery.shape[1:]}'
        )
