"""Study: what does each part of the loss bring, on all Training faces of FER2013?

    python experiments/studies/ablation.py --data FOLDER

4 cells of 3,000 steps (7 epochs) of the network of configs/fer2013_third.py, about 6 minutes a run on 2
cores: cross-entropy only; and batch-hard with one threshold, the best of thresholds.py, with 8, ordinary
and dual. Judged on PublicTest. study.py has the options.
"""

import sys

from study import CROSS_ENTROPY, Cell, Study, one_threshold, run_study
from study_figures import draw_cells

ALL_FACES = {
    'data.train_split': 'train',
    'train.num_steps': 3000,
    'train.checkpoint_every': 3000,
    'eval.split': 'validation',
}
HARD = {'loss.mining': 'hard'}
LOSSES = {
    'cross-entropy': CROSS_ENTROPY,
    'single-dual': {**HARD, **one_threshold(0.1)},
    'slices-ordinary': {**HARD, 'loss.dual': False},
    'slices-dual': HARD,
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
