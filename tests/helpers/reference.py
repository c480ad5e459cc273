"""Mining, loss and gradient in plain loops in float64: the expected values of the loss tests."""

from typing import NamedTuple

import numpy as np


class Term(NamedTuple):
    """One triplet of rows, and its term of the loss."""

    anchor: int
    positive: int
    negative: int
    loss: float
    active: bool
    incomplete: bool
    d_ap: float
    d_an: float
    weight: float


class Slice(NamedTuple):
    """The loss terms of one slice."""

    terms: list[Term]
    spread: float
    collapse: float

    @property
    def triplets(self):
        """{anchor: (positive, negative)}, if every anchor has one triplet."""
        return {t.anchor: (t.positive, t.negative) for t in self.terms}

    @property
    def losses(self):
        """{anchor: mean loss of its triplets}."""
        anchors = sorted({t.anchor for t in self.terms})
        return {a: mean(t.loss for t in self.terms if t.anchor == a) for a in anchors}


def distance(x, y, kind='euclidean'):
    squared = sum((float(a) - float(b)) ** 2 for a, b in zip(x, y, strict=True))
    return squared if kind == 'squared_euclidean' else squared**0.5


def batch_hard(anchors, labels, gallery, gallery_labels, rows, mask, gallery_mask):
    """Returns (positive, negative) in the gallery for each anchor; None if one of them is missing."""
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
    """Runs `batch_hard` with the batch as its own gallery, without the rows outside the mask."""
    mask = np.ones(len(labels), bool) if mask is None else mask
    return batch_hard(vectors, labels, vectors, labels, range(len(labels)), mask, mask)


def candidates(labels, mask=None):
    """Yields (anchor, its positives, its negatives) for the anchors of a batch that have both."""
    rows = [i for i in range(len(labels)) if mask is None or mask[i]]
    for a in rows:
        positives = [i for i in rows if labels[i] == labels[a] and i != a]
        negatives = [i for i in rows if labels[i] != labels[a]]
        if positives and negatives:
            yield a, positives, negatives


def ranked(rows, key, q):
    """Returns the row of rank floor(q (n - 1)) by the key; of equal rows, the lowest."""
    value = sorted(key(row) for row in rows)[
        int(np.floor(np.float32(q) * np.float32(len(rows) - 1)))
    ]
    return min(row for row in rows if key(row) == value)


def mine(vectors, labels, mask=None, mining='hard', quantile=0.25):
    """Returns [(anchor, positive, negative)] of one slice."""
    found = []
    for a, positives, negatives in candidates(labels, mask):

        def squared(row, a=a):
            return distance(vectors[a], vectors[row], 'squared_euclidean')

        def farness(row, squared=squared):
            return -squared(row)

        if mining == 'all':
            found += [(a, p, n) for p in positives for n in negatives]
            continue
        q = quantile if mining == 'quantile' else 0
        p = ranked(positives, farness, q)
        if mining == 'semihard':
            negatives = [n for n in negatives if squared(n) > squared(p)]
        if negatives:
            found.append((a, p, ranked(negatives, squared, q)))
    return found


def unit_slices(embeddings, num_slices):
    """Returns S arrays [B, D] of unit vectors; zeros stay zeros."""
    slices = []
    for columns in np.split(np.asarray(embeddings, np.float64), num_slices, axis=1):
        length = np.array([[max(distance(row, 0 * row), 1e-300)] for row in columns])
        slices.append(columns / length)
    return slices


def hinge(x, softness=0.0):
    return softness * np.log1p(np.exp(x / softness)) if softness else max(0.0, x)


def hinge_slope(x, softness=0.0):
    return 1 / (1 + np.exp(-x / softness)) if softness else float(x > 0)


def triplet_term(vectors, triplet, threshold, kind, dual, softness, weight):
    a, p, n = triplet
    d_ap, d_an, d_pn = (distance(vectors[i], vectors[j], kind) for i, j in ((a, p), (a, n), (p, n)))
    side_an, side_pn = (d_ap - d + float(threshold) for d in (d_an, d_pn))
    sides = [side_an] + [side_pn] * dual
    loss = mean(hinge(side, softness) for side in sides)
    incomplete = side_an <= 0 < side_pn
    return Term(a, p, n, loss, max(sides) > 0, incomplete, d_ap, d_an, float(weight))


def terms_of_slice(
    vectors, labels, threshold, kind='euclidean', dual=True, mask=None, weights=None,
    softness=0.0, **mining,
):  # fmt: skip
    """Returns the terms of one slice. With mining 'all', the dual loss equals the ordinary one."""
    weights = np.ones(len(labels)) if weights is None else weights
    is_all = mining.get('mining') == 'all'
    dual = dual and not is_all
    terms = [
        triplet_term(vectors, triplet, threshold, kind, dual, softness, weights[triplet[0]])
        for triplet in mine(vectors, labels, mask, **mining)
    ]
    if is_all:
        # The side p-n of a triplet is the side a-n of another triplet.
        terms = [term._replace(incomplete=False) for term in terms]
    counted = [v for i, v in enumerate(vectors) if mask is None or mask[i]]
    centre = sum(counted) / max(len(counted), 1)
    squared = [distance(v, centre, 'squared_euclidean') for v in counted]
    farther = max(weighted_mean(terms, 'd_ap'), weighted_mean(terms, 'd_an'))
    orthogonal = distance([1, 0], [0, 1], kind)
    collapse = max(0.0, 1 - farther / orthogonal) if any(t.weight for t in terms) else 0.0
    return Slice(terms, mean(squared) ** 0.5, collapse)


def weighted_mean(terms, field):
    total = sum(t.weight for t in terms)
    return sum(t.weight * getattr(t, field) for t in terms) / total if total else 0.0


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else 0.0


def loss_terms(embeddings, labels, thresholds, kind='euclidean', dual=True, mask=None, **options):
    """Returns a `Slice` for each threshold."""
    slices = unit_slices(embeddings, len(thresholds))
    return [
        terms_of_slice(vectors, labels, threshold, kind, dual, mask, **options)
        for vectors, threshold in zip(slices, thresholds, strict=True)
    ]


def counted_terms(slice_terms, reduction):
    return [t for t in slice_terms.terms if t.active or reduction != 'active_mean']


def reduce(terms, reduction, batch_size):
    if reduction == 'none':
        return np.array([[s.losses.get(a, 0.0) for a in range(batch_size)] for s in terms])
    return mean(weighted_mean(counted_terms(s, reduction), 'loss') for s in terms)


def slope(x, y, kind):
    """Returns the gradient of distance(x, y) by x; 0 where the Euclidean distance is 0."""
    difference = np.asarray(x) - np.asarray(y)
    if kind == 'squared_euclidean':
        return 2 * difference
    length = distance(x, y)
    return difference / length if length > 0 else 0 * difference


def slice_gradient(vectors, terms, threshold, kind, dual, reduction, softness=0.0):
    """Returns the gradient of the reduced loss of one `Slice` by its unit vectors, [B, D]."""
    gradient = np.zeros_like(vectors)
    counted = [t for t in counted_terms(terms, reduction) if t.weight]
    total = sum(t.weight for t in counted)
    for a, p, n, _, _, _, d_ap, _, weight in counted:
        ends = (a, p) if dual else (a,)
        for end in ends:
            side = d_ap - distance(vectors[end], vectors[n], kind) + float(threshold)
            pull = weight / total / len(ends) * hinge_slope(side, softness)
            gradient[a] += pull * slope(vectors[a], vectors[p], kind)
            gradient[p] += pull * slope(vectors[p], vectors[a], kind)
            gradient[end] -= pull * slope(vectors[end], vectors[n], kind)
            gradient[n] -= pull * slope(vectors[n], vectors[end], kind)
    return gradient


def loss_gradient(embeddings, terms, thresholds, kind, dual, reduction, softness=0.0):
    """Returns the gradient of the loss by the embeddings, [B, E]; see `loss_terms` for `terms`.

    By the chain rule, the gradient g by u = x / |x| gives the gradient (g - u (u . g)) / |x| by x. It
    is 0 for x = 0.
    """
    parts = []
    columns = np.split(np.asarray(embeddings, np.float64), len(thresholds), axis=1)
    slices = zip(columns, unit_slices(embeddings, len(thresholds)), terms, thresholds, strict=True)
    for raw, vectors, slice_terms, threshold in slices:
        by_unit = slice_gradient(vectors, slice_terms, threshold, kind, dual, reduction, softness)
        gradient = np.zeros_like(raw)
        for row, (x, u, g) in enumerate(zip(raw, vectors, by_unit, strict=True)):
            length = distance(x, 0 * x)
            if length > 0:
                gradient[row] = (g - u * sum(u * g)) / length
        parts.append(gradient / len(thresholds))
    return np.concatenate(parts, axis=1)


def expected_aux(terms):
    """Returns the expected fields of `LossAux` by name."""
    sources = {
        'loss': 'loss',
        'active_share': 'active',
        'incomplete_share': 'incomplete',
        'positive_distance': 'd_ap',
        'negative_distance': 'd_an',
    }
    fields = {
        name: [weighted_mean(s.terms, source) for s in terms] for name, source in sources.items()
    }
    fields |= {name: [getattr(s, name) for s in terms] for name in ('spread', 'collapse')}
    fields['num_valid'] = [len({t.anchor for t in s.terms}) for s in terms]
    return {name: np.array(values) for name, values in fields.items()}


def numeric_gradient(function, x, step=1e-6):
    """Returns the gradient of a scalar function at x, by central differences."""
    gradient = np.zeros_like(x, dtype=np.float64)
    for index in np.ndindex(*x.shape):
        ahead, behind = np.array(x, np.float64), np.array(x, np.float64)
        ahead[index] += step
        behind[index] -= step
        gradient[index] = (function(ahead) - function(behind)) / (2 * step)
    return gradient
