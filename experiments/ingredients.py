"""Study: what does each ingredient of the recipe, configs/fer2013.py, bring?

    python experiments/ingredients.py --data FOLDER

The recipe with one ingredient changed at a time, made small: a third of FER2013 and a quarter of the
width, as in configs/fer2013_third.py, and as many epochs as the recipe's. Judged on the faces of
Training that are not trained on. study.py has the options.
"""

import sys

from study import Cell, Study, run_study
from study_figures import draw_cells

SMALL = {
    'data.train_split': 'train[:33%]',
    'eval.split': 'train[33%:]',
    'eval.gallery_size': 9474,
    'model.width_factor': 0.25,
    # 31 epochs of 9,474 faces.
    'train.num_steps': 4600,
    'train.checkpoint_every': 4600,
}
CHANGES = {
    'recipe': {},
    'cross-entropy': {'loss.metric_weight': 0.0},
    'mining-hard': {'loss.mining': 'hard'},
    'no-mirror-image': {'eval.flip': False},
    'no-mean-of-weights': {'train.ema_decay': 0.0},
    'no-smoothing': {'loss.label_smoothing': 0.0},
    'no-erasing': {'augment.erasing': 0.0},
    'more-erasing': {'augment.erasing': 0.5},
    'no-early-images': {'data.early_share': 0.0},
    'equal-classes': {'data.sampling': 'class'},
    'half-rate': {'optim.learning_rate': 1e-3},
}

STUDY = Study(
    name='ingredients',
    config='configs/fer2013.py',
    cells=[Cell(name, {**SMALL, **change}) for name, change in CHANGES.items()],
    seeds=(0, 1),
    reference='recipe',
    draw=draw_cells,
)

if __name__ == '__main__':
    sys.exit(run_study(STUDY))
