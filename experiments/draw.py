"""Draws the pictures of docs/method.md, and the sheet of synthetic faces in the README.

python experiments/draw.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parents[1]))

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle

from mtdml_jax.data.face_drawing import EXPRESSIONS, draw_face

FIGURES = Path(__file__).absolute().parent / 'figures'
PERSONS = (0, 1, 4, 5, 32, 47)  # Of the train split.
BLUE, ORANGE, GREEN, GREY = '#0072b2', '#d55e00', '#009e73', '#7a8594'


def main():
    """Writes the figures."""
    # The figures are small in inches and have many dots, so their texts can be read on a phone.
    for draw in (draw_slices, draw_dual, draw_collapse):
        figure = draw()
        figure.savefig(FIGURES / f'method_{draw.__name__.removeprefix("draw_")}.png', dpi=170)
    draw_faces().savefig(FIGURES / 'synthetic_faces.png', dpi=80)


def draw_faces():
    """Draws synthetic faces: one column for each expression, one row for each person."""
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
    return figure


def draw_slices():
    """An embedding, cut into slices, each with its threshold on the valid range."""
    figure = Figure(figsize=(5.8, 2.1), layout='constrained')
    axes = figure.subplots()
    thresholds = np.sqrt(2 * 7 / 6) * (np.arange(8) + 0.5) / 8
    for index, threshold in enumerate(thresholds):
        colour = (0.0, 0.25 + 0.055 * index, 0.55 + 0.05 * index)
        axes.add_patch(Rectangle((index, 1.5), 0.94, 0.5, color=colour))
        axes.text(index + 0.47, 1.75, f'slice {index + 1}', color='w', ha='center', va='center')
        axes.plot([index + 0.47] * 2, [1.4, 0.75], c=GREY, lw=1)
        axes.text(index + 0.47, 0.55, f'τ {threshold:.2f}', ha='center', va='center')
    axes.text(0, 2.2, 'one embedding of a face, cut into slices of length one')
    axes.annotate('', (7.9, 0.2), (0, 0.2), arrowprops={'arrowstyle': '->', 'color': GREY})
    style = {'va': 'center', 'color': GREY}
    axes.text(0, -0.12, '0: any order will do', **style)
    axes.text(7.94, -0.12, '1.53: seven classes as far apart as can be', ha='right', **style)
    axes.set(xlim=(-0.1, 8.1), ylim=(-0.35, 2.45))
    axes.axis('off')
    return figure


def draw_dual():
    """A triplet that keeps its threshold at the anchor and violates it at the positive."""
    figure = Figure(figsize=(5.8, 3.5), layout='constrained')
    anchor, positive, negative, threshold = (0.0, 0.0), (1.0, 0.0), (1.62, 0.42), 0.5
    panels = zip(
        figure.subplots(1, 2),
        (anchor, positive),
        (
            'The ordinary loss judges\nfrom the anchor: the negative\nis far enough, all seems well',
            'The dual loss also judges\nfrom the positive: the same\nnegative is too near',
        ),
        (GREEN, ORANGE),
        strict=True,
    )
    for axes, centre, title, colour in panels:
        axes.add_patch(Circle(centre, 1 + threshold, fill=False, color=colour, lw=1.5, ls='--'))
        places = (-12, 6), (-4, 8), (6, 4)
        for name, point, place in zip('apn', (anchor, positive, negative), places, strict=True):
            axes.plot(*point, 'o', ms=9, c=ORANGE if name == 'n' else BLUE)
            axes.annotate(name, point, place, textcoords='offset points', size=12)
        axes.plot(*zip(anchor, positive, strict=True), c=BLUE, lw=1.5)
        axes.plot(*zip(centre, negative, strict=True), c=colour, lw=1.5)
        axes.text(centre[0], 1 + threshold + 0.1, 'D(a,p) + τ', ha='center', color=colour)
        axes.set_title(title, size=10.5)
        axes.set(xlim=(-1.6, 2.7), ylim=(-1.6, 2.0), aspect='equal')
        axes.axis('off')
    return figure


def draw_collapse():
    """The loss of one triplet against the size of all distances."""
    figure = Figure(figsize=(5.8, 2.9), layout='constrained')
    scale, threshold = np.linspace(0, 1, 50), 0.5
    panels = zip(
        figure.subplots(1, 2, sharey=True),
        ((0.4, 1.2), (1.2, 0.8)),
        (
            'Hardest positive nearer\nthan hardest negative',
            'Hardest positive farther,\nas with noisy labels',
        ),
        (
            ('learning pulls here', (0.62, 0.02), (0.4, 0.22)),
            ('and here: collapse', (0.02, 0.49), (0.15, 0.25)),
        ),
        strict=True,
    )
    for axes, (positive, negative), title, note in panels:
        loss = np.maximum(scale * (positive - negative) + threshold, 0)
        axes.plot(scale, loss, c=BLUE, lw=2)
        axes.axhline(threshold, c=GREY, lw=1, ls=':')
        best = np.argmin(loss)
        axes.plot(scale[best], loss[best], 'o', c=ORANGE, ms=8)
        axes.annotate(*note, color=ORANGE, arrowprops={'arrowstyle': '->'})
        axes.set_title(title, size=10.5)
        axes.set_xlabel('size of all distances\n(0: every face is one point)')
        axes.set_ylim(0, 1)
        axes.spines[['top', 'right']].set_visible(False)
        axes.text(0.99, threshold + 0.02, 'τ', color=GREY, ha='right')
    figure.axes[0].set_ylabel('loss of a triplet')
    return figure


if __name__ == '__main__':
    main()
