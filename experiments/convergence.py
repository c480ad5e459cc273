"""Study: which losses converge by themselves, without a softmax term?

    python experiments/convergence.py

57 cells, 8 seeds: 48 on scikit-learn's digits (configs/digits.py; half a minute a run on 2 cores), 9
on synthetic faces. Batch-hard mining with the ordinary and the dual loss, and all triplets (where both
losses are one), with and without a standardised embedding (model.embedding_norm), over distances,
thresholds (8 slices, or single ones as shares of the valid range), learning rates and a deeper network.
Needs no data. study.py has the options.
"""

import sys
from collections import Counter

from study import Cell, Study, one_threshold, run_study
from study_figures import draw_cells

from mtdml_jax import threshold_range

LOSSES = {
    'ordinary': {'loss.mining': 'hard', 'loss.dual': False},
    'dual': {'loss.mining': 'hard', 'loss.dual': True},
    'all': {'loss.mining': 'all'},
}
NORMS = {'': {'model.embedding_norm': 'none'}, '-norm': {'model.embedding_norm': 'batch'}}
SHARES = (0.2, 0.5, 0.9)
NUM_DIGITS, NUM_EXPRESSIONS, EMBEDDING_SIZE = 10, 7, 64  # As in configs/digits.py and the data.
CHANGES = {
    'squared': {'loss.distance': 'squared_euclidean'},
    **{f'lr-{rate}': {'optim.learning_rate': rate} for rate in (1e-3, 1e-2)},
    'resnet34': {'model.backbone': 'resnet34'},
}
FACES = {
    'data.name': 'synthetic_faces',
    'data.image_size': 48,
    'data.batch_size': 63,
    'augment.flip': 0.5,
    'model.stem': 'small',
}


def single(share, num_classes=NUM_DIGITS):
    """One slice at a threshold, given as a share of the valid range."""
    _, high = threshold_range(num_classes, EMBEDDING_SIZE)
    return one_threshold(round(share * high, 3))


def make_cells():
    """All cells; names are 'dual-slices', 'dual-norm-0.5', 'all-squared', 'faces-dual-norm'."""
    cells = []
    for name, loss in LOSSES.items():
        for suffix, norm in NORMS.items():
            prefix, settings = f'{name}{suffix}', {**loss, **norm}
            changes = {'slices': {}, **{f'{x}': single(x) for x in SHARES}, **CHANGES}
            cells += [Cell(f'{prefix}-{key}', {**settings, **x}) for key, x in changes.items()]
            cells.append(Cell(f'faces-{prefix}', {**FACES, **settings}))
    faces = {**FACES, **LOSSES['dual'], **NORMS['-norm']}
    cells += [Cell(f'faces-dual-norm-{x}', {**faces, **single(x, NUM_EXPRESSIONS)}) for x in SHARES]
    return cells


def draw(rows, path):
    """The cells that the most seeds ran; those with fewer are in the table only."""
    seeds = Counter(row['cell'] for row in rows)
    most = max(seeds.values())
    draw_cells([row for row in rows if seeds[row['cell']] == most], path)


STUDY = Study(
    name='convergence',
    config='configs/digits.py',
    cells=make_cells(),
    seeds=range(8),
    reference='dual-norm-slices',
    draw=draw,
    converged=0.9,
)

if __name__ == '__main__':
    sys.exit(run_study(STUDY))
