"""Study: under which mining do thresholds act, and where do slices collapse?

    python experiments/mining.py --data FOLDER

25 cells on a third of FER2013 (configs/fer2013_third.py), about 3 minutes a run on 2 cores: mining,
softness of the hinge, faces K of a class in the batch, weight of the metric term, one threshold instead
of 8. All cells see equally many images. study.py has the options.
"""

import sys

from study import Cell, Study, run_study
from study_figures import draw_cells

NUM_CLASSES, IMAGES = 7, 94_500
MININGS = {
    'hard': {'loss.mining': 'hard'},
    'semihard': {'loss.mining': 'semihard'},
    **{f'quantile-{q}': {'loss.mining': 'quantile', 'loss.quantile': q} for q in (0.1, 0.25, 0.5)},
    'all': {'loss.mining': 'all'},
}


def batches_of(samples_per_class):
    """Batches with K faces of each class, over the same number of images, logged as often."""
    batch_size = NUM_CLASSES * samples_per_class
    num_steps = IMAGES // batch_size
    steps = {'train.num_steps': num_steps, 'train.checkpoint_every': num_steps}
    return {'data.batch_size': batch_size, **steps, 'train.log_every': num_steps // 15}


def make_cells():
    """All cells, in the order of the figure."""
    variants = {
        'hard semihard all': {
            **{f'softness-{t}': {'loss.softness': t} for t in (0.1, 0.3)},
            **{f'weight-{w}': {'loss.metric_weight': w} for w in (0.3, 3.0)},
        },
        'hard all': {
            **{f'K-{k}': batches_of(k) for k in (4, 18)},
            'single-0.75': {'model.num_slices': 1, 'loss.thresholds': (0.75,)},
        },
    }
    cells = [Cell('cross-entropy', {'loss.metric_weight': 0.0})]
    cells += [Cell(name, mining) for name, mining in MININGS.items()]
    for minings, changes in variants.items():
        for name, change in changes.items():
            cells += [Cell(f'{x}-{name}', {**MININGS[x], **change}) for x in minings.split()]
    return cells


STUDY = Study(
    name='mining',
    config='configs/fer2013_third.py',
    cells=make_cells(),
    seeds=(0, 1),
    reference='cross-entropy',
    draw=draw_cells,
)

if __name__ == '__main__':
    sys.exit(run_study(STUDY))
