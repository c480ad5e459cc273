"""Study: what does each ingredient of the recipe, configs/fer2013.py, bring?

    python experiments/ingredients.py --data FOLDER

The recipe with one ingredient changed at a time, made small: a third of FER2013, as in
configs/fer2013_third.py, on quarter maps, all at 48 px, for as many epochs as the recipe has. Judged on
the faces of Training that are not trained on. Not run yet; 3,800 steps of this network took 7 minutes
on 2 cores. study.py has the options.
"""

import sys

from study import Cell, Study, run_study
from study_figures import draw_cells

SMALL = {
    'data.train_split': 'train[:33%]',
    'eval.split': 'train[33%:]',
    'eval.gallery_size': 9474,
    'model.stem': 'small',
    'data.early_share': 0.0,
    # 33 epochs of 9,474 faces.
    'train.num_steps': 4900,
    'train.checkpoint_every': 4900,
}
CHANGES = {
    'recipe': {},
    'cross-entropy': {'loss.metric_weight': 0.0},
    'mining-hard': {'loss.mining': 'hard'},
    'blocks-as-shortcuts': {'model.zero_init_residual': True},
    'twice-the-warp': {'augment.rotation': 10.0, 'augment.scale': 0.1, 'augment.shift': 0.08},
    'no-light': {'augment.brightness': 0.0, 'augment.contrast': 0.0},
    'erasing': {'augment.erasing': 0.3},
    'no-mean-of-weights': {'train.ema_decay': 0.0},
    'no-smoothing': {'loss.label_smoothing': 0.0},
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
