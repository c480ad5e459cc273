"""Study: which losses converge by themselves, without a softmax term?

    python experiments/studies/convergence.py

60 cells, 10 seeds: 51 on scikit-learn's digits (configs/digits.py; half a minute a run on 2 cores), 9
on synthetic faces. Batch-hard mining with the ordinary and the dual loss, and all triplets (where both
losses are one), with and without a standardised embedding (model.embedding_norm), over distances,
thresholds (8 slices; or one threshold, a share of the valid range, in one slice or 8), learning rates
and a deeper network. Needs no data. study.py has the options.
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
NUM_DIGITS, NUM_EXPRESSIONS = 10, 7
NUM_SLICES, EMBEDDING_SIZE = 8, 64  # As in configs/digits.py.
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


def one_share(share, num_classes=NUM_DIGITS, num_slices=1):
    """Slices at one threshold, given as a share of the valid range."""
    _, high = threshold_range(num_classes, EMBEDDING_SIZE)
    return one_threshold(round(share * high, 3), num_slices)


def make_cells():
    """All cells; names are 'dual-slices', 'dual-norm-0.5', 'all-squared', 'faces-dual-norm'."""
    cells = []
    for name, loss in LOSSES.items():
        for suffix, norm in NORMS.items():
            prefix, settings = f'{name}{suffix}', {**loss, **norm}
            changes = {'slices': {}, **{f'{x}': one_share(x) for x in SHARES}, **CHANGES}
            cells += [Cell(f'{prefix}-{key}', {**settings, **x}) for key, x in changes.items()]
            cells.append(Cell(f'faces-{prefix}', {**FACES, **settings}))
    converging = {**LOSSES['dual'], **NORMS['-norm']}
    for x in SHARES:
        same = one_share(x, num_slices=NUM_SLICES)
        cells.append(Cell(f'dual-norm-same-{x}', {**converging, **same}))
    for x in SHARES:
        faces = {**FACES, **converging, **one_share(x, NUM_EXPRESSIONS)}
        cells.append(Cell(f'faces-dual-norm-{x}', faces))
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
    seeds=range(10),
    reference='dual-norm-slices',
    draw=draw,
    converged=0.9,
)

if __name__ == '__main__':
    sys.exit(run_study(STUDY))
