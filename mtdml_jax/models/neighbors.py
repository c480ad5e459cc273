"""Exact nearest neighbours of vectors in a gallery, computed in blocks of queries with NumPy alone."""

import numpy as np

from mtdml_jax.host.errors import UserError

# Number of queries whose distances to the gallery are in memory at a time.
BLOCK_QUERIES = 256


def find_nearest(queries: np.ndarray, gallery: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds the k nearest gallery rows of each query by Euclidean distance.

    A matrix product finds the candidates. The order and the distances come from differences of vectors,
    which keep the digits of small distances. Equal distances are in the order of the rows.

    Args:
      queries: vectors, [N, E].
      gallery: vectors, [G, E].
      k: number of neighbours K; at most G are returned.

    Returns:
      (rows, distances): int [N, K] and floats of the type of the vectors [N, K], nearest first.

    Raises:
      UserError: k is below 1.
    """
    if k < 1:
        raise UserError(f'k: expected at least 1, found {k}')
    k = min(k, len(gallery))
    rows = np.zeros((len(queries), k), int)
    squares = np.zeros((len(queries), k), np.result_type(queries, gallery))
    if not k:
        return rows, squares
    # Subtracting one of its rows keeps the small differences of a gallery whose vectors nearly agree.
    centred = gallery - gallery[0]
    norms = np.sum(np.square(centred), axis=1)
    for start in range(0, len(queries), BLOCK_QUERIES):
        block = queries[start : start + BLOCK_QUERIES]
        seen = block - gallery[0]
        found = comparable_distances(seen, centred, norms)
        farthest = np.partition(found, k - 1, axis=1)[:, k - 1]
        reach = farthest + _rounding(seen, norms)
        for number, query in enumerate(block):
            candidates = np.flatnonzero(found[number] <= reach[number])
            exact = np.sum(np.square(gallery[candidates] - query), axis=1)
            order = np.argsort(exact, kind='stable')[:k]
            rows[start + number], squares[start + number] = candidates[order], exact[order]
    return rows, np.sqrt(squares)


def _rounding(queries, norms):
    """Returns a bound on the rounding of `comparable_distances` and of squared differences, [N]."""
    terms = queries.shape[1] / 4 + 16
    scale = np.sum(np.square(queries), axis=1) + norms.max()
    return 4 * terms * np.finfo(norms.dtype).eps * scale


def comparable_distances(queries: np.ndarray, gallery: np.ndarray, norms: np.ndarray) -> np.ndarray:
    """Computes squared distances [N, G] without the term |q|^2, which is the same for a whole row.

    Args:
      queries: vectors, [N, E].
      gallery: vectors, [G, E].
      norms: squared lengths of the gallery's vectors, [G].
    """
    return norms - 2 * queries @ gallery.T


def nearest_columns(distances: np.ndarray, count: int) -> np.ndarray:
    """Returns the columns of the `count` smallest entries of each row, smallest first: [N, count]."""
    nearest = np.argpartition(distances, count - 1, axis=1)[:, :count]
    ranks = np.argsort(np.take_along_axis(distances, nearest, axis=1), axis=1)
    return np.take_along_axis(nearest, ranks, axis=1)


def neighbor_votes(
    queries: np.ndarray, gallery: np.ndarray, labels: np.ndarray, num_classes: int, k: int
) -> np.ndarray:
    """Returns the share of the k nearest gallery rows that each class has, float32 [N, C].

    Args:
      queries: vectors, [N, E].
      gallery: vectors, [G, E].
      labels: classes of the gallery's rows, int [G], below C.
      num_classes: number of classes C.
      k: number of neighbours; at most G vote.
    """
    rows, _ = find_nearest(queries, gallery, k)
    votes = labels[rows][..., None] == np.arange(num_classes)
    return votes.mean(axis=1, dtype=np.float32)
