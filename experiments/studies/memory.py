"""Study: does a memory of earlier batches help (cross-batch memory)?

    python experiments/studies/memory.py [--data FOLDER]

Without --data on scikit-learn's digits by the metric loss alone, 6 cells, 3 seeds; with it on a third of
FER2013 (configs/fer2013_third.py), 4 cells, 2 seeds. Batch-hard and pairs of rank 0.1 choose from the
batch, or from so many earlier batches too, after a third of training without. study.py has the options.
"""

import sys

from study import Cell, Study, run_study
from study_figures import draw_cells

LOSSES = {
    'hard': {'loss.mining': 'hard'},
    'quantile-0.1': {'loss.mining': 'quantile', 'loss.quantile': 0.1},
}


def make_cells(losses, batches, batch_size, num_steps):
    """All cells; names are 'hard', 'hard-memory-8'."""
    cells = []
    for name, settings in losses.items():
        cells.append(Cell(name, settings))
        for count in batches:
            memory = {'loss.memory_size': count * batch_size, 'loss.memory_start': num_steps // 3}
            cells.append(Cell(f'{name}-memory-{count}', {**settings, **memory}))
    return cells


DIGITS = Study(
    name='memory_digits',
    config='configs/digits.py',
    cells=make_cells(
        # They converge where the embedding is standardised (convergence.py).
        {name: {**loss, 'model.embedding_norm': 'batch'} for name, loss in LOSSES.items()},
        batches=(2, 8),
        batch_size=100,
        num_steps=300,
    ),
    seeds=range(3),
    reference='hard',
    draw=draw_cells,
    converged=0.9,
)
FACES = Study(
    name='memory_faces',
    config='configs/fer2013_third.py',
    cells=make_cells(
        LOSSES,
        batches=(64,),
        batch_size=64,
        num_steps=1500,
    ),
    seeds=(0, 1),
    reference='hard',
    draw=draw_cells,
)

if __name__ == '__main__':
    sys.exit(run_study(FACES if '--data' in sys.argv else DIGITS))
