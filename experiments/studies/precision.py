"""Study: does the backbone in bfloat16 cost accuracy?

    python experiments/studies/precision.py --data FOLDER

A third of FER2013 (configs/fer2013_third.py), float32 and bfloat16, 3 seeds. study.py has
the options.
"""

import sys

from study import Cell, Study, run_study
from study_figures import draw_cells

STUDY = Study(
    name='precision',
    config='configs/fer2013_third.py',
    cells=[Cell(dtype, {'model.dtype': dtype}) for dtype in ('float32', 'bfloat16')],
    seeds=range(3),
    reference='float32',
    draw=draw_cells,
)

if __name__ == '__main__':
    sys.exit(run_study(STUDY))
