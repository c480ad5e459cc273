"""Classifiers on embeddings, and the scores of their predictions."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.special import softmax
from scipy.stats import binomtest
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix, f1_score
from sklearn.neighbors import KNeighborsClassifier

if TYPE_CHECKING:  # It loads TensorFlow, which nothing here needs.
    from mtdml_jax.scoring.embed import EmbeddedSplit


class Classifier(NamedTuple):
    """A way to classify faces by those of a gallery.

    Attributes:
      title: its name in reports.
      predict: function (gallery, queries, num_neighbors=k, seed=seed), as of `predict_classes`, ->
        classes of the queries, int [N].
      needs_head: whether it takes the queries' logits; it is left out where they are [N, 0].
    """

    title: str
    predict: Callable[..., np.ndarray]
    needs_head: bool = False


def _by_logits(gallery, queries, *, num_neighbors, seed):
    return np.argmax(queries.logits, axis=1)


def _by_neighbors(gallery, queries, *, num_neighbors, seed):
    knn = fit_neighbors(gallery.embeddings, gallery.labels, num_neighbors)
    return knn.predict(queries.embeddings)


def _by_centroids(gallery, queries, *, num_neighbors, seed):
    # Not sklearn's NearestCentroid: it refuses a collapsed embedding, which is to be reported.
    classes = np.unique(gallery.labels)
    means = np.stack([gallery.embeddings[gallery.labels == c].mean(axis=0) for c in classes])
    return fit_neighbors(means, classes, num_neighbors=1).predict(queries.embeddings)


def _by_regression(gallery, queries, *, num_neighbors, seed):
    # 300 iterations: predictions have long settled where the solver still asks for more digits.
    linear = LogisticRegression(max_iter=300, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', ConvergenceWarning)
        linear.fit(gallery.embeddings, gallery.labels)
    return linear.predict(queries.embeddings)


# Name, as in evaluation.json -> classifier, in the order of reports.
CLASSIFIERS = {
    'softmax': Classifier('Softmax head', _by_logits, needs_head=True),
    'knn': Classifier('k nearest neighbours', _by_neighbors),
    'centroid': Classifier('Nearest centroid', _by_centroids),
    'linear': Classifier('Logistic regression', _by_regression),
}


def predict_classes(
    gallery: EmbeddedSplit, queries: EmbeddedSplit, *, num_neighbors: int, seed: int
) -> dict[str, np.ndarray]:
    """Classifies the queries in each of the ways of `CLASSIFIERS`.

    Args:
      gallery: labelled faces to compare with, [G, E]; usually the training split.
      queries: faces to classify, [N, E]. 'softmax' is left out where their logits are [N, 0].
      num_neighbors: k of the kNN classifier; at most the size of the gallery is used.
      seed: seed of the logistic regression's solver.

    Returns:
      Predicted classes, int [N], of the classifiers in their order: 'softmax' (largest logit), 'knn'
      (majority of the k nearest), 'centroid' (nearest class mean), 'linear' (logistic regression).

    Raises:
      ValueError: fewer than two classes in the gallery.
    """
    num_classes = len(np.unique(gallery.labels))
    if num_classes < 2:
        raise ValueError(f'expected a gallery of at least 2 classes, found {num_classes}')
    has_head = queries.logits.shape[1] > 0
    return {
        name: x.predict(gallery, queries, num_neighbors=num_neighbors, seed=seed)
        for name, x in CLASSIFIERS.items()
        if has_head or not x.needs_head
    }


def classify_and_score(
    gallery: EmbeddedSplit,
    queries: EmbeddedSplit,
    num_classes: int,
    *,
    num_neighbors: int,
    seed: int,
) -> tuple[dict[str, np.ndarray], dict[str, dict]]:
    """`predict_classes`, and `classification_scores` of each classifier; none of unseen classes.

    Args:
      gallery: as of `predict_classes`.
      queries: as of `predict_classes`; if all are of classes that the gallery does not have, nothing
        is predicted.
      num_classes: number of classes C of the data set.
      num_neighbors: as of `predict_classes`.
      seed: as of `predict_classes`.
    """
    if not np.isin(queries.labels, gallery.labels).any():
        return {}, {}
    predictions = predict_classes(gallery, queries, num_neighbors=num_neighbors, seed=seed)
    return predictions, {
        name: classification_scores(queries.labels, predicted, num_classes)
        for name, predicted in predictions.items()
    }


def fit_neighbors(
    embeddings: np.ndarray, labels: np.ndarray, num_neighbors: int
) -> KNeighborsClassifier:
    """The one nearest-neighbour search of the evaluation: Euclidean, exact, in blocks.

    On unit embeddings this is the order of cosine similarity. Among classes with equally many
    of the k votes the smaller label wins.

    Args:
      embeddings: the gallery, [G, E].
      labels: its classes, int [G].
      num_neighbors: k, the number of votes; at most G are used.
    """
    num_neighbors = min(num_neighbors, len(embeddings))
    # At 32 and more dimensions a tree search is slower than the blocked matrix product.
    knn = KNeighborsClassifier(num_neighbors, algorithm='brute')
    return knn.fit(np.ascontiguousarray(embeddings), labels)


def classification_scores(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> dict:
    """Scores of predicted classes, as plain numbers for evaluation.json.

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
      ValueError: no labels, or predictions of another shape.
    """
    if len(labels) == 0 or np.shape(labels) != np.shape(predictions):
        raise ValueError(
            f'expected as many predictions as labels, and at least one, found '
            f'{np.shape(predictions)} and {np.shape(labels)}'
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
    """The 95 % interval of an accuracy of num_correct out of count, after Wilson.

    References:
      Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.
    """
    interval = binomtest(num_correct, count).proportion_ci(0.95, method='wilson')
    return float(interval.low), float(interval.high)


def best_classifier(classifiers: dict[str, dict]) -> str:
    """The name of the classifier with the highest accuracy, of `classification_scores` by name."""
    return max(classifiers, key=lambda name: classifiers[name]['accuracy'])


class Mistakes(NamedTuple):
    """Wrongly classified queries, the most confident first.

    Attributes:
      rows: rows of the queries, int [M].
      predictions: the classes they were given, int [M].
      confidences: softmax probability of that class, or the share of the neighbours that are of
        that class where the network has no softmax head, float [M].
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
    """The most confident mistakes of the softmax head, or of kNN where there is no head.

    Args:
      gallery: labelled faces, [G, E].
      queries: classified faces, [N, E].
      predictions: classifier -> predicted classes, int [N], as of `predict_classes`.
      count: number of mistakes at most.
      num_neighbors: number K of nearest gallery faces to find for each; at most G.
    """
    has_head = 'softmax' in predictions
    predicted = predictions['softmax' if has_head else 'knn']
    rows = np.flatnonzero(predicted != queries.labels)
    neighbors = np.zeros((0, num_neighbors), int)
    if len(rows):
        knn = fit_neighbors(gallery.embeddings, gallery.labels, num_neighbors)
        neighbors = knn.kneighbors(queries.embeddings[rows], return_distance=False)
    if has_head:
        confidences = softmax(queries.logits[rows].astype(np.float64), axis=1).max(axis=1)
    else:
        confidences = np.mean(gallery.labels[neighbors] == predicted[rows, None], axis=1)
    chosen = np.argsort(-confidences, kind='stable')[:count]
    rows = rows[chosen]
    return Mistakes(rows, predicted[rows], confidences[chosen], neighbors[chosen])
