"""The tables of a study."""

from collections.abc import Mapping, Sequence

import numpy as np

from mtdml_jax.scoring.intervals import markdown_table, mean_interval

# Title -> column.
SCORES = {
    'softmax': 'softmax_accuracy',
    'kNN': 'knn_accuracy',
    'centroid': 'centroid_accuracy',
    'linear': 'linear_accuracy',
    'precision at 1': 'precision_at_1',
    'MAP@R': 'map_at_r',
    'validation softmax': 'validation_softmax_accuracy',
    'validation kNN': 'validation_knn_accuracy',
}
# Title -> column and format of its mean.
SHARES = {
    'active share': ('active_share', '.3f'),
    'incomplete share': ('incomplete_share', '.3f'),
    'collapsed slices': ('collapsed_slices', '.1f'),
}


def scores_by_cell(rows: Sequence[Mapping[str, str]], column: str) -> dict[str, dict[int, float]]:
    """Returns cell -> seed -> value of a column, without the runs that lack it."""
    found = {}
    for row in rows:
        if row.get(column):
            found.setdefault(row['cell'], {})[int(row['seed'])] = float(row[column])
    return found


def paired_differences(first: Mapping[int, float], second: Mapping[int, float]) -> list[float]:
    """Returns first - second for every seed that both have, in the order of the seeds.

    Args:
      first: a score by seed.
      second: the score to compare with, by seed.
    """
    return [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]


def in_per_cent(values):
    """Returns mean and 95 % interval; one or two values stand by themselves, without an interval."""
    if len(values) > 2:
        return mean_interval(values)
    return ', '.join(f'{100 * x:.2f}' for x in values)


def summary(
    rows: Sequence[Mapping[str, str]], reference: str, converged: float | None = None
) -> str:
    """Makes the two tables of a study, in per cent: scores, and differences to a cell, seed by seed.

    Args:
      rows: rows of finished runs, all with kNN accuracy.
      reference: name of the cell that is subtracted from the others.
      converged: adds a column with the number of runs whose kNN accuracy is at least this.

    Returns:
      Scores and mean shares of each cell, and, if `reference` has seeds in common with other cells, the
      differences. Three seeds and more have a mean with its 95 % interval, fewer seeds every value.
    """
    scores = {title: scores_by_cell(rows, column) for title, column in SCORES.items()}
    scores = {title: found for title, found in scores.items() if found}
    shares = {title: (scores_by_cell(rows, x), spec) for title, (x, spec) in SHARES.items()}
    counted = [] if converged is None else [f'kNN >= {converged:.0%}']

    def means(cell):
        yield cell
        yield len(scores['kNN'][cell])
        if counted:
            yield sum(x >= converged for x in scores['kNN'][cell].values())
        for found in scores.values():
            yield in_per_cent([value for _, value in sorted(found.get(cell, {}).items())])
        for found, spec in shares.values():
            yield f'{np.mean([*found[cell].values()]):{spec}}' if cell in found else ''

    def differences(cell):
        yield f'{cell} - {reference}'
        for found in scores.values():
            yield in_per_cent(paired_differences(found.get(cell, {}), found.get(reference, {})))

    cells = scores['kNN']
    compared = [x for x in cells if x != reference and cells[x].keys() & cells.get(reference, {})]
    tables = [markdown_table(('Cell', 'seeds', *counted, *scores, *shares), map(means, cells))]
    if compared:
        tables += [markdown_table(('Difference', *scores), map(differences, compared))]
    return '\n\n'.join(tables)
