"""Which device computes what: devices exchange the slices of the global batch.

Slices are the leading axis of all arrays here, because the loss of one slice is mapped over them.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtdml_jax.loss.arguments import AxisName, of_one_type


class Share(NamedTuple):
    """The share of one device: T of the S slices, and some or all of the global batch's G rows.

    Attributes:
      anchors: the anchors of this device, [T, N, D].
      labels: classes of the anchors, int [N].
      mask: False for anchors that do not count, bool [N].
      weights: weights of the anchors, [N].
      rows: the gallery row of each anchor, int [N].
      gallery: the rows that mining chooses from, [T, G, D].
      gallery_labels: classes of the gallery's rows, int [G].
      gallery_mask: False for rows that no anchor may choose, bool [G].
      first_slice: number of the first of the T slices.
    """

    anchors: jax.Array
    labels: jax.Array
    mask: jax.Array
    weights: jax.Array
    rows: jax.Array
    gallery: jax.Array
    gallery_labels: jax.Array
    gallery_mask: jax.Array
    first_slice: jax.Array | int


def swaps_slices(num_slices: int, axis_name: AxisName | None) -> bool:
    """Whether devices swap slices for rows, so that each device computes some slices of all rows.

    If the number of devices n divides the number of slices, an all-to-all sends the rows of its slices
    to every device. It moves 1/n of the bytes that an all-gather of all embeddings would move.
    Otherwise every device gathers all rows and computes the loss of its own anchors.
    """
    return axis_name is not None and num_slices % jax.lax.axis_size(axis_name) == 0


def share_out(
    slices: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    weights: jax.Array,
    axis_name: AxisName | None,
) -> Share:
    """Returns the share of this device; gradients flow back to the rows of all devices.

    Args:
      slices: slices of the device's rows, [S, B, D].
      labels: int [B].
      mask: bool [B].
      weights: [B].
      axis_name: mapped axis over whose devices the batch is spread; None for one device.
    """
    rows = jnp.arange(labels.shape[0], dtype=jnp.int32)
    if axis_name is None:
        return Share(slices, labels, mask, weights, rows, slices, labels, mask, 0)
    # The exchange passes gradients on: anchors of other devices pull on the rows of this device.
    gather = partial(jax.lax.all_gather, axis_name=axis_name, tiled=True)
    device = jax.lax.axis_index(axis_name)
    all_labels, all_mask = gather(labels), gather(mask)
    if swaps_slices(slices.shape[0], axis_name):
        rows = jnp.arange(all_labels.shape[0], dtype=jnp.int32)
        own = jax.lax.all_to_all(slices, axis_name, split_axis=0, concat_axis=1, tiled=True)
        anchors = own, all_labels, all_mask, gather(weights), rows
        return Share(*anchors, own, all_labels, all_mask, device * own.shape[0])
    rows += device * labels.shape[0]
    gallery = gather(slices, axis=1)
    return Share(slices, labels, mask, weights, rows, gallery, all_labels, all_mask, 0)


def add_memory(share: Share, slices: jax.Array, labels: jax.Array, mask: jax.Array) -> Share:
    """Appends rows of all slices [S, M, D] to the gallery of a share; these rows get no gradient."""
    own = jax.lax.dynamic_slice_in_dim(slices, share.first_slice, share.gallery.shape[0])
    own = jax.lax.stop_gradient(own).astype(share.gallery.dtype)
    return share._replace(
        gallery=jnp.concatenate([share.gallery, own], axis=1),
        gallery_labels=jnp.concatenate(of_one_type(share.gallery_labels, labels)),
        gallery_mask=jnp.concatenate([share.gallery_mask, mask]),
    )


def sum_shares(
    x: jax.Array, share: Share, num_slices: int, axis_name: AxisName | None
) -> jax.Array:
    """Turns sums [..., T] of each device's share into sums [..., S] of the global batch."""
    if axis_name is None:
        return x
    if swaps_slices(num_slices, axis_name):
        everywhere = jnp.zeros((*x.shape[:-1], num_slices), x.dtype)
        x = jax.lax.dynamic_update_slice_in_dim(everywhere, x, share.first_slice, axis=-1)
    return jax.lax.psum(x, axis_name)


def return_to_rows(x: jax.Array, num_slices: int, axis_name: AxisName | None) -> jax.Array:
    """Turns values [T, N] of the share's anchors into values [S, B] of the device's own rows."""
    if not swaps_slices(num_slices, axis_name):
        return x
    return jax.lax.all_to_all(x, axis_name, split_axis=1, concat_axis=0, tiled=True)
