"""Triplet losses of distances, and what the triplets of one slice add to the loss."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mtdml_jax.loss.arguments import Arrays, as_array, as_floating, as_number, check_within, known
from mtdml_jax.loss.distances import Distance, paired_distance
from mtdml_jax.loss.mining import Triplets
from mtdml_jax.loss.tiles import map_tiles

# Mining 'all' computes the losses of this many triplets at a time: 16 MiB.
_BLOCK_ENTRIES = 2**22


class TripletTerms(NamedTuple):
    """Sums over the triplets of each anchor of one slice, [N]; 0 for anchors without a triplet.

    Attributes:
      loss: losses.
      active_loss: losses of the triplets that violate their threshold.
      active: number of triplets that violate their threshold.
      incomplete: number of triplets that keep their threshold on the side a-n and violate it on the side
        p-n.
      positive_distance: distances of the anchor to the positives.
      negative_distance: distances of the anchor to the negatives.
      triplets: number of triplets.
    """

    loss: jax.Array
    active_loss: jax.Array
    active: jax.Array
    incomplete: jax.Array
    positive_distance: jax.Array
    negative_distance: jax.Array
    triplets: jax.Array


def triplet_loss(
    d_ap: Arrays, d_an: Arrays, threshold: Arrays, *, softness: ArrayLike = 0.0
) -> jax.Array:
    """Triplet loss, elementwise: [D(a, p) - D(a, n) + threshold]_+.

    Args:
      d_ap: distances of anchors to positives, any shape.
      d_an: distances of anchors to negatives, same shape.
      threshold: the margin that a triplet must keep, broadcastable, in units of the distance.
      softness: 0 for the hinge [x]_+; above 0 for softness * log(1 + exp(x / softness)), which weights
        a triplet by its distance to the threshold instead of switching it on and off. In units of the
        distance; a Python number.

    Returns:
      Losses, not reduced.

    Raises:
      ValueError: softness is below 0, or an argument is not an array of numbers.

    Examples:
      Two triplets with the same positive distance; the first keeps the threshold, the second does not:

      >>> import mtdml_jax as mt
      >>> mt.triplet_loss(d_ap=[0.5, 0.5], d_an=[1.5, 0.75], threshold=0.75).tolist()
      [0.0, 0.5]

    References:
      Schroff et al., "FaceNet", CVPR 2015. Hermans et al., "In defense of the triplet loss", 2017.
    """
    sides = as_array(d_ap, 'd_ap'), as_array(d_an, 'd_an'), as_array(threshold, 'threshold')
    return _triplet_loss(*sides, as_softness(softness))


def dual_triplet_loss(
    d_ap: Arrays,
    d_an: Arrays,
    d_pn: Arrays,
    threshold: Arrays,
    *,
    softness: ArrayLike = 0.0,
) -> jax.Array:
    """Dual triplet loss, elementwise: it compares the positive pair with the negative from both ends.

        1/2 ( [D(a, p) - D(a, n) + threshold]_+  +  [D(a, p) - D(p, n) + threshold]_+ )

    The ordinary triplet loss ignores the side p-n ("incomplete judgements"). The formula is our
    reconstruction of the paper's dual loss; the factor 1/2 keeps the scale of the ordinary loss.

    Args:
      d_ap: distances of anchors to positives, any shape.
      d_an: distances of anchors to negatives, same shape.
      d_pn: distances of the positives to the same negatives, same shape.
      threshold: the margin that a triplet must keep, broadcastable, in units of the distance.
      softness: see `triplet_loss`.

    Returns:
      Losses, not reduced.

    Raises:
      ValueError: softness is below 0, or an argument is not an array of numbers.

    Examples:
      The anchor is far enough from the negative, and the positive is not:

      >>> import mtdml_jax as mt
      >>> mt.triplet_loss(d_ap=0.5, d_an=1.5, threshold=0.75).item()
      0.0
      >>> mt.dual_triplet_loss(d_ap=0.5, d_an=1.5, d_pn=0.75, threshold=0.75).item()
      0.25

    References:
      Yang et al., Pattern Recognition 156, 110711, 2024.
    """
    distances = as_array(d_ap, 'd_ap'), as_array(d_an, 'd_an'), as_array(d_pn, 'd_pn')
    return _dual_triplet_loss(*distances, as_array(threshold, 'threshold'), as_softness(softness))


def as_softness(softness: ArrayLike) -> jax.Array | None:
    """Returns the softness of the hinge as an array, or None if it is known to be 0.

    Raises:
      ValueError: the softness is no number, or is known to be below 0.
    """
    found = as_number(softness, 'softness')
    check_within(softness, 0, jnp.inf, 'softness')
    return None if known(softness) == 0 else found


def _broadcast(*arrays):
    shape = jnp.broadcast_shapes(*(x.shape for x in arrays))
    return [jnp.broadcast_to(x, shape) for x in arrays]


@partial(jax.jit, inline=True)
def _triplet_loss(d_ap, d_an, threshold, softness):
    d_ap, d_an, threshold = _broadcast(d_ap, d_an, threshold)
    return _hinge(d_ap - d_an + threshold, softness)


@partial(jax.jit, inline=True)
def _dual_triplet_loss(d_ap, d_an, d_pn, threshold, softness):
    d_ap, d_an, d_pn, threshold = _broadcast(d_ap, d_an, d_pn, threshold)
    return _mean_of_sides(d_ap - d_an + threshold, d_ap - d_pn + threshold, softness)


def _hinge(x, softness):
    """Returns the hinge of `x`; the smooth one where the softness, a number or None, is above 0."""
    if softness is None:
        return jax.nn.relu(x)
    x = as_floating(x)
    softness = softness.astype(x.dtype)
    is_soft = softness > 0
    softness = jnp.where(is_soft, softness, 1)
    return jnp.where(is_soft, softness * jax.nn.softplus(x / softness), jax.nn.relu(x))


def _mean_of_sides(anchor_side, positive_side, softness):
    return 0.5 * (_hinge(anchor_side, softness) + _hinge(positive_side, softness))


def mined_terms(
    anchors: jax.Array,
    gallery: jax.Array,
    triplets: Triplets,
    threshold: jax.Array,
    *,
    distance: Distance,
    dual: bool,
    softness: jax.Array | None,
) -> TripletTerms:
    """Terms of the mined triplets of one slice, one triplet for each anchor.

    A pure function of the arrays of one slice: `jax.vmap` maps it over slices and thresholds. The
    backward pass adds the gradients of the chosen rows to the gallery; the distances of mining have no
    gradient.

    Args:
      anchors: unit vectors, [N, D].
      gallery: unit vectors, [G, D], that hold the positives and negatives.
      triplets: mined rows of the gallery, [N].
      threshold: the threshold of the slice, a scalar in units of the distance.
      distance: one of `DISTANCES`.
      dual: whether the loss is the dual one.
      softness: see `triplet_loss`; None for 0.
    """
    positive, negative = gallery[triplets.positive], gallery[triplets.negative]
    d_ap = paired_distance(anchors, positive, distance)
    d_an = paired_distance(anchors, negative, distance)
    d_pn = paired_distance(positive, negative, distance)
    anchor_side, positive_side = d_ap - d_an + threshold, d_ap - d_pn + threshold
    active = anchor_side > 0
    incomplete = (positive_side > 0) & ~active
    if dual:
        active |= positive_side > 0
        loss = _mean_of_sides(anchor_side, positive_side, softness)
    else:
        loss = _hinge(anchor_side, softness)
    active_loss = jnp.where(active, loss, 0)
    terms = TripletTerms(
        loss, active_loss, active, incomplete, d_ap, d_an, triplets=jnp.ones_like(loss)
    )
    return TripletTerms(*(jnp.where(triplets.valid, x.astype(loss.dtype), 0) for x in terms))


def all_terms(
    anchors: jax.Array,
    gallery: jax.Array,
    threshold: jax.Array,
    *,
    labels: jax.Array,
    rows: jax.Array,
    mask: jax.Array,
    gallery_labels: jax.Array,
    gallery_mask: jax.Array,
    distance: Distance,
    softness: jax.Array | None,
) -> TripletTerms:
    """Terms of every triplet of one slice, a block of triplets at a time.

    The backward pass computes the blocks again instead of storing them. Memory is that of one block, so
    slices are mapped one after the other (`jax.lax.map`) and not vmapped.

    Args:
      anchors: unit vectors, [N, D].
      gallery: unit vectors, [G, D].
      threshold: the threshold of the slice, a scalar.
      labels: class of each anchor, int [N].
      rows: the gallery row of each anchor, int [N].
      mask: False for anchors that do not count, bool [N].
      gallery_labels: class of each gallery row, int [G].
      gallery_mask: False for rows that do not count, bool [G].
      distance: one of `DISTANCES`.
      softness: see `triplet_loss`; None for 0.
    """
    size = gallery.shape[0]
    if isinstance(size, int):
        positives_at_a_time = max(1, min(size, _BLOCK_ENTRIES // size))
        anchors_at_a_time = max(1, _BLOCK_ENTRIES // (size * positives_at_a_time))
    else:
        positives_at_a_time, anchors_at_a_time = 64, 1  # The size is symbolic.

    def anchor_terms(anchor, label, row, counts):
        distances = paired_distance(anchor[None], gallery, distance)
        others = gallery_mask & counts & (jnp.arange(size, dtype=row.dtype) != row)
        is_positive = others & (gallery_labels == label)
        is_negative = others & (gallery_labels != label)

        def positive_terms(d_ap, is_positive):
            counted = is_positive & is_negative
            side = d_ap - distances + threshold
            losses, active = _hinge(side, softness), counted & (side > 0)
            return tuple(
                jnp.sum(jnp.where(where, x, 0))
                for where, x in ((counted, losses), (active, losses), (active, jnp.ones_like(side)))
            )

        each = _map_rows(positive_terms, (distances, is_positive), positives_at_a_time)
        loss, active_loss, active = (jnp.sum(x) for x in each)
        num_positives, num_negatives = (
            jnp.sum(x).astype(distances.dtype) for x in (is_positive, is_negative)
        )
        return TripletTerms(
            loss,
            active_loss,
            active,
            # The other end of every positive pair is an anchor too.
            incomplete=jnp.zeros_like(active),
            positive_distance=num_negatives * jnp.sum(jnp.where(is_positive, distances, 0)),
            negative_distance=num_positives * jnp.sum(jnp.where(is_negative, distances, 0)),
            triplets=num_positives * num_negatives,
        )

    return _map_rows(anchor_terms, (anchors, labels, rows, mask), anchors_at_a_time)


def _map_rows(function, arrays, batch_size):
    """Maps `function` over rows, `batch_size` at a time; the backward pass stores the rows alone."""
    function = jax.vmap(jax.checkpoint(function))
    return map_tiles(lambda rows: function(*rows), arrays, batch_size)
