"""Batch-hard mining and softer minings: one positive and one negative for each anchor of a slice."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import export
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from mtdml_jax.loss.arguments import (
    Arrays,
    as_array,
    as_labels,
    as_mask,
    as_number,
    at_least_float32,
    check_within,
    everywhere_if_none,
    of_one_type,
)
from mtdml_jax.loss.meshes import find_layout
from mtdml_jax.loss.tiles import in_blocks, map_tiles, with_tile_of_device

# The names in `PAIR_MININGS` that come with the package.
PairMining: TypeAlias = Literal['hard', 'semihard', 'quantile']
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


export.register_namedtuple_serialization(Triplets, serialized_name='mtdml_jax.Triplets')


def check_mining(mining: str, minings: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    """Returns the mining of that name; raises ValueError unless it is one of `minings`."""
    if not isinstance(mining, str) or mining not in minings:
        raise ValueError(f'expected mining to be one of {tuple(minings)}, found {mining!r}')
    return minings[mining]


def as_quantile(quantile: ArrayLike) -> jax.Array:
    """Returns the quantile as an array; raises ValueError unless it is a number from 0 to 1."""
    found = as_number(quantile, 'quantile')
    check_within(quantile, 0, 1, 'quantile')
    return at_least_float32(found)


def mine_batch_hard(
    slices: Arrays,
    labels: Arrays,
    *,
    mining: PairMining = 'hard',
    quantile: ArrayLike = 0.25,
    gallery: Arrays | None = None,
    gallery_labels: Arrays | None = None,
    gallery_mask: Arrays | None = None,
    rows: Arrays | None = None,
    mask: Arrays | None = None,
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

    Examples:
      >>> import mtdml_jax as mt
      >>> points_on_a_line, labels = [[0], [1], [3], [4], [6]], [0, 0, 0, 1, 1]
      >>> triplets = mt.mine_batch_hard(points_on_a_line, labels)
      >>> triplets.positive.tolist()  # The farthest row of the same class.
      [2, 2, 0, 4, 3]
      >>> triplets.negative.tolist()  # The nearest row of another class.
      [3, 3, 3, 2, 2]

    References:
      Hermans et al., "In defense of the triplet loss", 2017 (batch hard). Schroff et al., "FaceNet",
      CVPR 2015 (semi-hard).
    """
    choose = check_mining(mining, PAIR_MININGS)
    slices, labels = as_array(slices, 'slices'), as_labels(labels)
    if slices.ndim not in (2, 3) or labels.shape != slices.shape[:1]:
        raise ValueError(
            f'expected slices of shape [B, S, D] or [B, D] and labels of shape [B], found '
            f'{slices.shape} and {labels.shape}'
        )
    mask = as_mask(mask, labels.shape)
    if gallery is None and (gallery_labels is not None or gallery_mask is not None):
        raise ValueError('found gallery_labels or gallery_mask without a gallery')
    choices = (
        None if gallery is None else _as_gallery(gallery, gallery_labels, gallery_mask, slices)
    )
    rows = None if rows is None else as_labels(rows, 'rows')
    if rows is not None and rows.shape != labels.shape:
        raise ValueError(f'expected rows of shape {labels.shape}, found {rows.shape}')
    if labels.shape == (0,):
        raise ValueError('expected at least one row, found none')
    return _mine_rows(
        Anchors(slices, labels, rows, mask),
        choices,
        as_quantile(quantile),
        choose=choose,
        tile=tile,
    )


class Anchors(NamedTuple):
    """The anchors of `mine_batch_hard`: its arguments as arrays, or None."""

    slices: jax.Array
    labels: jax.Array
    rows: jax.Array | None
    mask: jax.Array | None


class Gallery(NamedTuple):
    """The gallery of `mine_batch_hard`: its arguments as arrays, or None."""

    slices: jax.Array
    labels: jax.Array
    mask: jax.Array | None


@partial(jax.jit, static_argnames=('choose', 'tile'), inline=True)
def _mine_rows(anchors, gallery, quantile, *, choose, tile):
    layout = find_layout(anchors, (gallery, quantile))
    count = anchors.labels.shape[0]
    rows = anchors.rows
    if rows is None:
        rows = jnp.arange(count) if gallery is None else jnp.full(count, -1)
    if gallery is None:
        gallery = Gallery(anchors.slices, anchors.labels, anchors.mask)
    of_anchors = anchors.labels, rows, everywhere_if_none(anchors.mask, count)
    of_gallery = gallery.labels, everywhere_if_none(gallery.mask, gallery.labels.shape[0])
    # Slices lead from here on.
    is_sliced = anchors.slices.ndim == 3
    vectors, choices = (
        jnp.swapaxes(x, 0, 1) if is_sliced else x[None] for x in (anchors.slices, gallery.slices)
    )
    # Devices take some slices of all rows, or if these do not go round, some anchors and all choices.
    by_slice, by_anchor = P(layout.axes or None), P(None, layout.axes or None)
    if vectors.shape[0] % layout.num_devices == 0:
        specs, found = (by_slice, by_slice, P(), P(), P()), by_slice
    else:
        specs, found = (by_anchor, P(), by_slice, P(), P()), by_anchor

    def mine(vectors, choices, of_anchors, of_gallery, quantile):
        (labels, rows, mask), (gallery_labels, gallery_mask) = of_anchors, of_gallery
        return mine_slices(
            vectors,
            labels,
            gallery=choices,
            gallery_labels=gallery_labels,
            gallery_mask=gallery_mask,
            rows=rows,
            mask=mask,
            choose=partial(choose, quantile=quantile),
            tile=tile,
        )

    arguments = vectors, choices, of_anchors, of_gallery, quantile
    triplets = layout.run(mine, arguments, specs, found)
    triplets = layout.place(triplets, by_anchor)
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
    choose: Callable[..., Triplets],
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
      choose: a function of `PAIR_MININGS` with its quantile.
      tile: number of anchors in a tile; None for the tile that suits the device.
    """
    by_slice = jax.lax.stop_gradient((at_least_float32(anchors), at_least_float32(gallery)))
    labels, gallery_labels = of_one_type(labels, gallery_labels)
    mine_slice = partial(
        _mine_slice,
        labels=labels,
        gallery_labels=gallery_labels,
        gallery_mask=gallery_mask,
        rows=rows,
        choose=choose,
    )

    def mine_one_by_one(anchors, gallery, *, tile):
        return jax.lax.map(lambda vectors: mine_slice(*vectors, tile=tile), (anchors, gallery))

    triplets = with_tile_of_device(mine_one_by_one, by_slice, tile)
    return triplets._replace(valid=triplets.valid & mask[None])


def _mine_slice(anchors, gallery, *, labels, gallery_labels, gallery_mask, rows, choose, tile):
    """Mines one slice: anchors [B, D], gallery [G, D]."""
    # One of the rows becomes the origin: |g|^2 - 2ag would cancel the differences of vectors that are
    # nearly equal. A row keeps whole numbers whole; the mean would not.
    origin = gallery[jnp.argmax(gallery_mask)][None]
    anchors, gallery = anchors - origin, gallery - origin
    squared_norms = jnp.sum(jnp.square(gallery), axis=-1)

    def mine_tile(tile_of_anchors):
        anchors, labels, rows = tile_of_anchors
        # |a - g|^2 without |a|^2, which is the same for all rows of a column, as [G, tile]: XLA
        # vectorises reductions over the leading axis. The product needs full precision: a TPU's default
        # product of bfloat16 terms would choose other rows.
        products = jnp.matmul(gallery, anchors.T, precision='highest')
        distances = squared_norms[:, None] - 2.0 * products
        same_class = gallery_labels[:, None] == labels[None]
        is_self = jnp.arange(gallery.shape[0], dtype=rows.dtype)[:, None] == rows[None]
        is_positive = same_class & gallery_mask[:, None] & ~is_self
        is_negative = ~same_class & gallery_mask[:, None]
        return choose(distances, is_positive, is_negative)

    return map_tiles(mine_tile, (anchors, labels, rows), tile)


def _hardest(distances, is_positive, is_negative, quantile):
    positive, _, has_positive = farthest(distances, is_positive)
    negative, _, has_negative = farthest(-distances, is_negative)
    return Triplets(positive, negative, has_positive & has_negative)


def _semihard(distances, is_positive, is_negative, quantile):
    positive, positive_distance, has_positive = farthest(distances, is_positive)
    # Not `distances > positive_distance`: a NaN must stay in and show in the loss.
    is_farther = ~(distances <= positive_distance[None])
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
    blocks = in_blocks(distances, _BLOCK_ROWS, fill=-jnp.inf)
    distances = blocks.reshape(-1, blocks.shape[2])
    # The barriers keep XLA from computing the maxima again inside the comparisons.
    of_blocks = jax.lax.optimization_barrier(jnp.max(blocks, axis=1))
    largest = jax.lax.optimization_barrier(jnp.max(of_blocks, axis=0))
    start = _BLOCK_ROWS * _first_row(of_blocks == largest[None])
    rows = start[None] + jnp.arange(_BLOCK_ROWS, dtype=jnp.int32)[:, None]
    of_rows = jnp.take_along_axis(distances, rows, axis=0, mode='promise_in_bounds')
    return start + _first_row(of_rows == largest[None]), largest, largest != -jnp.inf


def _farthest_but(distances, among, q):
    """Finds the row of rank floor(q (n - 1)) among the n distances that count, from the largest.

    It bisects the range of the numbers' bit patterns, one bit of the answer in each step. This is exact,
    and on a CPU hundreds of times faster than sorting the columns.
    """
    keys = jnp.where(among, _ordered_bits(distances), jnp.iinfo(_bits_type(distances)).min)
    rank = jnp.floor(q * (jnp.sum(among, axis=0) - 1).astype(q.dtype)).astype(jnp.int32)

    def bisect(_, bounds):
        # low <= answer < high. The mean of two integers without overflow.
        low, high = bounds
        middle = (low & high) + ((low ^ high) >> 1)
        enough = jnp.sum(keys >= middle[None], axis=0, dtype=jnp.int32) > rank
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    low, high = jnp.min(keys, axis=0), jnp.max(keys, axis=0) + 1
    answer, _ = jax.lax.fori_loop(0, jnp.iinfo(keys.dtype).bits, bisect, (low, high))
    return _first_row(among & (keys == answer[None]))


def _bits_type(x):
    return jnp.int64 if x.dtype == jnp.float64 else jnp.int32


def _ordered_bits(x):
    """Maps floating-point numbers to integers in the same order."""
    # -0.0 equals 0.0 and gets the same bits.
    bits = jax.lax.bitcast_convert_type(jnp.where(x == 0, 0.0, x), _bits_type(x))
    return jnp.where(bits < 0, bits ^ jnp.iinfo(bits.dtype).max, bits)


def _first_row(hit):
    """Returns the lowest row that is True in each column of [G, tile]; row 0 if none is."""
    count = hit.shape[0]
    rows = jnp.arange(count, dtype=jnp.int32)[:, None]
    return jnp.min(jnp.where(hit, rows, count), axis=0) % count


def _as_gallery(gallery, labels, mask, anchors):
    gallery = as_array(gallery, 'gallery')
    count = gallery.shape[:1]
    if gallery.shape[1:] != anchors.shape[1:] or not count:
        raise ValueError(
            f'expected gallery rows shaped like the anchors {anchors.shape[1:]}, found '
            f'{gallery.shape[1:]}'
        )
    if labels is None:
        raise ValueError(f'expected gallery_labels of shape {count} with the gallery, found None')
    labels = as_labels(labels, 'gallery_labels')
    if labels.shape != count:
        raise ValueError(
            f'expected gallery_labels of shape {count} with the gallery, found {labels.shape}'
        )
    if count == (0,):
        raise ValueError('expected at least one row in the gallery, found none')
    return Gallery(gallery, labels, as_mask(mask, count, 'gallery_mask'))
