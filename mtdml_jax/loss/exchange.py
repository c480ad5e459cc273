"""Which device judges what: the slices of the global batch, exchanged between devices."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Share(NamedTuple):
    """One device's share of the S slices of the global batch's G rows.

    Attributes:
      anchors: the anchors to judge, [N, T, D].
      labels: their classes, int [N].
      mask: False for anchors that do not count, bool [N].
      weights: their weights, [N].
      rows: the gallery row of each anchor, int [N].
      gallery: the rows to choose from, [G, T, D].
      gallery_labels: their classes, int [G].
      gallery_mask: False for rows that nobody may choose, bool [G].
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


def swaps_slices(num_slices: int, axis_name: str | None) -> bool:
    """Whether devices swap slices for rows: each then judges some of the slices of all rows.

    Where the number of devices n divides the number of slices, an all-to-all sends every device the
    rows of its slices, which moves 1/n of the bytes of an all-gather of everything. Otherwise every
    device gathers all rows and judges its own.
    """
    return axis_name is not None and num_slices % jax.lax.axis_size(axis_name) == 0


def share_out(
    slices: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    weights: jax.Array,
    axis_name: str | None,
) -> Share:
    """This device's share; gradients flow back to the rows of all devices.

    Args:
      slices: the device's rows, [B, S, D].
      labels: int [B].
      mask: bool [B].
      weights: [B].
      axis_name: mapped axis over whose devices the batch is spread; None for one device.
    """
    rows = jnp.arange(len(labels))
    if axis_name is None:
        return Share(slices, labels, mask, weights, rows, slices, labels, mask, 0)
    # No stop_gradient on the exchanged slices: other devices' anchors pull on this device's rows.
    gather = partial(jax.lax.all_gather, axis_name=axis_name, tiled=True)
    device = jax.lax.axis_index(axis_name)
    all_labels, all_mask = gather(labels), gather(mask)
    if swaps_slices(slices.shape[1], axis_name):
        rows = jnp.arange(len(all_labels))
        own = jax.lax.all_to_all(slices, axis_name, split_axis=1, concat_axis=0, tiled=True)
        anchors = own, all_labels, all_mask, gather(weights), rows
        return Share(*anchors, own, all_labels, all_mask, device * own.shape[1])
    rows += device * len(labels)
    return Share(slices, labels, mask, weights, rows, gather(slices), all_labels, all_mask, 0)


def add_memory(share: Share, slices: jax.Array, labels: jax.Array, mask: jax.Array) -> Share:
    """The share with rows of all slices [M, S, D] behind its gallery, which take no gradient."""
    num_slices = share.gallery.shape[1]
    own = jax.lax.dynamic_slice_in_dim(slices, share.first_slice, num_slices, axis=1)
    own = jax.lax.stop_gradient(own).astype(share.gallery.dtype)
    return share._replace(
        gallery=jnp.concatenate([share.gallery, own]),
        gallery_labels=jnp.concatenate(
            [share.gallery_labels, labels.astype(share.gallery_labels.dtype)]
        ),
        gallery_mask=jnp.concatenate([share.gallery_mask, mask]),
    )


def sum_shares(x: jax.Array, share: Share, num_slices: int, axis_name: str | None) -> jax.Array:
    """Sums [..., T] of the devices' shares -> sums [..., S] of the global batch, on all devices."""
    if axis_name is None:
        return x
    if swaps_slices(num_slices, axis_name):
        everywhere = jnp.zeros((*x.shape[:-1], num_slices), x.dtype)
        x = jax.lax.dynamic_update_slice_in_dim(everywhere, x, share.first_slice, axis=-1)
    return jax.lax.psum(x, axis_name)


def return_to_rows(x: jax.Array, num_slices: int, axis_name: str | None) -> jax.Array:
    """Values [T, N] of the share's anchors -> values [S, B] of the device's own rows."""
    if not swaps_slices(num_slices, axis_name):
        return x
    return jax.lax.all_to_all(x, axis_name, split_axis=1, concat_axis=0, tiled=True)
