"""Study: many thresholds together against each one alone, and how alike the slices become.

    python experiments/thresholds.py --data FOLDER

19 cells on a third of FER2013 (configs/fer2013_third.py), about 3 minutes a run on 2 cores: single
thresholds over the valid range, ordinary and dual, against 2 to 16 slices, dual, with an embedding of
the same size, and cross-entropy only. study.py has the options.
"""

import json
import sys

import numpy as np
from study import Cell, Study, run_study, scores_by_cell

# What all cells share; from the study of minings.
SETTING = {'loss.mining': 'hard', 'loss.softness': 0.0, 'loss.metric_weight': 1.0}
# The valid range of 7 classes ends at 1.53.
THRESHOLDS = (0.1, 0.3, 0.55, 0.75, 1.0, 1.25, 1.5)
NUM_SLICES = (2, 4, 8, 16)
LOSSES = {'ordinary': False, 'dual': True}
COLOURS = {
    'ordinary': '#d55e00',
    'dual': '#0072b2',
    'slices': '#009e73',
    'cross-entropy': '#4d4d4d',
}


def make_cells():
    """All cells; names are 'dual-0.75', 'slices-8'."""
    cells = [Cell('cross-entropy', {'loss.metric_weight': 0.0})]
    cells += [Cell(f'slices-{s}', {**SETTING, 'model.num_slices': s}) for s in NUM_SLICES]
    for name, dual in LOSSES.items():
        for threshold in THRESHOLDS:
            single = {'model.num_slices': 1, 'loss.thresholds': (threshold,), 'loss.dual': dual}
            cells.append(Cell(f'{name}-{threshold}', {**SETTING, **single}))
    return cells


def draw(rows, path):
    """Accuracy over thresholds and over numbers of slices; how alike slices are. A dot a seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.4), layout='constrained')
    single, several, alike = figure.subplots(1, 3)
    several.sharey(single)
    scores = scores_by_cell(rows, 'knn_accuracy')
    for name in LOSSES:
        _plot(single, {t: scores.get(f'{name}-{t}') for t in THRESHOLDS}, name)
    _plot(several, {s: scores.get(f'slices-{s}') for s in NUM_SLICES}, 'slices')
    level = scores.get('cross-entropy')
    for axes in (single, several) if level else ():
        mean = 100 * np.mean([*level.values()])
        axes.axhline(mean, c=COLOURS['cross-entropy'], ls='--', label='cross-entropy only')
    for key, colour, marker in (('agreement', 'dual', 'o'), ('cka', 'ordinary', 's')):
        found = {s: _slice_means(rows, f'slices-{s}', key) for s in NUM_SLICES}
        _plot(alike, found, colour, label=key, marker=marker)
    single.set_title('kNN accuracy (%), one threshold', loc='left')
    several.set_title('Several thresholds, dual', loc='left')
    alike.set_title('A slice and the others (%)', loc='left')
    single.set_xlabel('Threshold')
    for axes in (several, alike):
        axes.set_xscale('log', base=2)
        axes.set_xticks(NUM_SLICES, map(str, NUM_SLICES))
        axes.set_xlabel('Slices')
    for axes in (single, several, alike):
        axes.spines[['top', 'right']].set_visible(False)
        axes.grid(color='#e4e8ed')
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
    figure.savefig(path, dpi=100)


def _plot(axes, scores_by_place, colour, label=None, marker='o'):
    """A dot a seed and a line through the means; places without a run are left out."""
    style = {'color': COLOURS[colour]}
    found = {place: [*scores.values()] for place, scores in scores_by_place.items() if scores}
    for place, values in found.items():
        axes.plot([place] * len(values), np.multiply(100, values), marker, ms=4, alpha=0.5, **style)
    if found:
        means = [100 * np.mean(values) for values in found.values()]
        axes.plot([*found], means, lw=1.8, label=label or colour, **style)


def _slice_means(rows, cell, key):
    """Seed -> mean over the slices of a column of the study of slices."""
    return {
        int(row['seed']): np.mean([x[key] for x in json.loads(row['slices'])])
        for row in rows
        if row['cell'] == cell
    }


STUDY = Study(
    name='thresholds',
    config='configs/fer2013_third.py',
    cells=make_cells(),
    seeds=range(5),
    reference='slices-8',
    draw=draw,
)

if __name__ == '__main__':
    sys.exit(run_study(STUDY))
