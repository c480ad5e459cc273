"""Figures of studies."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from study_tables import paired_differences, scores_by_cell

COLOURS = {
    'knn': '#0072b2',
    'softmax': '#d55e00',
    'active': '#009e73',
    'hard': '#d55e00',
    'all': '#009e73',
    'ordinary': '#e69f00',
}


def draw_cells(rows: Sequence[Mapping[str, str]], path: Path) -> None:
    """Draws accuracy and active share of the cells, in the order of their first rows.

    Each seed is a dot, and each slice's active share a stroke. Runs without a softmax head have no
    orange dot.

    Args:
      rows: rows of finished runs.
      path: file to write.
    """
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row['cell'] for row in rows))
    figure = Figure(figsize=(11, 1.6 + 0.28 * len(names)), layout='constrained')
    accuracy, active = figure.subplots(1, 2, sharey=True)
    for row in rows:
        height = names.index(row['cell'])
        for shift, name in ((-0.15, 'knn'), (0.15, 'softmax')):
            if row.get(f'{name}_accuracy'):
                percent = 100 * float(row[f'{name}_accuracy'])
                accuracy.plot(percent, height + shift, 'o', ms=5, alpha=0.7, c=COLOURS[name])
        shares, colour = json.loads(row['train_active_share']), COLOURS['active']
        active.plot(shares, np.full(len(shares), height), '|', ms=9, c=colour, alpha=0.5)
        active.plot(np.mean(shares), height, 'o', ms=5, c=colour)
    accuracy.set_title('Accuracy (%): kNN blue, softmax orange', loc='left')
    active.set_xlim(-0.03, 1.03)
    active.set_title('Active share in training: mean, slices', loc='left')
    accuracy.set_yticks(range(len(names)), names)
    accuracy.invert_yaxis()
    save(figure, path)


def save(figure, path: Path) -> None:
    """Writes a `matplotlib.figure.Figure`, with a quiet grid and a legend for what has a label."""
    for axes in figure.axes:
        axes.spines[['top', 'right']].set_visible(False)
        axes.grid(color='#e4e8ed')
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
    figure.savefig(path, dpi=100)


def draw_gains(rows, path, losses, reference, kinds) -> None:
    """Draws points over a reference cell on the same seed: a dot a seed, a stroke their mean.

    Args:
      rows: rows of finished runs, whose cells are named LOSS-KIND-PLACE.
      path: file to write.
      losses: names of the losses, drawn side by side.
      reference: name of the cell to compare with.
      kinds: 'single' -> its thresholds, 'slices' -> its numbers of slices.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.5), layout='constrained')
    panels = figure.subplots(2, 2, sharex='col', sharey='row')
    columns = {'knn_accuracy': 'kNN accuracy', 'precision_at_1': 'precision at 1'}
    for row, (column, title) in zip(panels, columns.items(), strict=True):
        scores = scores_by_cell(rows, column)
        for axes, (kind, places) in zip(row, kinds.items(), strict=True):
            for shift, loss in zip((-0.2, 0.0, 0.2), losses, strict=True):
                cells = [scores.get(f'{loss}-{kind}-{x}', {}) for x in places]
                gains = [paired_differences(x, scores.get(reference, {})) for x in cells]
                _plot_gains(axes, gains, shift, loss)
            axes.axhline(0, c='#4d4d4d', ls='--')
            axes.set_xticks(range(len(places)), map(str, places))
            axes.set_xlim(-0.5, len(places) - 0.5)
        row[0].set_ylabel(f'{title}, points over {reference}')
    panels[1][0].set_xlabel('One slice at this threshold')
    panels[1][1].set_xlabel('Slices that share the valid range')
    save(figure, path)


def _plot_gains(axes, gains, shift, loss):
    """Plots gains at each place, [places][seeds]; it omits places without a run."""
    found = {place + shift: 100 * np.array(x) for place, x in enumerate(gains) if x}
    for x, values in found.items():
        axes.plot([x] * len(values), values, 'o', ms=4, c=COLOURS[loss])
    means = [np.mean(values) for values in found.values()]
    if found:
        axes.plot([*found], means, '_', ms=16, mew=2.5, c=COLOURS[loss], label=loss)
