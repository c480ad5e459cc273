"""Study: what does each part of the loss bring, on all Training faces of FER2013?

    python experiments/ablation.py --data FOLDER

5 cells of 4,500 steps (10 epochs) of the network of configs/fer2013_third.py: cross-entropy only; and
batch-hard with one threshold, the best so far of thresholds.py, with 8, ordinary and dual; all triplets
with 8. Judged on PublicTest. study.py has the options.
"""

import sys

from study import CROSS_ENTROPY, Cell, Study, run_study
from study_figures import draw_cells

ALL_FACES = {
    'data.train_split': 'train',
    'train.num_steps': 4500,
    'train.checkpoint_every': 4500,
    'eval.split': 'validation',
}
SINGLE = {'model.num_slices': 1, 'loss.thresholds': (1.0,)}
LOSSES = {
    'cross-entropy': CROSS_ENTROPY,
    'single-dual': {'loss.mining': 'hard', 'loss.dual': True, **SINGLE},
    'slices-ordinary': {'loss.mining': 'hard', 'loss.dual': False},
    'slices-dual': {'loss.mining': 'hard', 'loss.dual': True},
    'slices-all': {'loss.mining': 'all', 'loss.metric_weight': 0.3},
}

STUDY = Study(
    name='ablation',
    config='configs/fer2013_third.py',
    cells=[Cell(name, {**ALL_FACES, **loss}) for name, loss in LOSSES.items()],
    seeds=range(3),
    reference='cross-entropy',
    draw=draw_cells,
)

if __name__ == '__main__':
    sys.exit(run_study(STUDY))
