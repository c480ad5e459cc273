"""Figures of studies."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

COLOURS = {'knn': '#0072b2', 'softmax': '#d55e00', 'active': '#009e73'}


def draw_cells(rows: Sequence[Mapping[str, str]], path: Path) -> None:
    """Accuracy and active share of the cells, in the order of their first rows.

    A dot a seed; of the active share, a stroke a slice too. Runs without a softmax head have no orange
    dot.

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
