"""Triplet losses: elementwise, and summed over the triplets of each anchor, mined ones or all."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mtdml_jax.loss.arguments import as_array
from mtdml_jax.loss.distances import paired_distance
from mtdml_jax.loss.exchange import Share
from mtdml_jax.loss.mining import Triplets

# Triplets judged at a time by mining 'all': 16 MiB.
_BLOCK_ENTRIES = 2**22


class Judged(NamedTuple):
    """Sums over the triplets of each anchor in each slice, [T, N]; 0 for anchors without any."""

    loss: jax.Array
    active_loss: jax.Array  # of the triplets that violate their threshold
    active: jax.Array  # their number
    incomplete: jax.Array  # those that keep it on the side a-n and violate it on the side p-n
    positive_distance: jax.Array
    negative_distance: jax.Array
    triplets: jax.Array  # number of triplets


def triplet_loss(
    d_ap: ArrayLike, d_an: ArrayLike, threshold: ArrayLike, *, softness: float = 0.0
) -> jax.Array:
    """Triplet loss, elementwise: [D(a, p) - D(a, n) + threshold]_+.

    Args:
      d_ap: distances of anchors to positives, any shape.
      d_an: distances of anchors to negatives, same shape.
      threshold: the margin that a triplet must keep, broadcastable, in units of the distance.
      softness: 0 for the hinge [x]_+; above 0 for softness * log(1 + exp(x / softness)), which
        weighs a triplet by how far it is from its threshold instead of switching it on and off. In
        units of the distance; a Python number.

    Returns:
      Losses, unreduced.

    Raises:
      ValueError: a softness below 0.

    References:
      Schroff et al., "FaceNet", CVPR 2015. Hermans et al., "In defense of the triplet loss", 2017.
    """
    d_ap, d_an = as_array(d_ap, 'd_ap'), as_array(d_an, 'the distances to negatives')
    return _hinge(d_ap - d_an + as_array(threshold, 'threshold'), softness)


def dual_triplet_loss(
    d_ap: ArrayLike,
    d_an: ArrayLike,
    d_pn: ArrayLike,
    threshold: ArrayLike,
    *,
    softness: float = 0.0,
) -> jax.Array:
    """Dual triplet loss, elementwise: the positive pair is judged from both of its ends.

        1/2 ( [D(a, p) - D(a, n) + threshold]_+  +  [D(a, p) - D(p, n) + threshold]_+ )

    The ordinary triplet loss never judges the side p-n ("incomplete judgements"). The formula is our
    reconstruction of the paper's dual loss; the 1/2 keeps the scale of the ordinary loss.

    Args:
      d_ap: distances of anchors to positives, any shape.
      d_an: distances of anchors to negatives, same shape.
      d_pn: distances of the positives to the same negatives, same shape.
      threshold: the margin that a triplet must keep, broadcastable, in units of the distance.
      softness: as in `triplet_loss`.

    Returns:
      Losses, unreduced.

    References:
      Yang et al., Pattern Recognition 156, 110711, 2024.
    """
    anchor_side = triplet_loss(d_ap, d_an, threshold, softness=softness)
    return 0.5 * (anchor_side + triplet_loss(d_ap, d_pn, threshold, softness=softness))


def _hinge(x, softness):
    if softness < 0:
        raise ValueError(f'expected softness from 0 to inf, found {softness}')
    return softness * jax.nn.softplus(x / softness) if softness else jax.nn.relu(x)


def judge_mined(
    share: Share,
    triplets: Triplets,
    thresholds: jax.Array,
    distance: str,
    dual: bool,
    softness: float,
) -> Judged:
    """One triplet an anchor: backward scatters the chosen rows, similarities carry no gradient."""
    slice_numbers = jnp.arange(share.gallery.shape[1])
    positive = share.gallery[triplets.positive.T, slice_numbers]
    negative = share.gallery[triplets.negative.T, slice_numbers]
    d_ap = paired_distance(share.anchors, positive, distance).T
    d_an = paired_distance(share.anchors, negative, distance).T
    thresholds = thresholds[:, None]
    d_pn = paired_distance(positive, negative, distance).T
    active, other_side = (d_ap - d + thresholds > 0 for d in (d_an, d_pn))
    incomplete = other_side & ~active
    if dual:
        active |= other_side
        losses = dual_triplet_loss(d_ap, d_an, d_pn, thresholds, softness=softness)
    else:
        losses = triplet_loss(d_ap, d_an, thresholds, softness=softness)
    valid = triplets.valid
    active_losses, ones = jnp.where(active, losses, 0), jnp.ones_like(losses)
    sums = Judged(losses, active_losses, active, incomplete, d_ap, d_an, ones)
    return Judged(*(jnp.where(valid, x, 0) for x in sums))


def judge_all(share: Share, thresholds: jax.Array, distance: str, softness: float) -> Judged:
    """Every triplet, a block at a time; backward judges the blocks again instead of keeping them."""
    size = len(share.gallery)
    positives_at_a_time = max(1, min(size, _BLOCK_ENTRIES // size))
    anchors_at_a_time = max(1, _BLOCK_ENTRIES // (size * positives_at_a_time))

    def judge_anchor(anchor, label, row, counts, *, gallery, threshold):
        distances = paired_distance(anchor, gallery, distance)
        same_class = share.gallery_labels == label
        others = share.gallery_mask & counts & (jnp.arange(size) != row)
        is_positive, is_negative = others & same_class, others & ~same_class

        def judge_positive(d_ap, is_positive):
            counted = is_positive & is_negative
            losses = triplet_loss(d_ap, distances, threshold, softness=softness)
            active = counted & (d_ap - distances + threshold > 0)
            return tuple(
                jnp.sum(jnp.where(where, x, 0))
                for where, x in ((counted, losses), (active, losses), (active, 1.0))
            )

        each = _map(judge_positive, (distances, is_positive), positives_at_a_time)
        loss, active_loss, active = (jnp.sum(x) for x in each)
        num_positives, num_negatives = jnp.sum(is_positive), jnp.sum(is_negative)
        return Judged(
            loss,
            active_loss,
            active,
            jnp.zeros_like(active),  # The other end of every positive pair is an anchor too.
            num_negatives * jnp.sum(jnp.where(is_positive, distances, 0)),
            num_positives * jnp.sum(jnp.where(is_negative, distances, 0)),
            (num_positives * num_negatives).astype(distances.dtype),
        )

    def judge_slice(slice_of_all):
        anchors, gallery, threshold = slice_of_all
        judge = partial(judge_anchor, gallery=gallery, threshold=threshold)
        rows = anchors, share.labels, share.rows, share.mask
        return _map(judge, rows, anchors_at_a_time)

    by_slice = (jnp.swapaxes(x, 0, 1) for x in (share.anchors, share.gallery))
    return jax.lax.map(judge_slice, (*by_slice, thresholds))


def _map(function, arrays, batch_size):
    """`function` of each row, `batch_size` at a time; backward keeps the rows and nothing more."""
    function = jax.checkpoint(function)
    return jax.lax.map(lambda row: function(*row), arrays, batch_size=batch_size)
