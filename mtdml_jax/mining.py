"""Batch-hard mining: for every anchor the farthest positive and the nearest negative, per slice."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtdml_jax.slicing import at_least_float32


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


def mine_batch_hard(
    slices: jax.Array,
    labels: jax.Array,
    *,
    gallery: jax.Array | None = None,
    gallery_labels: jax.Array | None = None,
    gallery_mask: jax.Array | None = None,
    rows: jax.Array | None = None,
    mask: jax.Array | None = None,
    tile: int | None = None,
) -> Triplets:
    """The hardest positive and the hardest negative of every anchor, in each slice by itself.

    positive(a) = argmax_{p != a, y_p = y_a} D(a, p),  negative(a) = argmin_{y_n != y_a} D(a, n)

    Ties go to the lowest row. No gradient flows through the choice. Works on any vectors, of unit
    length or not, under jit, vmap, pmap and shard_map.

    Args:
      slices: anchors, shape [B, S, D], or [B, D] for one slice.
      labels: class of each anchor, int [B].
      gallery: vectors to choose from, shape [G, S, D] or [G, D]; by default the anchors themselves.
      gallery_labels: class of each gallery row, int [G]; goes with gallery.
      gallery_mask: bool [G], False for rows that nobody may choose; goes with gallery.
      rows: int [B], the gallery row that holds each anchor itself and that it may not choose; by
        default row i for anchor i without a gallery, and none with one.
      mask: bool [B], False for anchors (and, without a gallery, rows) that take part in nothing.
      tile: anchors compared at a time; bounds memory at O(S * tile * G). By default all of them.

    Returns:
      Triplets with rows of shape [S, B], or [B] for one slice.

    Raises:
      ValueError: shapes that do not fit each other.
    """
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
    elif gallery.ndim == 2:
        gallery = gallery[:, None]
    rows = jnp.full(labels.shape, -1) if rows is None else rows
    _check_shapes(sliced, rows, gallery, gallery_labels)
    gallery_mask = as_mask(gallery_mask, gallery_labels.shape, 'gallery_mask')
    mine_slice = partial(
        _mine_slice,
        labels=labels,
        gallery_labels=gallery_labels,
        gallery_mask=gallery_mask,
        rows=rows,
        tile=tile or len(labels),
    )
    sliced, gallery = jax.lax.stop_gradient((at_least_float32(sliced), at_least_float32(gallery)))
    positive, negative, valid = jax.vmap(mine_slice, in_axes=1)(sliced, gallery)
    triplets = Triplets(positive, negative, valid & mask)
    return triplets if slices.ndim == 3 else jax.tree.map(lambda x: x[0], triplets)


def _mine_slice(anchors, gallery, *, labels, gallery_labels, gallery_mask, rows, tile):
    """Triplets of one slice: anchors [B, D], gallery [G, D]."""
    squared_norms = jnp.sum(jnp.square(gallery), axis=-1)

    def mine_anchor(anchor_label_row):
        anchor, label, row = anchor_label_row
        # |a - g|^2 without |a|^2, which is the same for all. Full precision: a TPU's default product
        # of bfloat16 terms would choose other rows.
        distances = squared_norms - 2.0 * jnp.matmul(gallery, anchor, precision='highest')
        same_class = gallery_labels == label
        is_positive = same_class & gallery_mask & (jnp.arange(len(gallery)) != row)
        is_negative = ~same_class & gallery_mask
        positive = jnp.argmax(jnp.where(is_positive, distances, -jnp.inf))
        negative = jnp.argmin(jnp.where(is_negative, distances, jnp.inf))
        valid = jnp.any(is_positive) & jnp.any(is_negative)
        return positive.astype(jnp.int32), negative.astype(jnp.int32), valid

    return jax.lax.map(mine_anchor, (anchors, labels, rows), batch_size=tile)


def as_mask(mask: jax.Array | None, shape: tuple[int, ...], name: str = 'mask') -> jax.Array:
    """`mask` as booleans of that shape (True for None); raises ValueError for another shape."""
    if mask is None:
        return jnp.ones(shape, bool)
    if jnp.shape(mask) != shape:
        raise ValueError(f'expected {name} of shape {shape}, found {jnp.shape(mask)}')
    return jnp.asarray(mask, bool)


def _check_shapes(slices, rows, gallery, gallery_labels):
    if rows.shape != slices.shape[:1]:
        raise ValueError(f'expected rows of shape {slices.shape[:1]}, found {rows.shape}')
    if gallery_labels is None or gallery_labels.shape != gallery.shape[:1]:
        found = None if gallery_labels is None else gallery_labels.shape
        raise ValueError(
            f'expected gallery_labels of shape {gallery.shape[:1]} with the gallery, found {found}'
        )
    if gallery.shape[1:] != slices.shape[1:]:
        raise ValueError(
            f'expected gallery rows shaped like the anchors {slices.shape[1:]}, found '
            f'{gallery.shape[1:]}'
        )
