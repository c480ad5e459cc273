"""Retrieval scores of embeddings: every face searches for the other faces of its class."""

import itertools

import numpy as np

from mtdml_jax.models.neighbors import comparable_distances, nearest_columns


def retrieval_scores(
    embeddings: np.ndarray,
    labels: np.ndarray,
    *,
    is_query: np.ndarray | None = None,
    is_gallery: np.ndarray | None = None,
    block: int = 256,
) -> dict[str, float]:
    """Computes precision@1, R-precision and MAP@R; every query searches all other faces of the gallery.

    R is the number of faces of the query's class in the gallery. P(i) is the share of that class among
    the i nearest faces, not counting the query itself:

      R-precision = P(R)        MAP@R = 1/R sum_{i <= R} P(i) [the i-th nearest is of the class]

    Faces are ranked by Euclidean distance. Equal distances are ranked in a fixed random order of the
    rows. So a collapsed embedding scores at chance level, even if its rows are sorted by class.

    Args:
      embeddings: array of embeddings, with shape [N, E].
      labels: class of each row, int [N].
      is_query: whether each row is a query, bool [N]; None makes all rows queries.
      is_gallery: whether each row is in the gallery, bool [N]; None puts all rows into it.
      block: number of queries that are ranked at a time; memory grows as block * N.

    Returns:
      'precision_at_1', 'r_precision' and 'map_at_r': means over the queries whose class has another
      member in the gallery; 0 if there is no such query.

    References:
      Musgrave et al., "A metric learning reality check", ECCV 2020, section 3.1.
    """
    order = np.random.default_rng(0).permutation(len(labels))
    embeddings, labels = np.asarray(embeddings)[order], np.asarray(labels)[order]
    everyone = np.ones(len(labels), bool)
    is_query, is_gallery = (everyone if x is None else x[order] for x in (is_query, is_gallery))
    gallery, gallery_labels = embeddings[is_gallery], labels[is_gallery]
    column = np.cumsum(is_gallery) - 1
    norms = np.sum(np.square(gallery), axis=1)
    totals, num_queries = np.zeros(3), 0
    for label, is_own in itertools.product(np.unique(labels), (True, False)):
        rows = np.flatnonzero(is_query & (labels == label) & (is_gallery == is_own))
        count = int(np.count_nonzero(gallery_labels == label)) - is_own
        if count < 1:
            continue
        num_queries += len(rows)
        # Queries of one class share R, so a block is ranked as one array.
        for start in range(0, len(rows), block):
            chosen = rows[start : start + block]
            distances = comparable_distances(embeddings[chosen], gallery, norms)
            if is_own:
                distances[np.arange(len(chosen)), column[chosen]] = np.inf
            totals += _score_block(gallery_labels[nearest_columns(distances, count)] == label)
    means = (totals / max(num_queries, 1)).tolist()
    return dict(zip(('precision_at_1', 'r_precision', 'map_at_r'), means, strict=True))


def _score_block(relevant: np.ndarray) -> np.ndarray:
    """Sums precision@1, R-precision and average precision at R over ranked hits, bool [B, R]."""
    precision = np.cumsum(relevant, axis=1) / np.arange(1, relevant.shape[1] + 1)
    average = np.mean(precision * relevant, axis=1)
    return np.array([precision[:, 0].sum(), precision[:, -1].sum(), average.sum()])
