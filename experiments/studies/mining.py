"""Study: under which mining do thresholds act, and where do slices collapse?

    python experiments/studies/mining.py --data FOLDER

16 cells on a third of FER2013 (configs/fer2013_third.py), about 3 minutes a run on 2 cores: mining,
softness of the hinge, weight of the metric term, and faces K of each class in the batch (the others have
classes as often as the faces are). All runs see equally many images, to 2 %. study.py has the options.
"""

import sys

from study import CROSS_ENTROPY, Cell, Study, run_study
from study_figures import draw_cells

NUM_CLASSES, IMAGES, LINES = 7, 96_000, 15  # lines of metrics a run
MININGS = {
    'hard': {'loss.mining': 'hard'},
    'semihard': {'loss.mining': 'semihard'},
    **{f'quantile-{q}': {'loss.mining': 'quantile', 'loss.quantile': q} for q in (0.1, 0.25, 0.5)},
    'all': {'loss.mining': 'all'},
}


def batches_of(samples_per_class):
    """Batches with K faces of each class, over as many images (to 2 %), logged as often."""
    batch_size = NUM_CLASSES * samples_per_class
    log_every = IMAGES // (LINES * batch_size)
    num_steps = LINES * log_every
    return {
        'data.sampling': 'class',
        'data.batch_size': batch_size,
        'train.num_steps': num_steps,
        'train.log_every': log_every,
        'train.checkpoint_every': num_steps,
    }


def make_cells():
    """All cells, in the order of the figure."""
    changes = {
        **{f'weight-{w}': {'loss.metric_weight': w} for w in (0.3, 3.0)},
        'softness-0.3': {'loss.softness': 0.3},
    }
    settings = {'cross-entropy': CROSS_ENTROPY, **MININGS}
    for name, change in changes.items():
        settings |= {f'{x}-{name}': {**MININGS[x], **change} for x in ('hard', 'all')}
    settings |= {f'hard-K-{k}': {**MININGS['hard'], **batches_of(k)} for k in (4, 9, 18)}
    return [Cell(name, x) for name, x in settings.items()]


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
