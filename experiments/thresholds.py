"""Study: many thresholds together against each one alone, and how alike the slices become.

    python experiments/thresholds.py --data FOLDER [--seeds 0 1] [--cells 'hard-*']

24 cells on a third of FER2013 (configs/fer2013_third.py), about 3 minutes a run on 2 cores, with
embeddings of one size. Under batch-hard mining, the paper's, with the dual loss, and under all triplets
at weight 0.3 (the best of mining.py): single thresholds over the valid range, against 2 to 16 slices
that share it, against 8 slices that all have one threshold (slices without thresholds, so to speak).
Batch-hard mining with the ordinary loss for comparison (of all triplets both losses are the same mean).
Cross-entropy only, of the whole embedding and of each of 8 slices. study.py has the options.
"""

import json
import sys

import numpy as np
from study import CROSS_ENTROPY, Cell, Study, run_study
from study_figures import save
from study_tables import scores_by_cell

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
    'cross-entropy': '#4d4d4d',
}


def one_threshold(threshold, num_slices=1):
    """Settings of slices that all have one threshold."""
    return {'model.num_slices': num_slices, 'loss.thresholds': (threshold,) * num_slices}


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
    """Accuracy over thresholds and over numbers of slices; how alike slices are. A dot a seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.4), layout='constrained')
    single, several, alike = figure.subplots(1, 3)
    several.sharey(single)
    scores = scores_by_cell(rows, 'knn_accuracy')
    for name in LOSSES:
        _plot(single, {t: scores.get(f'{name}-single-{t}') for t in THRESHOLDS}, name)
        _plot(several, {s: scores.get(f'{name}-slices-{s}') for s in NUM_SLICES}, name)
        same = [100 * x for x in scores.get(f'{name}-same-{MIDDLE}', {}).values()]
        if same:
            label = f'{name}, all slices at {MIDDLE}'
            several.plot([8] * len(same), same, 'x', c=COLOURS[name], label=label)
        _plot(alike, {s: _mean_cka(rows, f'{name}-slices-{s}') for s in NUM_SLICES}, name)
    level = scores.get('cross-entropy')
    for axes in (single, several) if level else ():
        mean = 100 * np.mean([*level.values()])
        axes.axhline(mean, c=COLOURS['cross-entropy'], ls='--', label='cross-entropy only')
    single.set_title('kNN accuracy (%), one threshold', loc='left')
    several.set_title('Several thresholds', loc='left')
    alike.set_title('CKA of a slice and the others (%)', loc='left')
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


def _mean_cka(rows, cell):
    """Seed -> mean linear CKA of a slice and the others (evaluation/slices.py)."""
    return {
        int(row['seed']): np.mean([x['cka'] for x in json.loads(row['slices'])])
        for row in rows
        if row['cell'] == cell
    }


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
