"""The multi-threshold loss over a sliced embedding."""

from collections import ChainMap
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mtdml_jax.loss.arguments import as_array, as_labels
from mtdml_jax.loss.distances import check_distance, from_squares
from mtdml_jax.loss.exchange import Share, add_memory, return_to_rows, share_out, sum_shares
from mtdml_jax.loss.memory import Memory
from mtdml_jax.loss.mining import PAIR_MININGS, as_mask, check_quantile, mine_batch_hard
from mtdml_jax.loss.slicing import split_slices
from mtdml_jax.loss.triplets import Judged, judge_all, judge_mined

# Those of pairs as they are when asked for, then 'all'.
MININGS: ChainMap[str, Any] = ChainMap({'all': judge_all}, PAIR_MININGS)
REDUCTIONS = ('mean', 'active_mean', 'none')


class LossAux(NamedTuple):
    """What happened in each slice; every field has shape [S]. Means are weighted like the loss.

    Attributes:
      loss: mean loss of the triplets.
      active_share: share of the triplets that violate their threshold (one of the two sides, in the
        dual loss). At 1.0 the hinge never acts and the threshold has no influence on the gradient.
      incomplete_share: share of the triplets that keep their threshold on the side a-n and violate it
        on the side p-n: those that the dual loss judges and the ordinary one does not ("incomplete
        judgements"). 0 for mining 'all', under which the other end of a pair is an anchor too.
      positive_distance: mean distance of the anchors to the positives of their triplets.
      negative_distance: mean distance of the anchors to the negatives.
      spread: root of the mean squared distance of the unit slices to their mean, from 0 (all
        embeddings are one point) to 1.
      collapse: 1 - max(positive_distance, negative_distance) / D, at least 0, with D the distance of
        orthogonal vectors: at 1 all triplets have shrunk to a point, where the loss has no gradient.
        0 without any triplet. Unlike the spread it sees a collapse that leaves out a few rows.
      num_valid: number of anchors that have a triplet.
    """

    loss: jax.Array
    active_share: jax.Array
    incomplete_share: jax.Array
    positive_distance: jax.Array
    negative_distance: jax.Array
    spread: jax.Array
    collapse: jax.Array
    num_valid: jax.Array


def multi_threshold_loss(
    embeddings: ArrayLike,
    labels: ArrayLike,
    thresholds: ArrayLike,
    *,
    distance: str = 'euclidean',
    dual: bool = True,
    mining: str = 'hard',
    quantile: float | jax.Array = 0.25,
    softness: float = 0.0,
    mask: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    memory: Memory | None = None,
    axis_name: str | None = None,
    reduction: str = 'mean',
) -> tuple[jax.Array, LossAux]:
    """Triplet losses of all slices of an embedding, each slice at its own threshold.

    The embedding is cut into as many slices as there are thresholds, every slice is normalised,
    mined and judged by itself:

        loss = 1/S sum_s 1/|V_s| sum_{(a, p, n) in V_s} l_s(a, p, n; threshold_s)

    with V_s the mined triplets: one for each anchor that has a positive and a negative, or, for mining
    'all', every triplet. Without any, loss and gradient are 0.

    With `axis_name` (inside pmap or shard_map) the rows of all devices are mined and averaged
    together: every device returns the loss of the global batch, and the mean of the devices'
    gradients (`jax.lax.pmean`) is the gradient that one device would get on that batch.

    Memory beyond the embeddings is that of a tile of distances, as in `mine_batch_hard` (of 2^22
    triplets for 'all'), time B^2 E (B^3 S for 'all'); backward is B E for mined triplets.

    Args:
      embeddings: array of embeddings, with shape [B, E], of any length (slices are normalised).
        bfloat16 and float16 are mined and summed in float32.
      labels: class of each row, integers or booleans, [B]. Under jit, JAX without x64 wraps labels of
        int64 beyond 2^31 unseen: renumber such with `numpy.unique(labels, return_inverse=True)[1]`.
      thresholds: one threshold a slice, shape [S], in units of the distance; S must divide E.
      distance: 'euclidean', 'squared_euclidean', or what else `distances.DISTANCES` has.
      dual: the dual triplet loss instead of the ordinary one. For mining 'all' both are the same mean:
        the other end of every positive pair is an anchor too.
      mining: as in `mine_batch_hard`, or 'all' for every triplet.
      quantile: how far from the hardest, in [0, 1], for mining 'quantile'; may be traced.
      softness: 0 for the hinge, above 0 for the smooth one of `triplet_loss`.
      mask: bool [B], False for rows (padding) that take part in nothing.
      weights: weight of each anchor's triplets in all means, at least 0, [B]; by default 1. A row of
        weight 0 is still mined by others.
      memory: embeddings of earlier batches, whose slices may be chosen as positives and negatives too;
        they take no gradient. The same on all devices; not with mining 'all'.
      axis_name: name of the mapped axis over whose devices the batch is spread.
      reduction: 'mean' over the triplets, 'active_mean' over those that violate their threshold, both
        then over the slices; or 'none': the mean of each anchor's triplets.

    Returns:
      (loss, aux): a scalar, or [S, B] for reduction 'none' (0 at invalid anchors), and `LossAux`.

    Raises:
      ValueError: shapes that do not fit, or no rows; labels of another type; an unknown distance, mining
        or reduction; a softness below 0; a quantile outside [0, 1] that is not traced; a memory with
        mining 'all'.

    References:
      Yang et al., Pattern Recognition 156, 110711, 2024.
    """
    embeddings, labels = as_array(embeddings, 'embeddings'), as_labels(labels)
    thresholds = as_array(thresholds, 'thresholds')
    weights = None if weights is None else as_array(weights, 'weights')
    _check_arguments(embeddings, labels, thresholds, weights, distance, mining, reduction)
    check_quantile(quantile)
    _check_memory(memory, embeddings, mining)
    num_slices = len(thresholds)
    slices = split_slices(embeddings, num_slices)
    mask = as_mask(mask, labels.shape)
    weights = jnp.ones_like(slices, shape=labels.shape) if weights is None else weights
    share = share_out(slices, labels, mask, weights, axis_name)
    if memory is not None:
        kept = split_slices(memory.embeddings, num_slices)
        share = add_memory(share, kept, memory.labels, memory.filled)
    thresholds = jax.lax.dynamic_slice_in_dim(
        thresholds.astype(slices.dtype), share.first_slice, share.anchors.shape[1]
    )
    if mining == 'all':
        judged = judge_all(share, thresholds, distance, softness)
    else:
        triplets = _mine(share, mining, quantile)
        judged = judge_mined(share, triplets, thresholds, distance, dual, softness)

    weighted = [jnp.sum(x * share.weights, axis=-1) for x in judged]
    num_valid = jnp.sum(judged.triplets > 0, axis=-1)
    *sums, num_valid = sum_shares(
        jnp.stack([*weighted, num_valid.astype(slices.dtype)]), share, num_slices, axis_name
    )
    total = Judged(*sums)
    aux = LossAux(
        loss=_ratio(total.loss, total.triplets),
        active_share=_ratio(total.active, total.triplets),
        incomplete_share=_ratio(total.incomplete, total.triplets),
        positive_distance=_ratio(total.positive_distance, total.triplets),
        negative_distance=_ratio(total.negative_distance, total.triplets),
        spread=_spread(slices, mask, axis_name),
        collapse=_collapse(total, distance),
        num_valid=num_valid.astype(jnp.int32),
    )
    if reduction == 'none':
        losses = return_to_rows(_ratio(judged.loss, judged.triplets), num_slices, axis_name)
        return losses, jax.lax.stop_gradient(aux)
    active_mean = _ratio(total.active_loss, total.active)
    per_slice = active_mean if reduction == 'active_mean' else aux.loss
    return jnp.mean(per_slice), jax.lax.stop_gradient(aux)


def _mine(share: Share, mining, quantile):
    return mine_batch_hard(
        share.anchors,
        share.labels,
        mining=mining,
        quantile=quantile,
        gallery=share.gallery,
        gallery_labels=share.gallery_labels,
        gallery_mask=share.gallery_mask,
        rows=share.rows,
        mask=share.mask,
    )


def _ratio(total, count):
    """total / count, and 0 where nothing was counted."""
    counted = count > 0
    return jnp.where(counted, total / jnp.where(counted, count, 1), 0)


def global_mean(x: jax.Array, where: jax.Array, axis_name: str | None = None) -> jax.Array:
    """Mean over the last axis of the entries that count, on all devices; 0 if there are none.

    Args:
      x: values, shape [..., B].
      where: True for the entries that count, same shape.
      axis_name: name of the mapped axis over whose devices the batch is spread.

    Returns:
      Means, shape [...], the same on all devices.
    """

    def global_sum(x):
        total = jnp.sum(x, axis=-1)
        return total if axis_name is None else jax.lax.psum(total, axis_name)

    return _ratio(global_sum(jnp.where(where, x, 0)), global_sum(where))


def _spread(slices, mask, axis_name):
    """Root mean squared distance of unit slices [B, S, D] to their mean, on all devices, [S]."""
    vectors = jnp.moveaxis(slices, 0, -1)
    centre = global_mean(vectors, mask, axis_name)
    squared = jnp.sum(jnp.square(vectors - centre[..., None]), axis=1)
    return jnp.sqrt(global_mean(squared, mask, axis_name))


def _collapse(total, distance):
    orthogonal = float(from_squares(2.0, distance))
    farther = jnp.maximum(total.positive_distance, total.negative_distance)
    share_of_orthogonal = _ratio(farther, total.triplets * orthogonal)
    return jnp.where(total.triplets > 0, jnp.maximum(1 - share_of_orthogonal, 0), 0)


def _check_arguments(embeddings, labels, thresholds, weights, distance, mining, reduction):
    check_distance(distance)
    if mining not in MININGS:
        raise ValueError(f'expected mining to be one of {tuple(MININGS)}, found {mining!r}')
    if reduction not in REDUCTIONS:
        raise ValueError(f'expected reduction to be one of {REDUCTIONS}, found {reduction!r}')
    if thresholds.ndim != 1:
        raise ValueError(f'expected thresholds of shape [S], found {thresholds.shape}')
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f'expected embeddings of shape [B, E] and labels of shape [B], found '
            f'{embeddings.shape} and {labels.shape}'
        )
    if not len(labels):
        raise ValueError('expected at least one row, found none')
    if weights is not None and weights.shape != labels.shape:
        raise ValueError(f'expected weights of shape {labels.shape}, found {weights.shape}')


def _check_memory(memory, embeddings, mining):
    if memory is None:
        return
    if mining == 'all':
        raise ValueError(
            "expected a mining other than 'all' with a memory, whose rows are no anchors"
        )
    if memory.embeddings.shape[1:] != embeddings.shape[1:]:
        raise ValueError(
            f'expected a memory of embeddings [M, {embeddings.shape[1]}], found '
            f'{memory.embeddings.shape}'
        )
