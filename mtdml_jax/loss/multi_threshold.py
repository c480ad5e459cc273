"""The multi-threshold loss over a sliced embedding."""

from collections import ChainMap
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from mtdml_jax.loss.arguments import (
    Arrays,
    AxisName,
    as_array,
    as_labels,
    as_mask,
    check_within,
    everywhere_if_none,
)
from mtdml_jax.loss.distances import DistanceName, check_distance
from mtdml_jax.loss.exchange import Share, add_memory, return_to_rows, share_out, sum_shares
from mtdml_jax.loss.memory import Memory, as_memory
from mtdml_jax.loss.meshes import find_layout
from mtdml_jax.loss.mining import PAIR_MININGS, PairMining, as_quantile, check_mining, mine_slices
from mtdml_jax.loss.slicing import check_num_slices, unit_slices
from mtdml_jax.loss.triplets import TripletTerms, all_terms, as_softness, mined_terms

# The minings that come with the package.
Mining: TypeAlias = PairMining | Literal['all']
Reduction: TypeAlias = Literal['mean', 'active_mean', 'none']
# 'all', and the names that `PAIR_MININGS` has at the time of a look-up.
MININGS: ChainMap[str, Any] = ChainMap({'all': all_terms}, PAIR_MININGS)
REDUCTIONS = ('mean', 'active_mean', 'none')


class LossAux(NamedTuple):
    """Statistics of each slice; every field has shape [S]. Means have the weights of the loss.

    Attributes:
      loss: mean loss of the triplets.
      active_share: share of the triplets that violate their threshold (one of the two sides, in the
        dual loss). At 1.0 the hinge never acts, and the threshold does not influence the gradient.
      incomplete_share: share of the triplets that keep their threshold on the side a-n and violate it
        on the side p-n. The dual loss sees this violation, the ordinary loss does not ("incomplete
        judgements"). 0 for mining 'all', in which the other end of a pair is an anchor too.
      positive_distance: mean distance of the anchors to the positives of their triplets.
      negative_distance: mean distance of the anchors to the negatives.
      spread: root mean squared distance of the unit slices to their mean, from 0 (all embeddings are
        one point) to 1.
      collapse: 1 - max(positive_distance, negative_distance) / D, at least 0, with D the distance of
        orthogonal vectors. At 1 all triplets have shrunk to a point, where the loss has no gradient. 0
        if there is no triplet. Unlike the spread, it shows a collapse from which a few rows are exempt.
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


export.register_namedtuple_serialization(LossAux, serialized_name='mtdml_jax.LossAux')


def multi_threshold_loss(
    embeddings: Arrays,
    labels: Arrays,
    thresholds: Arrays,
    *,
    distance: DistanceName = 'euclidean',
    dual: bool = True,
    mining: Mining = 'hard',
    quantile: ArrayLike = 0.25,
    softness: ArrayLike = 0.0,
    mask: Arrays | None = None,
    weights: Arrays | None = None,
    memory: Memory | None = None,
    axis_name: AxisName | None = None,
    reduction: Reduction = 'mean',
) -> tuple[jax.Array, LossAux]:
    """Triplet losses of all slices of an embedding, each slice at its own threshold.

    The loss cuts the embedding into as many slices as there are thresholds. It normalises and mines
    every slice by itself, and compares the slice's triplets with the slice's threshold:

        loss = 1/S sum_s 1/|V_s| sum_{(a, p, n) in V_s} l_s(a, p, n; threshold_s)

    V_s are the mined triplets: one for each anchor that has a positive and a negative, or every triplet
    for mining 'all'. Without any triplet, loss and gradient are 0.

    With `axis_name` (inside pmap or shard_map) the loss mines and averages the rows of all devices
    together. Every device returns the loss of the global batch. The mean of the devices' gradients
    (`jax.lax.pmean`) is the gradient that one device would compute for that batch.

    Memory beyond the embeddings is that of one tile of distances, see `mine_batch_hard` (for 'all', of
    2^22 triplets). Time is B^2 E (for 'all', B^3 S), and B E for the backward pass of mined triplets.

    Args:
      embeddings: array of embeddings, with shape [B, E]; they need not have length 1. bfloat16 and
        float16 are mined and summed in float32.
      labels: class of each row, integers or booleans, [B]. Under jit, JAX without x64 wraps labels of
        int64 beyond 2^31 silently: renumber them with `numpy.unique(labels, return_inverse=True)[1]`.
      thresholds: one threshold a slice, shape [S], in units of the distance; S must divide E.
      distance: 'euclidean', 'squared_euclidean', or another name in `distances.DISTANCES`.
      dual: whether to use the dual triplet loss instead of the ordinary one. For mining 'all' both have
        the same mean, because the other end of every positive pair is an anchor too.
      mining: a mining of `mine_batch_hard`, or 'all' for every triplet.
      quantile: how far from the hardest, in [0, 1], for mining 'quantile'; may be traced.
      softness: 0 for the hinge, above 0 for the smooth one of `triplet_loss`.
      mask: bool [B], False for rows (padding) that take part in nothing.
      weights: weight of each anchor's triplets in all means, at least 0, [B]; the default is 1. Other
        anchors still mine a row of weight 0.
      memory: embeddings of earlier batches, whose slices mining may choose as positives and negatives
        too. They get no gradient. All devices must hold the same memory. Not with mining 'all'.
      axis_name: name of the mapped axis over whose devices the batch is spread.
      reduction: 'mean' over the triplets, or 'active_mean' over the triplets that violate their
        threshold, and then over the slices; or 'none' for the mean of each anchor's triplets.

    Returns:
      (loss, aux): a scalar, or [S, B] for reduction 'none' (0 at invalid anchors), and `LossAux`.

    Raises:
      ValueError: shapes do not match, or there are no rows; labels have another type; the distance,
        mining or reduction is unknown; softness is below 0; a quantile that is not traced lies outside
        [0, 1]; or there is a memory with mining 'all'.

    Examples:
      In each of two equal slices, a positive is at 1.2 and the negatives are at 1.6 and 2. The first
      slice keeps its threshold; the second does not, so it alone has a gradient:

      >>> import jax
      >>> import jax.numpy as jnp
      >>> import mtdml_jax as mt
      >>> embeddings = jnp.tile(jnp.array([[3.0, 4], [-3, 4], [-3, -4], [3, -4]]), 2)
      >>> labels, thresholds = jnp.array([0, 0, 1, 1]), jnp.array([0.25, 1.0])
      >>> loss, aux = mt.multi_threshold_loss(embeddings, labels, thresholds)
      >>> f'{loss:.2f}', [f'{share:.0%}' for share in aux.active_share]
      ('0.20', ['0%', '100%'])
      >>> gradient_of = jax.jit(jax.grad(mt.multi_threshold_loss, has_aux=True))
      >>> gradient, aux = gradient_of(embeddings, labels, thresholds)
      >>> gradient.any(axis=0).tolist()
      [False, False, True, True]

    References:
      Yang et al., Pattern Recognition 156, 110711, 2024.
    """
    embeddings, labels = as_array(embeddings, 'embeddings'), as_labels(labels)
    thresholds = as_array(thresholds, 'thresholds')
    _check_shapes(embeddings, labels, thresholds)
    memory = None if memory is None else as_memory(memory)
    _check_memory(memory, embeddings, mining)
    if reduction not in REDUCTIONS:
        raise ValueError(f'expected reduction to be one of {REDUCTIONS}, found {reduction!r}')
    mask, weights = as_mask(mask, labels.shape), _as_weights(weights, mask, labels.shape)
    return _loss_of_rows(
        Rows(embeddings, labels, mask, weights),
        (thresholds, as_quantile(quantile), as_softness(softness), memory),
        distance=check_distance(distance),
        dual=dual,
        mine=check_mining(mining, MININGS),
        axis_name=axis_name,
        reduction=reduction,
    )


class Rows(NamedTuple):
    """What the loss takes of each row, with the rows leading; None for what the caller left out."""

    embeddings: jax.Array
    labels: jax.Array
    mask: jax.Array | None
    weights: jax.Array | None


# Called outside of a jitted function, the loss would compile its loops anew each time.
@partial(
    jax.jit,
    static_argnames=('distance', 'dual', 'mine', 'axis_name', 'reduction'),
    inline=True,
)
def _loss_of_rows(rows, others, *, axis_name, reduction, **options):
    layout = find_layout(rows, others)
    loss = partial(_loss, axis_name=layout.joined(axis_name), reduction=reduction, **options)
    each_anchor = P(None, layout.axes or None) if reduction == 'none' else P()
    return layout.run(loss, (rows, others), (P(layout.axes or None), P()), (each_anchor, P()))


def _loss(rows, others, *, distance, dual, mine, axis_name, reduction):
    thresholds, quantile, softness, memory = others
    num_slices = thresholds.shape[0]
    slices, mask = _slices(rows.embeddings, rows.mask, num_slices)
    weights = jnp.ones_like(slices, shape=mask.shape)
    if rows.weights is not None:
        weights = jnp.where(mask, rows.weights.astype(slices.dtype), 0)
    share = share_out(slices, rows.labels, mask, weights, axis_name)
    if memory is not None:
        kept, filled = _slices(memory.embeddings, memory.filled, num_slices)
        share = add_memory(share, kept, memory.labels, filled)
    thresholds = jax.lax.dynamic_slice_in_dim(
        thresholds.astype(slices.dtype), share.first_slice, share.anchors.shape[0]
    )
    if mine is all_terms:
        terms = _terms_of_all(share, thresholds, distance, softness)
    else:
        triplets = _mine(share, partial(mine, quantile=quantile))
        slice_terms = partial(mined_terms, distance=distance, dual=dual, softness=softness)
        terms = jax.vmap(slice_terms)(share.anchors, share.gallery, triplets, thresholds)

    total, num_valid = _sum_over_batch(terms, share, num_slices, axis_name)
    aux = jax.lax.stop_gradient(
        LossAux(
            loss=_ratio(total.loss, total.triplets),
            active_share=_ratio(total.active, total.triplets),
            incomplete_share=_ratio(total.incomplete, total.triplets),
            positive_distance=_ratio(total.positive_distance, total.triplets),
            negative_distance=_ratio(total.negative_distance, total.triplets),
            spread=_spread(slices, mask, axis_name),
            collapse=_collapse(total, distance),
            num_valid=num_valid,
        )
    )
    if reduction == 'none':
        return return_to_rows(_ratio(terms.loss, terms.triplets), num_slices, axis_name), aux
    if reduction == 'active_mean':
        return jnp.mean(_ratio(total.active_loss, total.active)), aux
    return jnp.mean(_ratio(total.loss, total.triplets)), aux


def _slices(embeddings, mask, num_slices):
    """Returns unit slices [S, B, D], 0 in masked rows, and the mask.

    Slices lead from here on: the loss of one slice is mapped over them. What stands in a masked row
    could be NaN, whose gradient of 0 would still be NaN.
    """
    if mask is not None:
        embeddings = jnp.where(mask[:, None], embeddings, 0)
    slices = jnp.swapaxes(unit_slices(embeddings, num_slices), 0, 1)
    return slices, everywhere_if_none(mask, embeddings.shape[0])


def _mine(share: Share, choose):
    return mine_slices(
        share.anchors,
        share.labels,
        gallery=share.gallery,
        gallery_labels=share.gallery_labels,
        gallery_mask=share.gallery_mask,
        rows=share.rows,
        mask=share.mask,
        choose=choose,
    )


def _terms_of_all(share: Share, thresholds, distance, softness):
    """Computes the terms of every triplet, slice after slice: one slice fills the memory of a block."""
    slice_terms = partial(
        all_terms,
        labels=share.labels,
        rows=share.rows,
        mask=share.mask,
        gallery_labels=share.gallery_labels,
        gallery_mask=share.gallery_mask,
        distance=distance,
        softness=softness,
    )
    by_slice = share.anchors, share.gallery, thresholds
    return jax.lax.map(lambda slice_of_all: slice_terms(*slice_of_all), by_slice)


def _sum_over_batch(terms: TripletTerms, share: Share, num_slices, axis_name):
    """Sums the weighted terms [T, N] over the global batch: `TripletTerms` of [S], and num_valid [S]."""
    weighted = [jnp.sum(x * share.weights[None], axis=-1) for x in terms]
    num_valid = jnp.sum(terms.triplets > 0, axis=-1).astype(share.anchors.dtype)
    *sums, num_valid = sum_shares(jnp.stack([*weighted, num_valid]), share, num_slices, axis_name)
    return TripletTerms(*sums), num_valid.astype(jnp.int32)


def _ratio(total, count):
    """Returns total / count, and 0 where the count is 0."""
    counted = count > 0
    return jnp.where(counted, total / jnp.where(counted, count, 1), 0)


def global_mean(x: jax.Array, where: jax.Array, axis_name: AxisName | None = None) -> jax.Array:
    """Averages the entries that count over the last axis and all devices; 0 if no entry counts.

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

    total = global_sum(jnp.where(where, x, 0))
    return _ratio(total, global_sum(where).astype(total.dtype))


def _spread(slices, mask, axis_name):
    """Root mean squared distance of unit slices [S, B, D] to their mean, on all devices, [S]."""
    vectors = jnp.swapaxes(slices, 1, 2)
    centre = global_mean(vectors, mask, axis_name)
    squared = jnp.sum(jnp.square(vectors - centre[..., None]), axis=1)
    return jnp.sqrt(global_mean(squared, mask, axis_name))


def _collapse(total, distance):
    orthogonal = float(distance.of_squares(np.float64(2.0), np))
    farther = jnp.maximum(total.positive_distance, total.negative_distance)
    share_of_orthogonal = _ratio(farther, total.triplets * orthogonal)
    return jnp.where(total.triplets > 0, jnp.maximum(1 - share_of_orthogonal, 0), 0)


def _check_shapes(embeddings, labels, thresholds):
    if thresholds.ndim != 1:
        raise ValueError(f'expected thresholds of shape [S], found {thresholds.shape}')
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f'expected embeddings of shape [B, E] and labels of shape [B], found '
            f'{embeddings.shape} and {labels.shape}'
        )
    if labels.shape == (0,):
        raise ValueError('expected at least one row, found none')
    check_num_slices(embeddings.shape[1], thresholds.shape[0])


def _as_weights(weights: Any, mask: Any, shape: tuple[int, ...]) -> jax.Array | None:
    if weights is None:
        return None
    found = as_array(weights, 'weights')
    if found.shape != shape:
        raise ValueError(f'expected weights of shape {shape}, found {found.shape}')
    check_within(weights, 0, np.inf, 'weights', mask)
    return found


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
