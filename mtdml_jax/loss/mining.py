"""Batch-hard mining and softer minings: one positive and one negative for each anchor of a slice."""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mtdml_jax.loss.arguments import as_array, as_labels
from mtdml_jax.loss.slicing import at_least_float32

# Number of distances in a tile of anchors by gallery rows. On a CPU they take 2 MiB, which fits the
# caches of its cores. Other devices get enough work to outlast the start of the next kernel.
_TILE_ENTRIES = {'cpu': 2**19, 'default': 2**24}
# A product of fewer anchors is slow.
_TILE_ANCHORS = 64
# Number of gallery rows in a block; `farthest` takes the maxima of blocks first.
_BLOCK_ROWS = 32


class Triplets(NamedTuple):
    """Mined triplets as row indices into the gallery.

    Attributes:
      positive: the positive's row, int32 [S, B] ([B] for unsliced input).
      negative: the negative's row, int32, same shape.
      valid: True where the anchor counts and has both a positive and a negative. Elsewhere the rows
        are in range but mean nothing.
    """

    positive: jax.Array
    negative: jax.Array
    valid: jax.Array


def check_mining(mining: str, quantile: float | jax.Array, minings: Collection[str]) -> None:
    """Raises ValueError for an unknown mining, or for a Python number outside [0, 1] as quantile."""
    if mining not in minings:
        raise ValueError(f'expected mining to be one of {tuple(minings)}, found {mining!r}')
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
    """Finds the hardest positive and the hardest negative of every anchor, in each slice by itself.

    With P_a the other members of the anchor's class and N_a the members of other classes:

        hard:      p = argmax_{P_a} D(a, p),  n = argmin_{N_a} D(a, n)
        semihard:  p as before,               n = argmin_{N_a, D(a, n) > D(a, p)} D(a, n)
        quantile:  p of rank floor(q (|P_a| - 1)) among P_a from the farthest, counted from 0,
                   n of rank floor(q (|N_a| - 1)) among N_a from the nearest

    A quantile q of 0 is `hard`, 0.5 is the median, 1 is the easiest. If labels are noisy, the very
    hardest pairs have the wrong labels. Ties go to the lowest row. No gradient flows through the choice.
    The vectors may have any length. The function works under jit, vmap, pmap and shard_map. Memory is
    O(tile * G): the distances of one tile of anchors of one slice.

    Args:
      slices: anchors, shape [B, S, D], or [B, D] for one slice.
      labels: class of each anchor, integers or booleans, [B]. Under jit, JAX without x64 wraps labels of
        int64 beyond 2^31 silently: renumber them with `numpy.unique(labels, return_inverse=True)[1]`.
      mining: 'hard', 'semihard', 'quantile', or another name in `PAIR_MININGS`.
      quantile: q in [0, 1], for mining 'quantile'; may be traced.
      gallery: vectors to choose from, shape [G, S, D] or [G, D]; by default the anchors themselves.
      gallery_labels: class of each gallery row, int [G]; required with a gallery.
      gallery_mask: bool [G], False for rows that no anchor may choose; only with a gallery.
      rows: int [B], the gallery row that holds the anchor itself, which the anchor may not choose. The
        default is row i for anchor i without a gallery, and no row with one.
      mask: bool [B], False for anchors (and, without a gallery, rows) that take part in nothing.
      tile: number of anchors that are compared at a time. The default makes a tile of 2^19 distances on
        a CPU and of 2^24 elsewhere, with at least 64 anchors.

    Returns:
      Triplets with rows of shape [S, B], or [B] for one slice.

    Raises:
      ValueError: shapes do not match, or there are no rows; labels have another type; the mining is
        unknown; or a quantile that is not traced lies outside [0, 1].

    References:
      Hermans et al., "In defense of the triplet loss", 2017 (batch hard). Schroff et al., "FaceNet",
      CVPR 2015 (semi-hard).
    """
    check_mining(mining, quantile, PAIR_MININGS)
    slices, labels = as_array(slices, 'slices'), as_labels(labels)
    if slices.ndim not in (2, 3) or labels.shape != slices.shape[:1]:
        raise ValueError(
            f'expected slices of shape [B, S, D] or [B, D] and labels of shape [B], found '
            f'{slices.shape} and {labels.shape}'
        )
    is_sliced = slices.ndim == 3
    slices = slices if is_sliced else slices[:, None]
    mask = as_mask(mask, labels.shape)
    if gallery is None and (gallery_labels is not None or gallery_mask is not None):
        raise ValueError('found gallery_labels or gallery_mask without a gallery')
    if rows is None:
        rows = jnp.arange(len(labels)) if gallery is None else jnp.full(labels.shape, -1)
    rows = as_labels(rows, 'rows')
    choices, choice_labels, choice_mask = (
        (slices, labels, mask)
        if gallery is None
        else _as_gallery(gallery, gallery_labels, gallery_mask)
    )
    _check_shapes(slices, rows, choices)
    triplets = mine_slices(
        jnp.swapaxes(slices, 0, 1),
        labels,
        gallery=jnp.swapaxes(choices, 0, 1),
        gallery_labels=choice_labels,
        gallery_mask=choice_mask,
        rows=rows,
        mask=mask,
        mining=mining,
        quantile=quantile,
        tile=tile,
    )
    return triplets if is_sliced else jax.tree.map(lambda x: x[0], triplets)


def mine_slices(
    anchors: jax.Array,
    labels: jax.Array,
    *,
    gallery: jax.Array,
    gallery_labels: jax.Array,
    gallery_mask: jax.Array,
    rows: jax.Array,
    mask: jax.Array,
    mining: str,
    quantile: float | jax.Array,
    tile: int | None = None,
) -> Triplets:
    """Mines every slice of anchors [S, B, D] in a gallery [S, G, D], without checking arguments.

    `jax.lax.map` takes the slices one after the other. `jax.vmap` would hold the distances of all slices
    in memory at the same time.

    Args:
      anchors: anchors of all slices, [S, B, D].
      labels: see `mine_batch_hard`, like the arguments that follow; none may be missing.
      gallery: gallery of all slices, [S, G, D].
      gallery_labels: int [G].
      gallery_mask: bool [G].
      rows: int [B].
      mask: bool [B].
      mining: a name in `PAIR_MININGS`.
      quantile: for mining 'quantile'.
      tile: number of anchors in a tile; None for the tile that suits the device.
    """
    by_slice = jax.lax.stop_gradient((at_least_float32(anchors), at_least_float32(gallery)))
    mine_slice = partial(
        _mine_slice,
        labels=labels,
        gallery_labels=gallery_labels,
        gallery_mask=gallery_mask,
        rows=rows,
        choose=partial(PAIR_MININGS[mining], quantile=quantile),
    )

    def mine_one_by_one(anchors, gallery, *, tile):
        return jax.lax.map(lambda vectors: mine_slice(*vectors, tile=tile), (anchors, gallery))

    triplets = _with_tile_of_device(mine_one_by_one, by_slice, tile)
    return triplets._replace(valid=triplets.valid & mask)


def _with_tile_of_device(mine, by_slice, tile):
    """Runs `mine` on (anchors [S, B, D], gallery [S, G, D]) in tiles that suit the device."""
    batch, size = (vectors.shape[1] for vectors in by_slice)
    tiles = {k: min(batch, max(_TILE_ANCHORS, n // size)) for k, n in _TILE_ENTRIES.items()}
    if tile or min(tiles.values()) == batch:
        return mine(*by_slice, tile=tile or batch)
    # XLA decides when it compiles: the traced code may be for another device than JAX's default one.
    branches = {name: partial(mine, tile=tile) for name, tile in tiles.items()}
    return jax.lax.platform_dependent(*by_slice, **branches)


def _mine_slice(anchors, gallery, *, labels, gallery_labels, gallery_mask, rows, choose, tile):
    """Mines one slice: anchors [B, D], gallery [G, D]."""
    # One of the rows becomes the origin: |g|^2 - 2ag would cancel the differences of vectors that are
    # nearly equal. A row keeps whole numbers whole; the mean would not.
    origin = gallery[jnp.argmax(gallery_mask)]
    anchors, gallery = anchors - origin, gallery - origin
    squared_norms = jnp.sum(jnp.square(gallery), axis=-1)

    def mine_tile(tile_of_anchors):
        anchors, labels, rows = tile_of_anchors
        # |a - g|^2 without |a|^2, which is the same for all rows of a column, as [G, tile]: XLA
        # vectorises reductions over the leading axis. The product needs full precision: a TPU's default
        # product of bfloat16 terms would choose other rows.
        products = jnp.matmul(gallery, anchors.T, precision='highest')
        distances = squared_norms[:, None] - 2.0 * products
        same_class = gallery_labels[:, None] == labels
        is_self = jnp.arange(len(gallery))[:, None] == rows
        is_positive = same_class & gallery_mask[:, None] & ~is_self
        is_negative = ~same_class & gallery_mask[:, None]
        return choose(distances, is_positive, is_negative)

    return map_tiles(mine_tile, (anchors, labels, rows), tile)


def map_tiles(function: Callable[[Any], Any], arrays: Any, tile: int) -> Any:
    """Calls `function` on `tile` rows of the arrays at a time and joins its outputs, [..., tile].

    Unlike `jax.lax.map(batch_size=tile)`, it passes the tile as a whole. Copies of row 0 fill up the
    last tile; their results are dropped.
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
    # Not `distances > positive_distance`: a NaN must stay in and show in the loss.
    is_farther = ~(distances <= positive_distance)
    negative, _, has_negative = farthest(-distances, is_negative & is_farther)
    return Triplets(positive, negative, has_positive & has_negative)


def _quantile(distances, is_positive, is_negative, quantile):
    positive = _farthest_but(distances, is_positive, quantile)
    negative = _farthest_but(-distances, is_negative, quantile)
    return Triplets(positive, negative, jnp.any(is_positive, axis=0) & jnp.any(is_negative, axis=0))


# Name -> function (distances, is_positive, is_negative, quantile) -> Triplets of a tile of anchors: rows
# [tile], one chosen in each column of [G, tile]. The distances are squared and lack a term that is the
# same for all rows of a column. `mine_batch_hard` takes care of everything else, such as masks.
PAIR_MININGS: dict[str, Callable[..., Triplets]] = {
    'hard': _hardest,
    'semihard': _semihard,
    'quantile': _quantile,
}


def farthest(distances: jax.Array, among: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Finds the largest distance in each column of [G, tile], and the lowest row that attains it.

    It takes plain maxima: first of blocks of rows, then of the blocks, and then it looks for the row in
    the one block that has the maximum. This reads the distances once. `argmax` compares pairs one by one
    and takes a CPU ten times longer. If a column has a NaN, the distance is NaN, at any row.

    Args:
      distances: [G, tile]; their negatives find the nearest.
      among: bool, False for rows that do not count, same shape.

    Returns:
      (row, distance, whether any row counts): int32, the type of the distances, and bool, each [tile].
    """
    distances = jnp.where(among, distances, -jnp.inf)
    rest = -len(distances) % _BLOCK_ROWS
    distances = jnp.pad(distances, ((0, rest), (0, 0)), constant_values=-jnp.inf)
    blocks = distances.reshape(-1, _BLOCK_ROWS, distances.shape[1])
    # The barriers keep XLA from computing the maxima again inside the comparisons.
    of_blocks = jax.lax.optimization_barrier(jnp.max(blocks, axis=1))
    largest = jax.lax.optimization_barrier(jnp.max(of_blocks, axis=0))
    start = _BLOCK_ROWS * _first_row(of_blocks == largest)
    rows = start + jnp.arange(_BLOCK_ROWS, dtype=jnp.int32)[:, None]
    of_rows = jnp.take_along_axis(distances, rows, axis=0, mode='promise_in_bounds')
    return start + _first_row(of_rows == largest), largest, largest != -jnp.inf


def _farthest_but(distances, among, q):
    """Finds the row of rank floor(q (n - 1)) among the n distances that count, from the largest.

    It bisects the range of the numbers' bit patterns, one bit of the answer in each step. This is exact,
    and on a CPU hundreds of times faster than sorting the columns.
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
    """Maps floating-point numbers to integers in the same order."""
    # -0.0 equals 0.0 and gets the same bits.
    bits = jax.lax.bitcast_convert_type(jnp.where(x == 0, 0.0, x), _bits_type(x))
    return jnp.where(bits < 0, bits ^ jnp.iinfo(bits.dtype).max, bits)


def _first_row(hit):
    """Returns the lowest row that is True in each column of [G, tile]; row 0 if none is."""
    rows = jnp.arange(len(hit), dtype=jnp.int32)[:, None]
    return jnp.min(jnp.where(hit, rows, len(hit)), axis=0) % len(hit)


def as_mask(mask: ArrayLike | None, shape: tuple[int, ...], name: str = 'mask') -> jax.Array:
    """Returns `mask` as booleans, True everywhere for None; raises ValueError for another shape."""
    if mask is None:
        return jnp.ones(shape, bool)
    mask = as_array(mask, name)
    if mask.shape != shape:
        raise ValueError(f'expected {name} of shape {shape}, found {mask.shape}')
    return mask.astype(bool)


def _as_gallery(gallery, labels, mask):
    """Returns the gallery as [G, S, D], its labels and its mask."""
    gallery = as_array(gallery, 'gallery')
    gallery = gallery[:, None] if gallery.ndim == 2 else gallery
    if labels is None:
        raise ValueError(
            f'expected gallery_labels of shape {gallery.shape[:1]} with the gallery, found None'
        )
    labels = as_labels(labels, 'gallery_labels')
    if labels.shape != gallery.shape[:1]:
        raise ValueError(
            f'expected gallery_labels of shape {gallery.shape[:1]} with the gallery, found '
            f'{labels.shape}'
        )
    return gallery, labels, as_mask(mask, labels.shape, 'gallery_mask')


def _check_shapes(slices, rows, gallery):
    if rows.shape != slices.shape[:1]:
        raise ValueError(f'expected rows of shape {slices.shape[:1]}, found {rows.shape}')
    if not len(slices) or not len(gallery):
        raise ValueError(f'expected at least one row, found {len(slices)} and {len(gallery)}')
    if gallery.shape[1:] != slices.shape[1:]:
        raise ValueError(
            f'expected gallery rows shaped like the anchors {slices.shape[1:]}, found '
            f'{gallery.shape[1:]}'
        )
