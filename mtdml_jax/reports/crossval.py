"""Cross-validation: a run for each fold, and scores over the test sets of all folds."""

import json
from html import escape
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from mtdml_jax.config import check_config, claim_workdir
from mtdml_jax.data.protocol import count_folds
from mtdml_jax.host.errors import UserError
from mtdml_jax.host.files import write_whole
from mtdml_jax.reports.evaluate import evaluate
from mtdml_jax.reports.figures import confusion_figure
from mtdml_jax.reports.html import command as command_html
from mtdml_jax.reports.html import definitions, fill_page, percent, plot, table, tiles
from mtdml_jax.reports.report import class_table, main_settings
from mtdml_jax.scoring.classify import CLASSIFIERS, best_classifier, classification_scores
from mtdml_jax.scoring.intervals import mean_interval
from mtdml_jax.training.loop import train


def cross_validate(config: ConfigDict, workdir: Path, command: str = '') -> dict | None:
    """Trains and tests each fold that is not finished, and pools the test sets of all folds.

    Each fold is an ordinary run in `workdir`/fold_00, fold_01, ... Writes crossval.json and report.html.

    Args:
      config: the whole config, with config.data.folds.
      workdir: folder of all folds.
      command: how the cross-validation was started, for the report.

    Returns:
      The content of crossval.json, or None if a run was asked to stop.

    Raises:
      UserError: the settings have no folds, hold out classes, or cannot be trained with; or the folder
        belongs to other settings.
    """
    config = with_fold(config, 0)
    check_config(config, jax.device_count())
    if config.data.heldout_classes:
        raise UserError(
            'config.data.heldout_classes: crossval pools classifications, and unseen classes are only '
            'retrieved; train and evaluate one fold (config.data.fold) by itself'
        )
    num_folds = count_folds(config.data)
    claim_workdir(workdir, config)
    evaluations = []
    for fold in range(num_folds):
        folder = workdir / f'fold_{fold:02d}'
        if not _is_tested(folder):
            print(f'fold {fold + 1} of {num_folds}: {folder}')
            fold_config = with_fold(config, fold)
            if not train(fold_config, folder):
                return None
            evaluate(fold_config, folder, 'test', command)
        evaluations.append(_read_evaluation(folder))
    pooled = pool_folds(evaluations)
    text = json.dumps(pooled, indent=2) + '\n'
    write_whole(workdir / 'crossval.json', text)
    write_crossval_report(workdir / 'report.html', config.to_dict(), pooled, command)
    return pooled


def _read_evaluation(folder):
    return json.loads((folder / 'evaluation.json').read_text(encoding='utf-8'))


def _is_tested(folder):
    """Returns whether the fold was evaluated on its test split, and not on another split."""
    return (folder / 'evaluation.json').is_file() and _read_evaluation(folder)['split'] == 'test'


def with_fold(config: ConfigDict, fold: int) -> ConfigDict:
    """Returns the config of one fold."""
    config = config.copy_and_resolve_references()
    config.data.fold = fold
    return config.lock()


def pool_folds(evaluations: list[dict]) -> dict:
    """Scores the test sets of all folds together.

    Images of one fold are not independent, because they show the same people; folds nearly are. So the
    interval of the accuracy is the 95 % t interval of the mean over the folds. With few folds that
    interval may be short by chance. On each side it is therefore extended to at least the interval of as
    many independent images.

    Args:
      evaluations: content of each fold's evaluation.json.

    Returns:
      The content of crossval.json: 'num_folds', 'num_examples', 'fold_examples', 'class_names', and
      'classifiers'. Each classifier has the scores of `classification_scores` over all images,
      'fold_accuracies', their mean 'accuracy_mean', and the interval 'accuracy_ci95'.
    """
    names = evaluations[0]['class_names']
    return {
        'num_folds': len(evaluations),
        'num_examples': sum(found['num_examples'] for found in evaluations),
        'fold_examples': [found['num_examples'] for found in evaluations],
        'class_names': names,
        'classifiers': {
            classifier: _pool_scores([found['classifiers'][classifier] for found in evaluations])
            for classifier in evaluations[0]['classifiers']
        },
    }


def _pool_scores(folds):
    """Pools one classifier's scores of all folds."""
    confusion = np.sum([fold['confusion_matrix'] for fold in folds], axis=0)
    num_classes = len(confusion)
    labels, predictions = (
        np.repeat(index.ravel(), confusion.ravel()) for index in np.indices(confusion.shape)
    )
    accuracies = [fold['accuracy'] for fold in folds]
    mean, low, high = mean_interval(accuracies)
    scores = classification_scores(labels, predictions, num_classes)
    lowest, highest = scores['accuracy_ci95']
    return scores | {
        'accuracy_mean': mean,
        'accuracy_ci95': [max(0.0, min(low, lowest)), min(1.0, max(high, highest))],
        'fold_accuracies': accuracies,
    }


def write_crossval_report(path: Path, config: dict, pooled: dict, command: str) -> None:
    """Writes the report of all folds.

    Args:
      path: file to write. The reports of the folds are in fold_00/, fold_01/, ... beside it.
      config: nested config of the runs.
      pooled: the result of `pool_folds`.
      command: how the cross-validation was started.
    """
    classifiers = pooled['classifiers']
    best = best_classifier(classifiers)
    scores = classifiers[best]
    low, high = scores['accuracy_ci95']
    figure = confusion_figure(scores['confusion_matrix'], pooled['class_names'])
    content = {
        'title': escape(path.absolute().parent.name),
        'verdict': (
            f'The best classifier ({CLASSIFIERS[best].title.lower()}) is right on '
            f'<strong>{percent(scores["accuracy"])}</strong> of the {pooled["num_examples"]:,} images '
            f'of {pooled["num_folds"]} folds (mean of the folds {percent(scores["accuracy_mean"])}, '
            f'95 % interval {100 * low:.1f} to {percent(high)}).'
        ),
        'tiles': tiles(
            [
                (percent(scores['accuracy']), 'accuracy'),
                (percent(scores['mean_class_accuracy']), 'mean-class accuracy'),
                (f'{scores["macro_f1"]:.3f}', 'macro-F1'),
            ]
        ),
        'command': command_html(command),
        'settings': definitions(main_settings(config)),
        'classifiers': _classifier_table(classifiers),
        'folds': _fold_table(pooled),
        'class_table': class_table(pooled['class_names'], classifiers),
        'best': CLASSIFIERS[best].title.lower(),
        'confusion_figure': plot('confusion', figure),
        'config': f'<pre>{escape(json.dumps(config, indent=2))}</pre>',
    }
    write_whole(path, fill_page('crossval_template.html', content))


def _classifier_table(classifiers):
    header = ('Classifier', 'Accuracy', 'Mean of folds', '95 % interval', 'Mean-class', 'Macro-F1')
    rows = []
    for name, scores in classifiers.items():
        low, high = scores['accuracy_ci95']
        shares = (percent(scores[key]) for key in ('accuracy', 'accuracy_mean'))
        interval, mean_class = f'{100 * low:.1f} – {100 * high:.1f}', scores['mean_class_accuracy']
        others = interval, percent(mean_class), f'{scores["macro_f1"]:.3f}'
        rows.append((CLASSIFIERS[name].title, *shares, *others))
    return table(header, rows, list(classifiers).index(best_classifier(classifiers)))


def _fold_table(pooled):
    classifiers = pooled['classifiers']
    accuracies = zip(*(scores['fold_accuracies'] for scores in classifiers.values()), strict=True)
    rows = [
        (f'<a href="fold_{i:02d}/report.html">{i}</a>', f'{count:,}', *map(percent, values))
        for i, (count, values) in enumerate(zip(pooled['fold_examples'], accuracies, strict=True))
    ]
    return table(('Fold', 'Images', *(CLASSIFIERS[name].title for name in classifiers)), rows)
