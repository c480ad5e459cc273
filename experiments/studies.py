"""The studies: what each compares, in one table. `python experiments/study.py NAME` runs one.

All but two (`..._posed`) train on FER2013 and need `--data FOLDER`. Most train the network of
configs/fer2013_third.py on a third of Training, about 3 minutes a run on 2 cores. They measure accuracy
on the faces of Training that they do not train on.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from study_figures import draw_cells, draw_gains

from mtdml_jax import threshold_range


class Cell(NamedTuple):
    """One setting of a study: its name, and config keys with values, such as {'loss.mining': 'all'}."""

    name: str
    settings: Mapping[str, object]


class Study(NamedTuple):
    """What a study compares.

    Attributes:
      name: names the results and the figure.
      question: what it answers.
      config: config file whose settings the cells override.
      cells: the settings.
      seeds: seeds by default.
      reference: name of the cell that a table subtracts from the others.
      draw: (rows, path) -> None: draws the figure from the rows of finished runs.
      converged: kNN accuracy from which on a run counts as converged; None to count none.
    """

    name: str
    question: str
    config: str
    cells: Sequence[Cell]
    seeds: Sequence[int]
    reference: str
    draw: Callable[[list[dict[str, str]], Path], None] = draw_cells
    converged: float | None = None


# What one would train without this project: a classifier on the whole embedding, no metric term.
CROSS_ENTROPY = {'loss.metric_weight': 0.0, 'model.num_slices': 1}
HARD, ALL = {'loss.mining': 'hard'}, {'loss.mining': 'all'}
THIRD = 'configs/fer2013_third.py'


def cells_of(settings: Mapping[str, Mapping[str, object]]) -> list[Cell]:
    """Makes a cell of each entry."""
    return [Cell(name, values) for name, values in settings.items()]


def one_threshold(threshold: float, num_slices: int = 1) -> dict[str, object]:
    """Settings of slices that all have one threshold."""
    return {'model.num_slices': num_slices, 'loss.thresholds': (threshold,) * num_slices}


# Thresholds: many together against each one alone, with embeddings of one size. The valid range of 7
# classes ends at 1.53. Batch-hard mining with the dual loss, as in the paper, and all triplets at weight
# 0.3, the best of the study of minings. 8 slices with one threshold are slices without thresholds.
THRESHOLDS = (0.1, 0.5, 1.0, 1.5)
NUM_SLICES = (2, 4, 8, 16)
LOSSES = {
    'hard': HARD,
    'all': {**ALL, 'loss.metric_weight': 0.3},
    'ordinary': {**HARD, 'loss.dual': False},
}


def _thresholds():
    settings = {
        'cross-entropy': CROSS_ENTROPY,
        'cross-entropy-slices-8': {**CROSS_ENTROPY, 'model.num_slices': 8},
    }
    for name, loss in LOSSES.items():
        changes = {f'single-{t}': one_threshold(t) for t in THRESHOLDS}
        if name != 'ordinary':
            counts = {f'slices-{s}': {'model.num_slices': s} for s in NUM_SLICES}
            changes = {**counts, 'same-0.75': one_threshold(0.75, num_slices=8), **changes}
        settings |= {f'{name}-{key}': {**loss, **change} for key, change in changes.items()}
    return cells_of(settings)


# Minings: softness of the hinge, weight of the metric term, and faces K of each class in a batch (the
# other cells have classes as often as the data). All runs see equally many images, to 2 %.
NUM_CLASSES, IMAGES, LINES = 7, 96_000, 15  # LINES: lines of metrics in a run.
MININGS = {
    'hard': HARD,
    'semihard': {'loss.mining': 'semihard'},
    **{f'quantile-{q}': {'loss.mining': 'quantile', 'loss.quantile': q} for q in (0.1, 0.25, 0.5)},
    'all': ALL,
}


def batches_of(samples_per_class):
    """Batches with K faces of each class, over as many images (to 2 %), logged as often."""
    batch_size = NUM_CLASSES * samples_per_class
    log_every = IMAGES // (LINES * batch_size)
    return {
        'data.sampling': 'class',
        'data.batch_size': batch_size,
        'train.num_steps': LINES * log_every,
        'train.log_every': log_every,
        'train.checkpoint_every': LINES * log_every,
    }


def _minings():
    changes = {
        **{f'weight-{w}': {'loss.metric_weight': w} for w in (0.3, 3.0)},
        'softness-0.3': {'loss.softness': 0.3},
    }
    settings = {'cross-entropy': CROSS_ENTROPY, **MININGS}
    for name, change in changes.items():
        settings |= {f'{x}-{name}': {**MININGS[x], **change} for x in ('hard', 'all')}
    settings |= {f'hard-K-{k}': {**HARD, **batches_of(k)} for k in (4, 9, 18)}
    return cells_of(settings)


def draw_thresholds(rows, path):
    """Draws gains over cross-entropy, over single thresholds and over numbers of slices."""
    places = {'single': THRESHOLDS, 'slices': NUM_SLICES}
    draw_gains(rows, path, LOSSES, 'cross-entropy', places)


# For on_gpu.py: many thresholds against one at full width, on clean labels by the metric term alone, and
# on a third of FER2013.
AT_FULL_WIDTH = {'model.width_factor': 1.0, 'model.dtype': 'bfloat16', 'train.log_every': 100}
POSED = {
    **AT_FULL_WIDTH,
    'loss.softmax_weight': 0.0,
    'model.embedding_norm': 'batch',
    'data.batch_size': 63,
    'train.num_steps': 2000,
    'train.checkpoint_every': 2000,
    'train.best_metric': 'knn_accuracy',
}
ON_GPU = {
    **AT_FULL_WIDTH,
    'data.train_split': 'train[:33%]',
    'eval.split': 'train[33%:]',
    'eval.gallery_size': 9474,
    'eval.flip': False,
    'train.num_steps': 1500,
    'train.checkpoint_every': 1500,
    'train.ema_decay': 0.99,
}


def _gpu_posed():
    # Slices of the shipped config have 32 numbers.
    _, high = threshold_range(NUM_CLASSES, 32)
    single = {f'single-{x}': one_threshold(round(x * high, 3)) for x in (0.2, 0.5, 0.9)}
    return cells_of({name: {**POSED, **x} for name, x in {'slices-8': {}, **single}.items()})


# From dlib's weights: a third of FER2013 for six epochs; drawn faces by the metric term alone.
KNOWS_FACES = {
    'model.pretrained_family': 'dlib_grey',
    'model.pretrained': 'dlib',
    'data.image_size': 72,
    'optim.learning_rate': 3e-4,
    'train.num_steps': 900,
    'train.checkpoint_every': 900,
}
POSED_KNOWN = {
    **KNOWS_FACES,
    'loss.softmax_weight': 0.0,
    'model.embedding_norm': 'batch',
    'train.best_metric': 'knn_accuracy',
}


def _knows_faces(settings):
    single = {f'single-{t}': one_threshold(t) for t in (0.1, 0.5, 1.0)}
    losses = {'cross-entropy': CROSS_ENTROPY, 'slices-8': {}, **single}
    return cells_of({name: {**settings, **x} for name, x in losses.items()})


def _gpu_faces():
    single = {f'single-{t}': one_threshold(t) for t in (0.1, 0.5, 1.0)}
    losses = {
        'cross-entropy': CROSS_ENTROPY,
        **single,
        'slices-8': {},
        'slices-8-all': LOSSES['all'],
    }
    return cells_of({name: {**ON_GPU, **x} for name, x in losses.items()})


STUDIES = {
    study.name: study
    for study in (
        Study(
            'thresholds',
            'do many thresholds beat one on noisy faces?',
            THIRD,
            _thresholds(),
            range(5),
            'cross-entropy',
            draw_thresholds,
        ),
        Study(
            'mining',
            'under which mining do thresholds act?',
            THIRD,
            _minings(),
            (0, 1),
            'cross-entropy',
        ),
        Study(
            'knows_faces',
            'do thresholds act when the network knows faces?',
            THIRD,
            _knows_faces(KNOWS_FACES),
            range(5),
            'cross-entropy',
        ),
        Study(
            'knows_faces_posed',
            'do they act on clean labels when the network knows faces?',
            'configs/quickstart.py',
            _knows_faces(POSED_KNOWN)[1:],
            range(3),
            'slices-8',
        ),
        Study(
            'gpu_posed',
            'do thresholds act on clean labels, at full width?',
            'configs/quickstart.py',
            _gpu_posed(),
            range(5),
            'slices-8',
            converged=0.9,
        ),
        Study(
            'gpu_faces',
            'do many thresholds beat one on noisy faces, at full width?',
            'configs/fer2013_gpu.py',
            _gpu_faces(),
            range(5),
            'cross-entropy',
        ),
    )
}
