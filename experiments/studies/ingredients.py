"""Study: what does each ingredient of the recipe, configs/fer2013.py, bring?

    python experiments/studies/ingredients.py --data FOLDER

The recipe made small (configs/fer2013_third.py), with one ingredient changed at a time. What the metric
term, its mining and its thresholds bring is in thresholds.py and mining.py. Judged on the faces of
Training that are not trained on. study.py has the options.
"""

import sys

from study import Cell, Study, run_study
from study_figures import draw_cells

CHANGES = {
    'recipe': {},
    **{f'weight-decay-{x}': {'optim.weight_decay': x} for x in (0.05, 0.5)},
    **{f'rate-{x}': {'optim.learning_rate': x} for x in (1e-3, 4e-3, 8e-3)},
    'twice-the-warp': {'augment.rotation': 10.0, 'augment.scale': 0.1, 'augment.shift': 0.08},
    'no-light': {'augment.brightness': 0.0, 'augment.contrast': 0.0},
    'erasing': {'augment.erasing': 0.3},
    'no-mean-of-weights': {'train.ema_decay': 0.0},
    'no-smoothing': {'loss.label_smoothing': 0.0},
    'equal-classes': {'data.sampling': 'class'},
}

STUDY = Study(
    name='ingredients',
    config='configs/fer2013_third.py',
    cells=[Cell(name, change) for name, change in CHANGES.items()],
    seeds=(0, 1),
    reference='recipe',
    draw=draw_cells,
)

if __name__ == '__main__':
    sys.exit(run_study(STUDY))
