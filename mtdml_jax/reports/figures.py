"""Draws the report's figures without global state, and returns each as a data URI."""

import base64
import io
import warnings
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.figure import Figure
from PIL import Image
from sklearn.manifold import TSNE

from mtdml_jax.images.pixels import open_upright
from mtdml_jax.scoring.classify import accuracy_interval, best_classifier

# Okabe and Ito's palette, which suits all kinds of colour vision. With more classes than colours the
# markers change too.
COLOURS = ('#0072b2', '#e69f00', '#009e73', '#cc79a7', '#d55e00', '#56b4e9', '#4d4d4d', '#b8a800')
MARKERS = 'os^DvPX*'
INK, MUTED, GRID = '#1c2733', '#5d6b7a', '#e4e8ed'
THRESHOLD_MAP, SHARE_MAP = 'viridis_r', 'Blues'
LOSSES = {
    'train/loss': 'Total',
    'train/metric_loss': 'Multi-threshold',
    'train/softmax_loss': 'Cross-entropy',
}
ACCURACIES = {
    'train/accuracy': 'Train',
    'validation/softmax_accuracy': 'Validation, softmax',
    'validation/knn_accuracy': 'Validation, kNN',
    'validation/map_at_r': 'Validation, MAP@R',
}
DISTANCES = {'positive_distance': 'Hardest positive', 'negative_distance': 'Hardest negative'}
# `Any`, because matplotlib's own type enumerates all valid keys.
STYLE: Any = {
    'font.family': 'DejaVu Sans',
    'font.size': 8.5,
    'text.color': INK,
    'axes.edgecolor': '#b6bfc9',
    'axes.labelcolor': MUTED,
    'axes.grid': True,
    'axes.axisbelow': True,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'grid.color': GRID,
    'grid.linewidth': 0.8,
    'xtick.color': MUTED,
    'ytick.color': MUTED,
    'xtick.major.size': 0,
    'ytick.major.size': 0,
    'lines.linewidth': 1.8,
    'legend.fontsize': 8,
    'legend.frameon': False,
    'legend.handlelength': 1.4,
    'legend.columnspacing': 1.4,
    # Text stays text, even with a $, and equal figures become equal files.
    'text.parse_math': False,
    'svg.fonttype': 'none',
    'svg.hashsalt': 'mtdml_jax',
}
DOTTED = {'marker': 'o', 'markersize': 4.0}
MAX_CURVE_POINTS = 250
MAX_ANNOTATED_CLASSES = 12
MAX_LEGEND_CLASSES = 24
MAX_NAME_LENGTH = 16
MAX_IMAGE_SIDE = 192


def draw_figures(history: list[dict], evaluation: dict) -> dict[str, str | None]:
    """Draws all figures of the report except the t-SNE map.

    Args:
      history: lines of metrics.jsonl.
      evaluation: content of evaluation.json.

    Returns:
      Figure name -> data URI, or None if there is nothing to draw.
    """
    slices, classifiers = evaluation['slices'], evaluation['classifiers']
    thresholds = [s['threshold'] for s in slices]
    drawn = {
        'loss': curves_figure(history, LOSSES, 'Loss'),
        'accuracy': curves_figure(history, ACCURACIES, 'Accuracy', percent=True),
        'active_share': slice_curves_figure(
            history, 'train/slice_active_share', thresholds, 'Active share'
        ),
        'negative_distance': slice_curves_figure(
            history, 'train/slice_negative_distance', thresholds, 'Mean distance'
        ),
        'slice_active_share': threshold_figure(
            slices, {'active_share': 'Active share'}, 'Active share'
        ),
        'slice_distances': threshold_figure(slices, DISTANCES, 'Mean distance'),
    }
    if not classifiers:
        return drawn
    alone, first = ([s[key] for s in slices] for key in ('knn_accuracy', 'knn_accuracy_first'))
    numbers, count = list(range(1, len(slices) + 1)), evaluation['num_examples']
    confusion = classifiers[best_classifier(classifiers)]['confusion_matrix']
    return drawn | {
        'confusion': confusion_figure(confusion, evaluation['class_names']),
        'slice_accuracy': accuracy_figure(
            thresholds, 'Threshold of the slice', alone, count, whole=first[-1]
        ),
        'first_slices': accuracy_figure(numbers, 'Number of slices', first, count),
    }


def _data_uri(kind: str, content: bytes) -> str:
    return f'data:image/{kind};base64,{base64.b64encode(content).decode()}'


def image_uri(encoded: bytes) -> tuple[str, int]:
    """Returns the data URI of an encoded image in any format that PIL reads, and its larger side.

    Images whose larger side exceeds 192 px are reduced, so that reports on photographs stay small.
    """
    image: Image.Image = Image.open(io.BytesIO(encoded))
    side = max(image.size)
    if side <= MAX_IMAGE_SIDE and image.format in ('PNG', 'JPEG', 'GIF', 'WEBP'):
        return _data_uri(image.format.lower(), encoded), side
    image = open_upright(encoded)
    image.thumbnail((MAX_IMAGE_SIDE, MAX_IMAGE_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, 'PNG')
    return _data_uri('png', buffer.getvalue()), max(image.size)


def _draw(paint, width: float = 4.2, height: float = 2.75) -> str:
    """Calls paint(figure, axes) on an empty figure, sized in inches; returns it as an SVG data URI."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # matplotlib's font may lack the script of a class name, but the reader's browser has a font.
        warnings.filterwarnings('ignore', message='Glyph .* missing from')
        figure = Figure(figsize=(width, height), layout='constrained')
        paint(figure, figure.subplots())
        figure.savefig(buffer, format='svg', dpi=240, metadata={'Date': None})
    # The layout uses matplotlib's own wide font; the browser shows a font of the reader's system.
    fonts = b"system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
    return _data_uri('svg+xml', buffer.getvalue().replace(b"'DejaVu Sans'", fonts))


def _short(name: str) -> str:
    return name if len(name) <= MAX_NAME_LENGTH else name[: MAX_NAME_LENGTH - 1] + '…'


def _percent(axis) -> None:
    axis.set_major_formatter(lambda share, _: f'{100 * share:g} %')


def _legend(figure, count: int, max_columns: int = 3) -> None:
    if count:
        figure.legend(loc='outside upper left', ncols=min(count, max_columns))


def _series(history: list[dict], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the steps [n] and values [n] or [n, S] of a metric; long runs are averaged over bins."""
    lines = [line for line in history if key in line]
    steps = np.array([line['step'] for line in lines], float)
    values = np.array([line[key] for line in lines], float)
    if len(lines) > MAX_CURVE_POINTS:
        bins = np.array_split(np.arange(len(lines)), MAX_CURVE_POINTS)
        steps, values = (np.stack([x[b].mean(axis=0) for b in bins]) for x in (steps, values))
    return steps, values


def curves_figure(
    history: list[dict], names: dict[str, str], label: str, percent: bool = False
) -> str | None:
    """Draws metrics against the training step.

    Args:
      history: lines of metrics.jsonl.
      names: metric key -> name in the legend; metrics that the history lacks are left out.
      label: what the vertical axis shows.
      percent: whether the values are shares from 0 to 1, which are shown as per cent.

    Returns:
      A data URI, or None if the history has none of the metrics.
    """
    curves = {name: _series(history, key) for key, name in names.items()}
    curves = {name: curve for name, curve in curves.items() if len(curve[0])}
    if not curves:
        return None

    def paint(figure, axes):
        for (name, curve), colour in zip(curves.items(), COLOURS, strict=False):
            # The points of short curves, such as validation, are marked, because nothing was measured
            # between them.
            marker = 'o' if len(curve[0]) <= 40 else None
            axes.plot(*curve, color=colour, label=name, marker=marker, markersize=3.5)
        axes.set(xlabel='Training step', ylabel=label)
        if percent:
            _percent(axes.yaxis)
        _legend(figure, len(curves))

    return _draw(paint)


def slice_curves_figure(
    history: list[dict], key: str, thresholds: Sequence[float], label: str
) -> str | None:
    """Draws one curve per slice against the training step, coloured by the slice's threshold.

    Args:
      history: lines of metrics.jsonl.
      key: metric whose values are lists of S numbers.
      thresholds: thresholds of the slices, [S], in units of the distance.
      label: what the vertical axis shows.

    Returns:
      A data URI, or None if the history does not have the metric.
    """
    steps, values = _series(history, key)
    if not len(steps):
        return None

    def paint(figure, axes):
        colours = matplotlib.colormaps[THRESHOLD_MAP]
        norm = matplotlib.colors.Normalize(0.0, float(np.max(thresholds)))
        for threshold, curve in zip(thresholds, values.T, strict=True):
            axes.plot(steps, curve, color=colours(norm(threshold)), linewidth=1.4)
        axes.set(xlabel='Training step', ylabel=label)
        axes.set_ylim(bottom=-0.03)
        scale = matplotlib.cm.ScalarMappable(norm, colours)
        bar = figure.colorbar(scale, ax=axes, label='Threshold', aspect=28, pad=0.02)
        bar.outline.set_visible(False)

    return _draw(paint)


def threshold_figure(slices: list[dict], names: dict[str, str], label: str) -> str:
    """Draws statistics of the slices against their thresholds.

    Args:
      slices: 'slices' of evaluation.json.
      names: key of a statistic -> name in the legend.
      label: what the vertical axis shows.
    """

    def paint(figure, axes):
        thresholds = [s['threshold'] for s in slices]
        for (key, name), colour in zip(names.items(), COLOURS, strict=False):
            values = [s[key] for s in slices]
            axes.plot(thresholds, values, color=colour, label=name, **DOTTED)
        axes.set(xlabel='Threshold of the slice', ylabel=label)
        axes.set_xlim(left=0.0)
        axes.set_ylim(0.0, 1.06 * max(1.0, axes.get_ylim()[1]))
        _legend(figure, len(names) if len(names) > 1 else 0)

    return _draw(paint)


def accuracy_figure(
    places: Sequence[float],
    label: str,
    accuracies: Sequence[float],
    count: int,
    whole: float | None = None,
) -> str:
    """Draws kNN accuracies with their 95 % intervals.

    Args:
      places: positions of the accuracies on the horizontal axis, [S].
      label: what the horizontal axis shows.
      accuracies: shares from 0 to 1, [S].
      count: number of images on which they were measured.
      whole: accuracy of the whole embedding, drawn as a line for comparison; None for no line.
    """

    def paint(figure, axes):
        intervals = [accuracy_interval(round(count * share), count) for share in accuracies]
        axes.fill_between(places, *zip(*intervals, strict=True), color=COLOURS[0], alpha=0.14, lw=0)
        axes.plot(places, accuracies, color=COLOURS[0], **DOTTED)
        if whole is not None:
            axes.axhline(whole, color=COLOURS[1], linestyle='--', label='All slices together')
            _legend(figure, 1)
        axes.set(xlabel=label, ylabel='kNN accuracy')
        axes.xaxis.set_major_locator(ticker.MaxNLocator(8, steps=[1, 2, 5, 10]))
        _percent(axes.yaxis)

    return _draw(paint)


def confusion_figure(confusion: np.ndarray, class_names: list[str]) -> str:
    """Draws a confusion matrix. Cells show per cent of the true class and counts if there is room.

    Args:
      confusion: counts [C, C], a row for each true class.
      class_names: names of the C classes.
    """
    confusion = np.asarray(confusion)
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)

    def paint(figure, axes):
        axes.imshow(shares, cmap=SHARE_MAP, vmin=0.0, vmax=1.0)
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.set(xlabel='Predicted class', ylabel='True class')
        if len(class_names) > MAX_ANNOTATED_CLASSES:
            return
        ticks, names = range(len(class_names)), [_short(name) for name in class_names]
        axes.set_xticks(ticks, names, rotation=40, ha='right', rotation_mode='anchor')
        axes.set_yticks(ticks, names)
        for (row, column), share in np.ndenumerate(shares):
            colour = 'white' if share > 0.55 else INK
            place = {'ha': 'center', 'color': colour}
            axes.text(column, row, f'{100 * share:.0f}', va='bottom', fontsize=9, **place)
            count = str(confusion[row, column])
            axes.text(column, row + 0.08, count, va='top', fontsize=6.3, alpha=0.75, **place)

    return _draw(paint, 4.4, 4.2)


def tsne_figure(
    embeddings: np.ndarray, labels: np.ndarray, class_names: list[str], points: int, seed: int
) -> str | None:
    """Draws a t-SNE map of the embeddings in the plane, coloured by class.

    Args:
      embeddings: array of embeddings, with shape [N, E].
      labels: class of each row, int [N].
      class_names: names of the classes.
      points: largest number of rows to show; they are drawn at random.
      seed: seed of the draw and of t-SNE.

    Returns:
      A data URI, or None if there are fewer than 10 rows or all rows are one point.

    References:
      van der Maaten and Hinton, "Visualizing data using t-SNE", JMLR 2008.
    """
    chosen = np.random.default_rng(seed).permutation(len(labels))[:points]
    embeddings, labels = embeddings[chosen], labels[chosen]
    if len(chosen) < 10 or np.ptp(embeddings, axis=0).max() < 1e-5:
        return None
    perplexity = min(30.0, (len(chosen) - 1) / 3)
    # Half the default number of iterations is enough: the groups have formed by then, and further
    # iterations only spread them.
    plane = TSNE(perplexity=perplexity, max_iter=500, random_state=seed).fit_transform(embeddings)

    def paint(figure, axes):
        for label, name in enumerate(class_names):
            x, y = plane[labels == label].T
            style = {
                'color': COLOURS[label % len(COLOURS)],
                'marker': MARKERS[label // len(COLOURS) % len(MARKERS)],
            }
            axes.scatter(x, y, s=7, alpha=0.75, linewidths=0, rasterized=True, **style)
            axes.scatter([], [], s=28, label=_short(name), **style)
        axes.set_axis_off()
        axes.set_aspect('equal')
        _legend(figure, len(class_names) if len(class_names) <= MAX_LEGEND_CLASSES else 0, 4)

    return _draw(paint, 4.4, 4.2)
