"""Retrieval scores of embeddings: every face looks for the others of its class."""

import numpy as np


def retrieval_scores(
    embeddings: np.ndarray, labels: np.ndarray, *, block: int = 256
) -> dict[str, float]:
    """Precision@1, R-precision and MAP@R; every face queries all other faces of the split.

    With R the number of other faces of the query's class, and P(i) the share of that class among
    the i nearest faces (the query itself is not one of them):

      R-precision = P(R)        MAP@R = 1/R sum_{i <= R} P(i) [the i-th nearest is of the class]

    Faces are ranked by Euclidean distance. Equal distances are ranked in a fixed random order of
    the rows: a collapsed embedding scores at chance level, also if its rows are sorted by class.

    Args:
      embeddings: array of embeddings, with shape [N, E].
      labels: class of each row, int [N].
      block: number of queries ranked at a time; memory grows as block * N.

    Returns:
      'precision_at_1', 'r_precision' and 'map_at_r': means over the queries whose class has another
      member; 0 where there is none.

    References:
      Musgrave et al., "A metric learning reality check", ECCV 2020, section 3.1.
    """
    order = np.random.default_rng(0).permutation(len(labels))
    embeddings, labels = np.asarray(embeddings)[order], np.asarray(labels)[order]
    norms = np.sum(np.square(embeddings), axis=1)
    totals, num_queries = np.zeros(3), 0
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if len(rows) < 2:
            continue
        num_queries += len(rows)
        # Queries of one class share R, so that a block is ranked as one array.
        for start in range(0, len(rows), block):
            chosen = rows[start : start + block]
            distances = norms - 2 * embeddings[chosen] @ embeddings.T
            distances[np.arange(len(chosen)), chosen] = np.inf
            totals += _score_block(labels[_nearest(distances, len(rows) - 1)] == label)
    means = (totals / max(num_queries, 1)).tolist()
    return dict(zip(('precision_at_1', 'r_precision', 'map_at_r'), means, strict=True))


def _nearest(distances: np.ndarray, count: int) -> np.ndarray:
    """Columns of the `count` smallest entries of each row of [B, N], smallest first: [B, count]."""
    nearest = np.argpartition(distances, count - 1, axis=1)[:, :count]
    ranks = np.argsort(np.take_along_axis(distances, nearest, axis=1), axis=1)
    return np.take_along_axis(nearest, ranks, axis=1)


def _score_block(relevant: np.ndarray) -> np.ndarray:
    """Sums of precision@1, R-precision and average precision at R of ranked hits, bool [B, R]."""
    precision = np.cumsum(relevant, axis=1) / np.arange(1, relevant.shape[1] + 1)
    average = np.mean(precision * relevant, axis=1)
    return np.array([precision[:, 0].sum(), precision[:, -1].sum(), average.sum()])
