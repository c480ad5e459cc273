"""Writes the report of a run: one HTML file that needs no network and has no scripts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import timedelta
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mtdml_jax.host.files import write_whole
from mtdml_jax.reports import figures
from mtdml_jax.reports.html import (
    command,
    definitions,
    fill_page,
    percent,
    plot,
    table,
    tiles,
)
from mtdml_jax.scoring.classify import CLASSIFIERS, best_classifier, confident_mistakes
from mtdml_jax.training.metrics import COLLAPSED

if TYPE_CHECKING:  # This import loads TensorFlow, which nothing here needs.
    from mtdml_jax.scoring.embed import EmbeddedSplit

RETRIEVAL = {'precision_at_1': 'Precision@1', 'r_precision': 'R-precision', 'map_at_r': 'MAP@R'}
SLICE_COLUMNS = {
    'threshold': 'Threshold',
    'knn_accuracy': 'kNN, this slice',
    'knn_accuracy_first': 'kNN, first slices',
    'active_share': 'Active share',
    'positive_distance': 'Positive distance',
    'negative_distance': 'Negative distance',
    'spread': 'Spread',
    'collapse': 'Collapse score',
}
MAIN_SETTINGS = {
    'Data': ('data.name', 'data.train_split', 'data.image_size', 'data.batch_size'),
    'Model': ('model.backbone', 'model.width_factor', 'model.embedding_size', 'model.num_slices'),
    'Loss': ('loss.metric_weight', 'loss.softmax_weight', 'loss.distance', 'loss.dual'),
    'Optimizer': ('optim.name', 'optim.learning_rate', 'optim.schedule', 'train.num_steps', 'seed'),
}
NUM_MISTAKES, NUM_NEIGHBORS = 12, 4
# Images whose larger side is at most this many pixels are shown enlarged, with crisp pixels.
SHOWN_SIDE = 96
# If no slice has a smaller active share, the thresholds have almost no effect.
ALL_ACTIVE = 0.99


def write_report(
    path: str | Path,
    *,
    config: dict,
    history: list[dict],
    evaluation: dict,
    queries: EmbeddedSplit,
    gallery: EmbeddedSplit,
    query_image: Callable[[int], bytes],
    gallery_image: Callable[[int], bytes],
    predictions: dict[str, np.ndarray],
    query_names: Sequence[str],
    tsne_points: int = 2000,
    seed: int = 0,
) -> None:
    """Writes report.html, which describes a run, its scores and its worst mistakes.

    Args:
      path: file to write.
      config: nested config of the run.
      history: lines of metrics.jsonl; may be empty.
      evaluation: content of evaluation.json; every entry under its key 'run' is optional.
      queries: the evaluated split, [N, E].
      gallery: the images that kNN searches, [G, E].
      query_image: row of a query -> its encoded image (PNG, JPEG, ...).
      gallery_image: row of the gallery -> its encoded image.
      predictions: classifier -> predicted classes, int [N]; see `predict_classes`. It is empty if the
        gallery has no face of the queries' classes.
      query_names: file names or other names of the N queries.
      tsne_points: largest number of queries in the t-SNE map.
      seed: seed of the t-SNE map.
    """
    names = evaluation['class_names']
    plots = figures.draw_figures(history, evaluation)
    plots['tsne'] = figures.tsne_figure(
        queries.embeddings, queries.labels, names, tsne_points, seed
    )
    content = {
        **_run_content(config, evaluation),
        'tsne_points': f'{min(tsne_points, len(queries.labels)):,}',
        **{f'{name}_figure': plot(name, uri) for name, uri in plots.items()},
    }
    is_classified = bool(evaluation['classifiers'])
    if is_classified:
        mistakes = confident_mistakes(
            gallery, queries, predictions, count=NUM_MISTAKES, num_neighbors=NUM_NEIGHBORS
        )

        def make_card(row, predicted, confidence, neighbors):
            true = names[queries.labels[row]]
            near = [(gallery_image(int(i)), names[gallery.labels[i]]) for i in neighbors]
            name, image = query_names[row], query_image(int(row))
            return _mistake_card(name, true, names[predicted], confidence, image, near)

        content |= _classified_content(evaluation, list(map(make_card, *mistakes)))
    write_whole(Path(path), fill_page('report_template.html', content, classified=is_classified))


def _run_content(config: dict, evaluation: dict) -> dict[str, str]:
    """Returns the template's values that need only the config and the evaluation."""
    run, slices = evaluation.get('run', {}), evaluation['slices']
    verdict = _verdict if evaluation['classifiers'] else _retrieval_verdict
    return {
        'title': escape(Path(run.get('workdir', '')).name or 'Evaluation report'),
        'split': escape(evaluation['split']),
        'verdict': verdict(evaluation),
        'alarms': _alarms(evaluation),
        'tiles': tiles(_main_numbers(evaluation)),
        'command': command(run.get('command', '')),
        'facts': definitions(_run_facts(run)),
        'settings': definitions(main_settings(config)),
        'retrieval': tiles(_retrieval_numbers(evaluation)),
        'active_share_reading': _active_share_reading(slices),
        'slice_table': _slice_table(slices),
        'config': f'<pre>{escape(json.dumps(config, indent=2))}</pre>',
    }


def _retrieval_numbers(evaluation: dict) -> list[tuple[str, str]]:
    return [(f'{value:.3f}', RETRIEVAL[key]) for key, value in evaluation['retrieval'].items()]


def _classified_content(evaluation: dict, cards: Sequence[str]) -> dict[str, str]:
    """Returns the template's values on classifiers; `cards` show their most confident mistakes."""
    classifiers = evaluation['classifiers']
    return {
        'classifiers': classifier_table(classifiers),
        'class_table': class_table(evaluation['class_names'], classifiers),
        'best': CLASSIFIERS[best_classifier(classifiers)].title.lower(),
        'slices_together': _slices_together(evaluation['slices']),
        'confidence': 'softmax probability' if 'softmax' in classifiers else 'share of neighbours',
        'mistakes': ''.join(cards) or '<p>No mistakes.</p>',
    }


def _verdict(evaluation: dict) -> str:
    """Returns a sentence on the best classifier, its accuracy, and the accuracy of a constant guess."""
    name = best_classifier(evaluation['classifiers'])
    scores = evaluation['classifiers'][name]
    low, high = scores['accuracy_ci95']
    frequent = max(map(sum, scores['confusion_matrix'])) / evaluation['num_examples']
    return (
        f'The best classifier ({CLASSIFIERS[name].title.lower()}) is right on '
        f'<strong>{percent(scores["accuracy"])}</strong> of the {evaluation["num_examples"]:,} '
        f'images of split {escape(evaluation["split"])} (95 % interval {100 * low:.1f} to '
        f'{percent(high)}); always naming the most frequent class would be right on '
        f'{percent(frequent)}.'
    )


def _retrieval_verdict(evaluation: dict) -> str:
    """Returns a sentence on the retrieval of classes that were not in the training data."""
    return (
        f'Training has seen none of the classes of split {escape(evaluation["split"])}. The nearest '
        f'image is of the same class for '
        f'<strong>{percent(evaluation["retrieval"]["precision_at_1"])}</strong> of its '
        f'{evaluation["num_examples"]:,} images.'
    )


def _alarms(evaluation: dict) -> str:
    """Returns warnings about anything that makes the numbers misleading; '' if there is nothing."""
    alarms = []
    collapsed = sum(s['collapse'] > COLLAPSED for s in evaluation['slices'])
    if collapsed:
        alarms.append(
            f'{collapsed} of {len(evaluation["slices"])} slices have collapsed: all images lie '
            'almost in one point, whatever their class. A smaller metric weight, a larger '
            'softmax weight or cleaner labels may help.'
        )
    # The gallery is the training data, which may be only some rows of a split.
    if evaluation['split'] in ('train', evaluation.get('gallery_split')):
        alarms.append(
            'Gallery and queries are the same split: every image finds itself as its nearest '
            'neighbour, so kNN, centroid and logistic regression look better than they are.'
        )
    return ''.join(f'<p class="alarm">{alarm}</p>' for alarm in alarms)


def _main_numbers(evaluation: dict) -> list[tuple[str, str]]:
    """Returns the most important numbers, each with its name."""
    if not evaluation['classifiers']:
        return _retrieval_numbers(evaluation)
    scores = evaluation['classifiers'][best_classifier(evaluation['classifiers'])]
    return [
        (percent(scores['accuracy']), 'accuracy'),
        (percent(scores['mean_class_accuracy']), 'mean-class accuracy'),
        (f'{scores["macro_f1"]:.3f}', 'macro-F1'),
        (f'{evaluation["retrieval"]["map_at_r"]:.3f}', 'MAP@R of the embedding'),
    ]


def _run_facts(run: dict) -> dict[str, str]:
    """Returns the machine, the time and the versions, as far as they are known."""
    templates = {
        'Workdir': '{workdir}',
        'Steps': '{steps:,}',
        'Speed': '{images_per_second:,.0f} images/s',
        'Devices': '{devices} ({device})',
        'Software': 'mtdml_jax {mtdml_jax}, jax {jax}, Python {python}',
        'Commit': '{commit}',
        'Checkpoint': 'step {checkpoint_step:,}',
        'Parameters': '{num_parameters:,}',
    }
    known = {key: value for key, value in run.items() if value not in (None, '')}
    facts = {}
    if 'seconds' in known:
        facts['Training'] = f'{timedelta(seconds=round(known["seconds"]))} h'
    for term, template in templates.items():
        try:
            facts[term] = template.format(**known)
        except KeyError:
            continue
    return facts


def main_settings(config: dict) -> dict[str, str]:
    """Returns the most important settings that the config has, as a line for each group."""
    settings = {}
    for name, keys in MAIN_SETTINGS.items():
        found = []
        for key in keys:
            *sections, last = key.split('.')
            section = config
            for section_name in sections:
                section = section.get(section_name, {})
            if last in section:
                found.append(f'{last}\u00a0{section[last]}')
        if found:
            settings[name] = ' · '.join(found)
    return settings


def classifier_table(classifiers: dict[str, dict]) -> str:
    """Returns a table of the scores of all classifiers; intervals share a scale, the best is marked."""
    intervals = np.array([scores['accuracy_ci95'] for scores in classifiers.values()])
    low, high = intervals.min(), intervals.max()
    rows = []
    for name, scores in classifiers.items():
        first, last = scores['accuracy_ci95']
        left, right, dot = (
            100 * (x - low) / (high - low) for x in (first, last, scores['accuracy'])
        )
        whisker = (
            f'<div class="whisker"><i style="left:{left:.1f}%;width:{right - left:.1f}%"></i>'
            f'<b style="left:{dot:.1f}%"></b></div>'
        )
        accuracy, interval = percent(scores['accuracy']), f'{100 * first:.1f} – {100 * last:.1f}'
        others = percent(scores['mean_class_accuracy']), f'{scores["macro_f1"]:.3f}'
        rows.append((CLASSIFIERS[name].title, accuracy, interval, whisker, *others))
    header = ('Classifier', 'Accuracy', '95 % interval', '', 'Mean-class accuracy', 'Macro-F1')
    return table(header, rows, list(classifiers).index(best_classifier(classifiers)))


def class_table(class_names: list[str], classifiers: dict[str, dict]) -> str:
    """Returns a table with the number of images and the accuracies of each class."""
    counts = [sum(row) for row in classifiers[best_classifier(classifiers)]['confusion_matrix']]
    accuracies = zip(*(s['per_class_accuracy'] for s in classifiers.values()), strict=True)
    rows = [
        (escape(name), f'{count:,}', *map(percent, values))
        for name, count, values in zip(class_names, counts, accuracies, strict=True)
    ]
    return table(('Class', 'Images', *(CLASSIFIERS[name].title for name in classifiers)), rows)


def _slice_table(slices: list[dict]) -> str:
    columns = {key: name for key, name in SLICE_COLUMNS.items() if key in slices[0]}
    rows = [(str(i), *(f'{s[key]:.3f}' for key in columns)) for i, s in enumerate(slices, 1)]
    return table(('Slice', *columns.values()), rows)


def _slices_together(slices: list[dict]) -> str:
    best = max(slices, key=lambda s: s['knn_accuracy'])
    return (
        f'All {len(slices)} slices together reach {percent(slices[-1]["knn_accuracy_first"])}, '
        f'the best single one {percent(best["knn_accuracy"])} (threshold {best["threshold"]:.2f}).'
    )


def _active_share_reading(slices: list[dict]) -> str:
    """Returns a sentence that interprets the active shares of this run."""
    shares = [s['active_share'] for s in slices]
    if min(shares) >= ALL_ACTIVE:
        return (
            f'Here no slice is below {min(shares):.2f}: on these images (almost) no mined triplet '
            'satisfies a threshold, and the thresholds hardly touch the gradient.'
        )
    return f'Here it runs from {min(shares):.2f} to {max(shares):.2f}.'


def _image(encoded: bytes, text: str) -> str:
    uri, side = figures.image_uri(encoded)
    style = ' class="pixels"' if side <= SHOWN_SIDE else ''
    return f'<img src="{uri}" alt="{text}"{style}>'


def _mistake_card(
    name: str, true: str, predicted: str, confidence: float, image: bytes, neighbors: list
) -> str:
    """Returns a card with a mistake and its nearest neighbours, pairs (encoded image, class name)."""
    true, predicted = escape(true), escape(predicted)
    cells = [f'<div class="same">{_image(image, true)}{true}</div>']
    for neighbor, label in neighbors:
        label = escape(label)
        kind = ' class="same"' if label == true else ''
        cells.append(f'<div{kind}>{_image(neighbor, label)}{label}</div>')
    return (
        f'<div class="card"><p>{true} taken for <span class="miss">{predicted}</span>, '
        f'{100 * confidence:.0f} %</p><p class="note">{escape(name)}</p>'
        f'<div class="faces">{"".join(cells)}</div></div>'
    )
