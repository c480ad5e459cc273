"""Study: many thresholds together against each one alone, and how alike the slices become.

    python experiments/thresholds.py --data FOLDER [--seeds 0 1] [--cells 'slices-*']

22 cells on a third of FER2013 (configs/fer2013_third.py), about 3 minutes a run on 2 cores, with
embeddings of one size: single thresholds over the valid range against 2 to 16 slices that share it,
against 8 slices that all have one threshold (slices without thresholds, so to speak), and cross-entropy
only. All triplets are judged, of which the ordinary and the dual loss are the same mean; single
thresholds under batch-hard mining show where they differ. study.py has the options.
"""

import json
import sys

import numpy as np
from study import Cell, Study, run_study
from study_figures import save
from study_tables import scores_by_cell

# The valid range of 7 classes ends at 1.53.
THRESHOLDS = (0.1, 0.3, 0.55, 0.75, 1.0, 1.25, 1.5)
FEW_THRESHOLDS = (0.3, 0.75, 1.25)
NUM_SLICES = (2, 4, 8, 16)
# Cells called after these have one threshold. Name -> (settings, number of slices, thresholds).
SINGLES = {
    'single': ({'loss.mining': 'all'}, 1, THRESHOLDS),
    'same': ({'loss.mining': 'all'}, 8, FEW_THRESHOLDS),
    'hard-ordinary': ({'loss.mining': 'hard', 'loss.dual': False}, 1, FEW_THRESHOLDS),
    'hard-dual': ({'loss.mining': 'hard', 'loss.dual': True}, 1, FEW_THRESHOLDS),
}
COLOURS = {
    'single': '#0072b2',
    'same': '#cc79a7',
    'hard-ordinary': '#d55e00',
    'hard-dual': '#e69f00',
    'slices': '#009e73',
    'cross-entropy': '#4d4d4d',
    'agreement': '#0072b2',
    'cka': '#d55e00',
}


def make_cells():
    """All cells; names are 'single-0.75', 'same-0.75', 'slices-8'."""
    cells = [Cell('cross-entropy', {'loss.metric_weight': 0.0})]
    cells += [
        Cell(f'slices-{s}', {'loss.mining': 'all', 'model.num_slices': s}) for s in NUM_SLICES
    ]
    cells.append(Cell('hard-slices-8', {'loss.mining': 'hard'}))
    for name, (settings, num_slices, thresholds) in SINGLES.items():
        for threshold in thresholds:
            slices = {'model.num_slices': num_slices, 'loss.thresholds': (threshold,) * num_slices}
            cells.append(Cell(f'{name}-{threshold}', {**settings, **slices}))
    return cells


def draw(rows, path):
    """Accuracy over thresholds and over numbers of slices; how alike slices are. A dot a seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.4), layout='constrained')
    single, several, alike = figure.subplots(1, 3)
    several.sharey(single)
    scores = scores_by_cell(rows, 'knn_accuracy')
    for name, (_, _, thresholds) in SINGLES.items():
        _plot(single, {t: scores.get(f'{name}-{t}') for t in thresholds}, name)
    _plot(several, {s: scores.get(f'slices-{s}') for s in NUM_SLICES}, 'slices')
    level = scores.get('cross-entropy')
    for axes in (single, several) if level else ():
        mean = 100 * np.mean([*level.values()])
        axes.axhline(mean, c=COLOURS['cross-entropy'], ls='--', label='cross-entropy only')
    for key in ('agreement', 'cka'):
        found = {s: _slice_means(rows, f'slices-{s}', key) for s in NUM_SLICES}
        _plot(alike, found, key)
    single.set_title('kNN accuracy (%), one threshold', loc='left')
    several.set_title('Several thresholds', loc='left')
    alike.set_title('A slice and the others (%)', loc='left')
    single.set_xlabel('Threshold')
    for axes in (several, alike):
        axes.set_xscale('log', base=2)
        axes.set_xticks(NUM_SLICES, map(str, NUM_SLICES))
        axes.set_xlabel('Slices')
    save(figure, path)


def _plot(axes, scores_by_place, name):
    """A dot a seed and a line through the means; places without a run are left out."""
    style = {'color': COLOURS[name]}
    found = {place: [*scores.values()] for place, scores in scores_by_place.items() if scores}
    for place, values in found.items():
        axes.plot([place] * len(values), np.multiply(100, values), 'o', ms=4, alpha=0.5, **style)
    if found:
        means = [100 * np.mean(values) for values in found.values()]
        axes.plot([*found], means, lw=1.8, label=name, **style)


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
