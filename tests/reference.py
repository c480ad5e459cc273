"""Mining and loss by plain NumPy loops in float64, for the tests of mining and losses."""

from typing import NamedTuple

import numpy as np


class Slice(NamedTuple):
    """What the loss of one slice is made of; the lists have one entry a valid anchor."""

    losses: dict[int, float]
    positive_distances: list[float]
    negative_distances: list[float]
    spread: float


def distance(x, y, kind='euclidean'):
    squared = sum((float(a) - float(b)) ** 2 for a, b in zip(x, y, strict=True))
    return squared if kind == 'squared_euclidean' else squared**0.5


def batch_hard(anchors, labels, gallery, gallery_labels, rows, mask, gallery_mask):
    """(positive, negative) of each anchor among the gallery; None without either of them."""
    found = []
    for a, anchor in enumerate(anchors):
        positive = negative = None
        farthest, nearest = -np.inf, np.inf
        for g, candidate in enumerate(gallery):
            if not gallery_mask[g]:
                continue
            d = distance(anchor, candidate, 'squared_euclidean')
            if gallery_labels[g] != labels[a]:
                if d < nearest:
                    negative, nearest = g, d
            elif g != rows[a] and d > farthest:
                positive, farthest = g, d
        complete = mask[a] and positive is not None and negative is not None
        found.append((positive, negative) if complete else None)
    return found


def batch_hard_within(vectors, labels, mask=None):
    """`batch_hard` of a batch among itself, where masked rows take part in nothing."""
    mask = np.ones(len(labels), bool) if mask is None else mask
    return batch_hard(vectors, labels, vectors, labels, range(len(labels)), mask, mask)


def unit_slices(embeddings, num_slices):
    """List of S arrays [B, D] of unit vectors; zeros stay zeros."""
    slices = []
    for columns in np.split(np.asarray(embeddings, np.float64), num_slices, axis=1):
        length = np.array([[max(distance(row, 0 * row), 1e-300)] for row in columns])
        slices.append(columns / length)
    return slices


def judge_slice(vectors, labels, threshold, kind='euclidean', dual=True, mask=None):
    """Losses and distances of the valid anchors of one slice."""
    losses, positives, negatives = {}, [], []
    for a, triplet in enumerate(batch_hard_within(vectors, labels, mask)):
        if triplet is None:
            continue
        p, n = triplet
        d_ap = distance(vectors[a], vectors[p], kind)
        d_an = distance(vectors[a], vectors[n], kind)
        d_pn = distance(vectors[p], vectors[n], kind)
        losses[a] = max(0.0, d_ap - d_an + float(threshold))
        if dual:
            losses[a] = (losses[a] + max(0.0, d_ap - d_pn + float(threshold))) / 2
        positives.append(d_ap)
        negatives.append(d_an)
    counted = [v for i, v in enumerate(vectors) if mask is None or mask[i]]
    centre = sum(counted) / max(len(counted), 1)
    squared = [distance(v, centre, 'squared_euclidean') for v in counted]
    return Slice(losses, positives, negatives, mean(squared) ** 0.5)


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else 0.0


def judge(embeddings, labels, thresholds, kind='euclidean', dual=True, mask=None):
    """One `Slice` a threshold."""
    slices = unit_slices(embeddings, len(thresholds))
    return [
        judge_slice(vectors, labels, threshold, kind, dual, mask)
        for vectors, threshold in zip(slices, thresholds, strict=True)
    ]


def reduce(judged, reduction, batch_size):
    if reduction == 'none':
        return np.array([[s.losses.get(a, 0.0) for a in range(batch_size)] for s in judged])
    active_only = reduction == 'active_mean'
    return mean(mean(v for v in s.losses.values() if v > 0 or not active_only) for s in judged)


def expected_aux(judged):
    """The fields of `LossAux` by name."""
    fields = {
        'loss': [mean(s.losses.values()) for s in judged],
        'active_share': [mean(v > 0 for v in s.losses.values()) for s in judged],
        'positive_distance': [mean(s.positive_distances) for s in judged],
        'negative_distance': [mean(s.negative_distances) for s in judged],
        'spread': [s.spread for s in judged],
        'num_valid': [len(s.losses) for s in judged],
    }
    return {name: np.array(values) for name, values in fields.items()}


def numeric_gradient(function, x, step=1e-6):
    """Central differences of a scalar function at x."""
    gradient = np.zeros_like(x, dtype=np.float64)
    for index in np.ndindex(*x.shape):
        ahead, behind = np.array(x, np.float64), np.array(x, np.float64)
        ahead[index] += step
        behind[index] -= step
        gradient[index] = (function(ahead) - function(behind)) / (2 * step)
    return gradient
