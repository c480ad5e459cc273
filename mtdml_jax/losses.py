"""Triplet loss, dual triplet loss, and the multi-threshold loss over a sliced embedding."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtdml_jax.distances import check_distance, paired_distance
from mtdml_jax.mining import as_mask, mine_batch_hard
from mtdml_jax.slicing import split_slices

MININGS = ('hard',)
REDUCTIONS = ('mean', 'active_mean', 'none')


class LossAux(NamedTuple):
    """What happened in each slice; every field has shape [S].

    Attributes:
      loss: mean loss of the valid anchors.
      active_share: share of the valid anchors whose loss is above 0. At 1.0 the hinge never acts and
        the threshold has no influence on the gradient.
      positive_distance: mean distance of the valid anchors to their mined positives.
      negative_distance: mean distance of the valid anchors to their mined negatives.
      spread: root of the mean squared distance of the unit slices to their mean, from 0 (all
        embeddings are one point) to 1.
      num_valid: number of anchors that have a positive and a negative.
    """

    loss: jax.Array
    active_share: jax.Array
    positive_distance: jax.Array
    negative_distance: jax.Array
    spread: jax.Array
    num_valid: jax.Array


def triplet_loss(d_ap: jax.Array, d_an: jax.Array, threshold: jax.Array | float) -> jax.Array:
    """Triplet loss, elementwise: [D(a, p) - D(a, n) + threshold]_+.

    Args:
      d_ap: distances of anchors to positives, any shape.
      d_an: distances of anchors to negatives, same shape.
      threshold: the margin that a triplet must keep, broadcastable, in units of the distance.

    Returns:
      Losses, unreduced.

    References:
      Schroff et al., "FaceNet", CVPR 2015. Hermans et al., "In defense of the triplet loss", 2017.
    """
    return jax.nn.relu(d_ap - d_an + threshold)


def dual_triplet_loss(
    d_ap: jax.Array, d_an: jax.Array, d_pn: jax.Array, threshold: jax.Array | float
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

    Returns:
      Losses, unreduced.

    References:
      Yang et al., Pattern Recognition 156, 110711, 2024.
    """
    return 0.5 * (triplet_loss(d_ap, d_an, threshold) + triplet_loss(d_ap, d_pn, threshold))


def multi_threshold_loss(
    embeddings: jax.Array,
    labels: jax.Array,
    thresholds: jax.Array,
    *,
    distance: str = 'euclidean',
    dual: bool = True,
    mining: str = 'hard',
    mask: jax.Array | None = None,
    axis_name: str | None = None,
    reduction: str = 'mean',
) -> tuple[jax.Array, LossAux]:
    """Triplet losses of all slices of an embedding, each slice at its own threshold.

    The embedding is cut into as many slices as there are thresholds, every slice is normalised,
    mined and judged by itself:

      loss = 1/S sum_s 1/|V_s| sum_{a in V_s} l_s(a, p_s(a), n_s(a); threshold_s)

    with V_s the anchors that have a positive and a negative. Without any, loss and gradient are 0.

    With `axis_name` (inside pmap or shard_map) the rows of all devices are mined and averaged
    together: every device returns the loss of the global batch, and the mean of the devices'
    gradients (`jax.lax.pmean`) is the gradient that one device would get on that batch.

    Args:
      embeddings: array of embeddings, with shape [B, E], of any length (slices are normalised).
        bfloat16 and float16 are mined and summed in float32.
      labels: class of each row, int [B].
      thresholds: one threshold a slice, shape [S], in units of the distance; S must divide E.
      distance: 'euclidean' or 'squared_euclidean'.
      dual: the dual triplet loss instead of the ordinary one.
      mining: 'hard', the hardest positive and negative of each anchor.
      mask: bool [B], False for rows (padding) that take part in nothing.
      axis_name: name of the mapped axis over whose devices the batch is spread.
      reduction: 'mean' over the valid anchors, 'active_mean' over those with a loss above 0, both
        then over the slices; or 'none'.

    Returns:
      (loss, aux): a scalar, or [S, B] for reduction 'none' (0 at invalid anchors), and `LossAux`.

    Raises:
      ValueError: shapes that do not fit, or an unknown distance, mining or reduction.

    References:
      Yang et al., Pattern Recognition 156, 110711, 2024.
    """
    _check_arguments(embeddings, labels, thresholds, distance, mining, reduction)
    slices = split_slices(embeddings, len(thresholds))
    mask = as_mask(mask, labels.shape)
    gallery, gallery_labels, gallery_mask, rows = _gather_gallery(slices, labels, mask, axis_name)

    triplets = mine_batch_hard(
        slices,
        labels,
        gallery=gallery,
        gallery_labels=gallery_labels,
        gallery_mask=gallery_mask,
        rows=rows,
        mask=mask,
    )
    # [S, B] of triplets picks [S, B, D] from a gallery seen as [S, G, D]: backward is a scatter of
    # O(B * E), the S * B * G similarities carry no gradient.
    choose = jax.vmap(lambda vectors, chosen: vectors[chosen], in_axes=(1, 0))
    anchor = jnp.swapaxes(slices, 0, 1)
    positive, negative = choose(gallery, triplets.positive), choose(gallery, triplets.negative)
    d_ap = paired_distance(anchor, positive, distance)
    d_an = paired_distance(anchor, negative, distance)
    thresholds = jnp.asarray(thresholds, slices.dtype)
    if dual:
        d_pn = paired_distance(positive, negative, distance)
        slice_loss = jax.vmap(dual_triplet_loss)(d_ap, d_an, d_pn, thresholds)
    else:
        slice_loss = jax.vmap(triplet_loss)(d_ap, d_an, thresholds)
    losses = jnp.where(triplets.valid, slice_loss, 0.0)

    active = losses > 0
    mean = partial(global_mean, axis_name=axis_name)
    aux = LossAux(
        loss=mean(losses, triplets.valid),
        active_share=mean(active, triplets.valid),
        positive_distance=mean(d_ap, triplets.valid),
        negative_distance=mean(d_an, triplets.valid),
        spread=_spread(slices, mask, axis_name),
        num_valid=_global_sum(triplets.valid, axis_name),
    )
    if reduction == 'none':
        return losses, jax.lax.stop_gradient(aux)
    per_slice = aux.loss if reduction == 'mean' else mean(losses, active)
    return jnp.mean(per_slice), jax.lax.stop_gradient(aux)


def _gather_gallery(slices, labels, mask, axis_name):
    """The rows of all devices, and the rows among them that are this device's anchors."""
    local_rows = jnp.arange(len(labels))
    if axis_name is None:
        return slices, labels, mask, local_rows
    # No stop_gradient on the gathered slices: other devices' anchors pull on this device's rows.
    gather = partial(jax.lax.all_gather, axis_name=axis_name, tiled=True)
    rows = jax.lax.axis_index(axis_name) * len(labels) + local_rows
    return gather(slices), gather(labels), gather(mask), rows


def _global_sum(x, axis_name):
    """Sum over the last axis, on all devices."""
    total = jnp.sum(x, axis=-1)
    return total if axis_name is None else jax.lax.psum(total, axis_name)


def global_mean(x: jax.Array, where: jax.Array, axis_name: str | None = None) -> jax.Array:
    """Mean over the last axis of the entries that count, on all devices; 0 if there are none.

    Args:
      x: values, shape [..., B].
      where: True for the entries that count, same shape.
      axis_name: name of the mapped axis over whose devices the batch is spread.

    Returns:
      Means, shape [...], the same on all devices.
    """
    count = _global_sum(where, axis_name)
    return _global_sum(jnp.where(where, x, 0), axis_name) / jnp.maximum(count, 1)


def _spread(slices, mask, axis_name):
    """Root mean squared distance of unit slices [B, S, D] to their mean, on all devices, [S]."""
    vectors = jnp.moveaxis(slices, 0, -1)
    centre = global_mean(vectors, mask, axis_name)
    squared = jnp.sum(jnp.square(vectors - centre[..., None]), axis=1)
    return jnp.sqrt(global_mean(squared, mask, axis_name))


def _check_arguments(embeddings, labels, thresholds, distance, mining, reduction):
    check_distance(distance)
    if mining not in MININGS:
        raise ValueError(f'expected mining to be one of {MININGS}, found {mining!r}')
    if reduction not in REDUCTIONS:
        raise ValueError(f'expected reduction to be one of {REDUCTIONS}, found {reduction!r}')
    if jnp.ndim(thresholds) != 1:
        raise ValueError(f'expected thresholds of shape [S], found {jnp.shape(thresholds)}')
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f'expected embeddings of shape [B, E] and labels of shape [B], found '
            f'{embeddings.shape} and {labels.shape}'
        )
