"""The studies of on_gpu.py: many thresholds against one, on noisy labels and on clean ones."""

from harness import ROOT  # noqa: F401, it makes the folders of study.py known
from study import CROSS_ENTROPY, Cell, Study, one_threshold, run_study  # noqa: F401
from study_figures import draw_cells

from mtdml_jax import threshold_range

# A third of FER2013, full width.
FULL_WIDTH = {
    'data.train_split': 'train[:33%]',
    'eval.split': 'train[33%:]',
    'eval.gallery_size': 9474,
    'eval.flip': False,
    'model.dtype': 'bfloat16',
    'train.num_steps': 1500,
    'train.log_every': 100,
    'train.checkpoint_every': 1500,
    'train.ema_decay': 0.99,
}
# The metric term alone, on clean labels.
POSED = {
    'loss.softmax_weight': 0.0,
    'model.embedding_norm': 'batch',
    'model.width_factor': 1.0,
    'model.dtype': 'bfloat16',
    'data.batch_size': 63,
    'train.num_steps': 2000,
    'train.checkpoint_every': 2000,
    'train.log_every': 100,
    'train.best_metric': 'knn_accuracy',
}
_, HIGH = threshold_range(7, 32)
ON_POSED = {'slices-8': {}}
ON_POSED |= {f'single-{x}': one_threshold(round(x * HIGH, 3)) for x in (0.2, 0.5, 0.9)}
ON_FACES = {'cross-entropy': CROSS_ENTROPY}
ON_FACES |= {f'single-{t}': one_threshold(t) for t in (0.1, 0.5, 1.0)}
ON_FACES |= {'slices-8': {}, 'slices-8-all': {'loss.mining': 'all', 'loss.metric_weight': 0.3}}
STUDIES = (
    Study(
        name='gpu_posed',
        config='configs/quickstart.py',
        cells=[Cell(name, {**POSED, **x}) for name, x in ON_POSED.items()],
        seeds=range(5),
        reference='slices-8',
        draw=draw_cells,
        converged=0.9,
    ),
    Study(
        name='gpu_faces',
        config='configs/fer2013_gpu.py',
        cells=[Cell(name, {**FULL_WIDTH, **x}) for name, x in ON_FACES.items()],
        seeds=range(5),
        reference='cross-entropy',
        draw=draw_cells,
    ),
)
