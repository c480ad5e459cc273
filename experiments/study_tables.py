"""The table of a study."""

from collections.abc import Mapping, Sequence

from mtdml_jax.evaluation.intervals import markdown_table, mean_interval, paired_difference

# Title -> column that is compared with the reference's.
COMPARED = {'kNN': 'knn_accuracy', 'validation kNN': 'validation_knn_accuracy'}


def scores_by_cell(rows: Sequence[Mapping[str, str]], column: str) -> dict[str, dict[int, float]]:
    """Cell -> seed -> value of a column, without the runs that lack it."""
    found = {}
    for row in rows:
        if row.get(column):
            found.setdefault(row['cell'], {})[int(row['seed'])] = float(row[column])
    return found


def summary(
    rows: Sequence[Mapping[str, str]], reference: str, converged: float | None = None
) -> str:
    """The table of a study: means over seeds with 95 % intervals, in per cent.

    Args:
      rows: rows of finished runs.
      reference: name of the cell that is subtracted from the others, seed by seed.
      converged: adds a column with the number of runs whose kNN accuracy is at least this.
    """
    compared = {title: scores_by_cell(rows, column) for title, column in COMPARED.items()}
    compared = {title: scores for title, scores in compared.items() if scores}
    softmax, active, incomplete, collapsed = (
        scores_by_cell(rows, x)
        for x in ('softmax_accuracy', 'active_share', 'incomplete_share', 'collapsed_slices')
    )

    def line(cell):
        by_seed = compared['kNN'][cell]
        counted = [] if converged is None else [sum(x >= converged for x in by_seed.values())]
        return (
            cell,
            len(by_seed),
            *counted,
            *(
                x
                for scores in compared.values()
                for x in _mean_and_difference(scores, cell, reference)
            ),
            mean_interval([*softmax[cell].values()]) if cell in softmax else '',
            *(_mean(x.get(cell), '.3f') for x in (active, incomplete)),
            _mean(collapsed.get(cell), '.1f'),
        )

    extra = [] if converged is None else [f'kNN >= {converged:.0%}']
    scores = [x for title in compared for x in (title, f'{title} - {reference}')]
    shares = 'active share', 'incomplete share', 'collapsed'
    header = ('Cell', 'seeds', *extra, *scores, 'softmax', *shares)
    return markdown_table(header, map(line, compared['kNN']))


def _mean(by_seed, spec):
    return f'{mean_interval([*by_seed.values()]).mean:{spec}}' if by_seed else ''


def _mean_and_difference(scores, cell, reference):
    """The mean of a cell, and what it is above the reference; '' for what there is not."""
    by_seed, others = scores.get(cell, {}), scores.get(reference, {})
    compare = cell != reference and by_seed.keys() & others.keys()
    return (
        mean_interval([*by_seed.values()]) if by_seed else '',
        paired_difference(by_seed, others) if compare else '',
    )
