"""Draws the sheet of synthetic faces that the README shows: an expression a column, a person a row.

python experiments/draw_synthetic_faces.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from matplotlib.figure import Figure

from mtdml_jax.data.face_drawing import EXPRESSIONS, draw_face

PERSONS = (0, 1, 4, 5, 32, 47)
SHEET = Path(__file__).parent / 'figures' / 'synthetic_faces.png'


def main():
    """Writes the sheet; its faces are in the train split of the data set."""
    height = 1.3 * len(PERSONS) + 0.3
    figure = Figure(figsize=(9.1, height))
    axes = figure.subplots(len(PERSONS), len(EXPRESSIONS))
    for row, person in zip(axes, PERSONS, strict=True):
        for picture, (axis, expression) in enumerate(zip(row, EXPRESSIONS, strict=True)):
            face = draw_face(0, person, expression, picture)
            axis.imshow(face, cmap='gray', vmin=0, vmax=255, interpolation='nearest')
            axis.set_axis_off()
    for axis, expression in zip(axes[0], EXPRESSIONS, strict=True):
        axis.set_title(expression, fontsize=11)
    figure.subplots_adjust(0.005, 0.005, 0.995, 1 - 0.3 / height, wspace=0.03, hspace=0.03)
    SHEET.parent.mkdir(exist_ok=True)
    figure.savefig(SHEET, dpi=80)


if __name__ == '__main__':
    main()
