"""Study: many thresholds together against each one alone, and how alike the slices become.

    python experiments/studies/thresholds.py --data FOLDER [--seeds 0 1] [--cells 'hard-*']

24 cells on a third of FER2013 (configs/fer2013_third.py), about 3 minutes a run on 2 cores, with
embeddings of one size. Under batch-hard mining, the paper's, with the dual loss, and under all triplets
at weight 0.3 (the best of mining.py): single thresholds over the valid range, against 2 to 16 slices
that share it, against 8 slices that all have one threshold (slices without thresholds, so to speak).
Batch-hard mining with the ordinary loss for comparison (of all triplets both losses are the same mean).
Cross-entropy only, of the whole embedding and of each of 8 slices. study.py has the options.
"""

import sys

import numpy as np
from study import CROSS_ENTROPY, Cell, Study, one_threshold, run_study
from study_figures import save
from study_tables import paired_differences, scores_by_cell

# The valid range of 7 classes ends at 1.53.
THRESHOLDS = (0.1, 0.5, 1.0, 1.5)
MIDDLE = 0.75
NUM_SLICES = (2, 4, 8, 16)
# Prefix of the cells -> settings.
LOSSES = {
    'hard': {'loss.mining': 'hard'},
    'all': {'loss.mining': 'all', 'loss.metric_weight': 0.3},
    'ordinary': {'loss.mining': 'hard', 'loss.dual': False},
}
COLOURS = {
    'hard': '#d55e00',
    'all': '#009e73',
    'ordinary': '#e69f00',
}


def make_cells():
    """All cells; names are 'hard-slices-8', 'hard-single-0.5', 'hard-same-0.75'."""
    cells = [
        Cell('cross-entropy', CROSS_ENTROPY),
        Cell('cross-entropy-slices-8', {**CROSS_ENTROPY, 'model.num_slices': 8}),
    ]
    for name, loss in LOSSES.items():
        if name != 'ordinary':
            counts = {f'slices-{s}': {'model.num_slices': s} for s in NUM_SLICES}
            counts[f'same-{MIDDLE}'] = one_threshold(MIDDLE, num_slices=8)
            cells += [Cell(f'{name}-{key}', {**loss, **x}) for key, x in counts.items()]
        cells += [Cell(f'{name}-single-{t}', {**loss, **one_threshold(t)}) for t in THRESHOLDS]
    return cells


def draw(rows, path):
    """Points over cross-entropy on the same seed, over thresholds and numbers of slices.

    A dot a seed, a stroke their mean.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.5), layout='constrained')
    panels = figure.subplots(2, 2, sharex='col', sharey='row')
    columns = {'knn_accuracy': 'kNN accuracy', 'precision_at_1': 'precision at 1'}
    for (one, several), (column, title) in zip(panels, columns.items(), strict=True):
        gains = _gains(rows, column)
        for axes, kind, places in ((one, 'single', THRESHOLDS), (several, 'slices', NUM_SLICES)):
            _plot(axes, gains, {name: [f'{name}-{kind}-{x}' for x in places] for name in LOSSES})
            axes.axhline(0, c='#4d4d4d', ls='--')
            axes.set_xticks(range(len(places)), map(str, places))
            axes.set_xlim(-0.5, len(places) - 0.5)
        one.set_ylabel(f'{title}, points over cross-entropy')
    one.set_xlabel('One slice at this threshold')
    several.set_xlabel('Slices that share the valid range')
    save(figure, path)


def _gains(rows, column):
    """Cell -> points over cross-entropy, a list over the seeds in common."""
    scores = scores_by_cell(rows, column)
    level = scores.get('cross-entropy', {})
    return {
        cell: [100 * x for x in paired_differences(of_seed, level)]
        for cell, of_seed in scores.items()
    }


def _plot(axes, gains, cells_by_loss):
    """A dot a seed and a stroke at the mean, losses side by side; cells without a run are left out."""
    for shift, (loss, cells) in zip((-0.2, 0.0, 0.2), cells_by_loss.items(), strict=True):
        found = {place + shift: gains[x] for place, x in enumerate(cells) if gains.get(x)}
        x = [place for place, values in found.items() for _ in values]
        axes.plot(x, [y for values in found.values() for y in values], 'o', ms=4, c=COLOURS[loss])
        if found:
            means = [np.mean(values) for values in found.values()]
            axes.plot([*found], means, '_', ms=16, mew=2.5, c=COLOURS[loss], label=loss)


STUDY = Study(
    name='thresholds',
    config='configs/fer2013_third.py',
    cells=make_cells(),
    seeds=range(5),
    reference='cross-entropy',
    draw=draw,
)

if __name__ == '__main__':
    sys.exit(run_study(STUDY))
