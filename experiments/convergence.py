"""Study: which losses converge by themselves, without a softmax term?

    python experiments/convergence.py

42 cells, 10 seeds: 36 on scikit-learn's digits (configs/digits.py; half a minute a run on 2 cores), 6
on synthetic faces. Batch-hard mining with the ordinary and the dual loss, and all triplets (where both
losses are one), over distances, thresholds (single ones as shares of the valid range, or 8 slices),
learning rates and depths. Needs no data. study.py has the options.
"""

import sys

from study import Cell, Study, run_study
from study_figures import draw_cells

from mtdml_jax import threshold_range

LOSSES = {
    'ordinary': {'loss.mining': 'hard', 'loss.dual': False},
    'dual': {'loss.mining': 'hard', 'loss.dual': True},
    'all': {'loss.mining': 'all'},
}
DISTANCES = ('euclidean', 'squared_euclidean')
SHARES = (0.2, 0.5, 0.9)
EMBEDDING_SIZE = 64  # As in configs/digits.py.
VARIANTS = {
    **{f'lr-{rate}': {'optim.learning_rate': rate} for rate in (1e-3, 1e-2)},
    **{depth: {'model.backbone': depth} for depth in ('resnet34', 'resnet50')},
}
FACES = {
    'data.name': 'synthetic_faces',
    'data.image_size': 48,
    'data.batch_size': 63,
    'augment.flip': 0.5,
    'model.stem': 'small',
}


def single(share, distance, num_classes):
    """One slice at a threshold, given as a share of the valid range."""
    _, high = threshold_range(num_classes, EMBEDDING_SIZE, distance)
    return {'model.num_slices': 1, 'loss.thresholds': (round(share * high, 3),)}


def make_cells():
    """All cells; names are 'dual-squared-0.5', 'all-slices', 'faces-dual-0.5'."""
    cells = []
    for name, loss in LOSSES.items():
        for distance in DISTANCES:
            metric = {**loss, 'loss.distance': distance}
            prefix = name if distance == 'euclidean' else f'{name}-squared'
            cells.append(Cell(f'{prefix}-slices', metric))
            cells += [
                Cell(f'{prefix}-{share}', {**metric, **single(share, distance, num_classes=10)})
                for share in SHARES
            ]
        cells += [Cell(f'{name}-{key}', {**loss, **change}) for key, change in VARIANTS.items()]
        faces = {**FACES, **loss}
        cells.append(Cell(f'faces-{name}-slices', faces))
        cells.append(Cell(f'faces-{name}-0.5', {**faces, **single(0.5, 'euclidean', 7)}))
    return cells


STUDY = Study(
    name='convergence',
    config='configs/digits.py',
    cells=make_cells(),
    seeds=range(10),
    reference='dual-slices',
    draw=draw_cells,
    converged=0.9,
)

if __name__ == '__main__':
    sys.exit(run_study(STUDY))
