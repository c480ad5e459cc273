"""Classifies embedded splits, and computes the scores of the predictions."""

from __future__ import annotations

import warnings
from collections import ChainMap
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.special import softmax
from scipy.stats import binomtest
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix, f1_score

from mtdml_jax.models.classifiers import CLASSIFIERS as MODEL_CLASSIFIERS
from mtdml_jax.models.classifiers import Classifier, Facts, Probabilities, join_slices
from mtdml_jax.models.neighbors import find_nearest

if TYPE_CHECKING:  # This import loads TensorFlow, which nothing here needs.
    from mtdml_jax.scoring.embed import EmbeddedSplit


def _make_linear(facts: Facts, k: int) -> Probabilities:
    # After 300 iterations the predictions have settled, long before the solver reports convergence.
    linear = LogisticRegression(max_iter=300)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', ConvergenceWarning)
        linear.fit(facts.gallery, facts.gallery_labels)

    def probabilities(slices, logits):
        found = np.zeros((len(slices), facts.num_classes), np.float32)
        found[:, linear.classes_] = linear.predict_proba(join_slices(slices))
        return found, found[:, None]

    return probabilities


# The classifiers of models, and those that only an evaluation can afford, in the order of reports.
CLASSIFIERS: ChainMap[str, Classifier] = ChainMap(
    {'linear': Classifier('Logistic regression', _make_linear)}, MODEL_CLASSIFIERS
)


def predict_classes(
    gallery: EmbeddedSplit, queries: EmbeddedSplit, *, num_neighbors: int
) -> dict[str, np.ndarray]:
    """Classifies the queries with each classifier in `CLASSIFIERS`.

    A classifier sees the whole embedding as one slice.

    Args:
      gallery: labelled faces to compare with, [G, E]; usually the training split.
      queries: faces to classify, [N, E]. Without logits, [N, 0], 'softmax' is left out.
      num_neighbors: k of the kNN classifier; at most the size of the gallery is used.

    Returns:
      Predicted classes, int [N], by the name of the classifier: 'softmax' (largest logit), 'knn' (most
      votes of the k nearest, the smaller label if votes are equal), 'centroid' (nearest class mean),
      'linear' (logistic regression).

    Raises:
      ValueError: the gallery has fewer than two classes.
    """
    num_classes = len(np.unique(gallery.labels))
    if num_classes < 2:
        raise ValueError(f'expected a gallery of at least 2 classes, found {num_classes}')
    facts = _facts(gallery, queries)
    slices, logits = queries.embeddings[:, None], queries.logits[:, None]
    return {
        name: np.argmax(x.make(facts, num_neighbors)(slices, logits)[0], axis=1)
        for name, x in CLASSIFIERS.items()
        if facts.has_head or not x.needs_head
    }


def _facts(gallery, queries):
    """Returns the facts for the classifiers, which know only the gallery of labelled faces here."""
    num_classes = max(int(gallery.labels.max()) + 1, queries.logits.shape[1])
    return Facts(
        class_names=tuple(map(str, range(num_classes))),
        counts=np.zeros(num_classes, int),
        centres=np.zeros((num_classes, gallery.embeddings.shape[1])),
        gallery=gallery.embeddings,
        gallery_labels=gallery.labels,
        num_slices=1,
        logit_scale=1.0,
        has_head=queries.logits.shape[1] > 0,
    )


def classify_and_score(
    gallery: EmbeddedSplit,
    queries: EmbeddedSplit,
    num_classes: int,
    *,
    num_neighbors: int,
) -> tuple[dict[str, np.ndarray], dict[str, dict]]:
    """Runs `predict_classes`, and computes `classification_scores` of each classifier.

    Args:
      gallery: see `predict_classes`.
      queries: see `predict_classes`. If the gallery has none of their classes, nothing is predicted.
      num_classes: number of classes C of the data set.
      num_neighbors: see `predict_classes`.

    Returns:
      (predicted classes, scores), both by the name of the classifier.
    """
    if not np.isin(queries.labels, gallery.labels).any():
        return {}, {}
    predictions = predict_classes(gallery, queries, num_neighbors=num_neighbors)
    return predictions, {
        name: classification_scores(queries.labels, predicted, num_classes)
        for name, predicted in predictions.items()
    }


def classification_scores(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> dict:
    """Computes scores of predicted classes, as plain numbers for evaluation.json.

    Args:
      labels: true classes, int [N], below num_classes.
      predictions: predicted classes, int [N].
      num_classes: number of classes C of the data set; some may have no face here.

    Returns:
      'accuracy'; 'accuracy_ci95', its 95 % interval after Wilson; 'mean_class_accuracy' and
      'macro_f1', means over the classes that have faces; 'per_class_accuracy', a list of C with
      None for a class without faces; 'confusion_matrix', C lists of C counts, a row for each true
      class.

    Raises:
      ValueError: there are no labels, or the predictions have another shape.
    """
    if len(labels) == 0 or np.shape(labels) != np.shape(predictions):
        raise ValueError(
            f'expected as many predictions as labels, and at least one, found '
            f'{np.shape(predictions)} predictions and {np.shape(labels)} labels'
        )
    confusion = confusion_matrix(labels, predictions, labels=np.arange(num_classes))
    correct, counts = np.diag(confusion), confusion.sum(axis=1)
    per_class = [int(c) / int(n) if n else None for c, n in zip(correct, counts, strict=True)]
    present = np.flatnonzero(counts)
    num_correct = int(np.sum(np.asarray(labels) == np.asarray(predictions)))
    macro_f1 = f1_score(labels, predictions, labels=present, average='macro', zero_division=0.0)
    return {
        'accuracy': num_correct / len(labels),
        'accuracy_ci95': list(accuracy_interval(num_correct, len(labels))),
        'mean_class_accuracy': float(np.mean([per_class[i] for i in present])),
        'macro_f1': float(macro_f1),
        'per_class_accuracy': per_class,
        'confusion_matrix': confusion.tolist(),
    }


def accuracy_interval(num_correct: int, count: int) -> tuple[float, float]:
    """Returns the 95 % interval of an accuracy of num_correct out of count, after Wilson.

    References:
      Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.
    """
    interval = binomtest(num_correct, count).proportion_ci(0.95, method='wilson')
    return float(interval.low), float(interval.high)


def best_classifier(classifiers: dict[str, dict]) -> str:
    """Returns the name of the classifier with the highest accuracy in its `classification_scores`."""
    return max(classifiers, key=lambda name: classifiers[name]['accuracy'])


class Mistakes(NamedTuple):
    """Wrongly classified queries, the most confident first.

    Attributes:
      rows: rows of the queries, int [M].
      predictions: the predicted classes, int [M].
      confidences: softmax probability of the predicted class, float [M]; without a softmax head the
        share of the neighbours that have this class.
      neighbors: rows of the nearest gallery images, nearest first, int [M, K].
    """

    rows: np.ndarray
    predictions: np.ndarray
    confidences: np.ndarray
    neighbors: np.ndarray


def confident_mistakes(
    gallery: EmbeddedSplit,
    queries: EmbeddedSplit,
    predictions: dict[str, np.ndarray],
    *,
    count: int,
    num_neighbors: int,
) -> Mistakes:
    """Finds the most confident mistakes of the softmax head, or of kNN if there is no head.

    Args:
      gallery: labelled faces, [G, E].
      queries: classified faces, [N, E].
      predictions: classifier -> predicted classes, int [N]; see `predict_classes`.
      count: largest number of mistakes.
      num_neighbors: number K of nearest gallery faces to find for each mistake; at most G.
    """
    has_head = 'softmax' in predictions
    predicted = predictions['softmax' if has_head else 'knn']
    rows = np.flatnonzero(predicted != queries.labels)
    neighbors = np.zeros((0, num_neighbors), int)
    if len(rows):
        neighbors, _ = find_nearest(queries.embeddings[rows], gallery.embeddings, num_neighbors)
    if has_head:
        confidences = softmax(queries.logits[rows].astype(np.float64), axis=1).max(axis=1)
    else:
        confidences = np.mean(gallery.labels[neighbors] == predicted[rows, None], axis=1)
    chosen = np.argsort(-confidences, kind='stable')[:count]
    rows = rows[chosen]
    return Mistakes(rows, predicted[rows], confidences[chosen], neighbors[chosen])
