"""Classifiers on embeddings and their scores, against values worked out by hand."""

import json
from typing import NamedTuple

import numpy as np
import pytest

from mtdml_jax.scoring.classify import (
    accuracy_interval,
    classification_scores,
    confident_mistakes,
    predict_classes,
)


class Faces(NamedTuple):
    embeddings: np.ndarray
    logits: np.ndarray
    labels: np.ndarray


def faces(points, labels, logits=None):
    """Faces at points of a line."""
    points = np.array(points, np.float32)[:, None]
    logits = np.zeros((len(points), 0)) if logits is None else np.array(logits)
    return Faces(points, logits.astype(np.float32), np.array(labels, np.int32))


# Class 0 has an outlier at 10 that draws its mean to 2.6, beyond class 1 with its mean at 2.1.
GALLERY = faces([0.0, 0.1, 0.2, 10.0, 2.0, 2.1, 2.2], [0, 0, 0, 0, 1, 1, 1])


def test_classifiers_judge_by_logit_by_neighbours_and_by_mean():
    queries = faces([3.0, 0.1], [1, 0], logits=[[0.1, 0.3], [0.9, 0.2]])
    found = predict_classes(GALLERY, queries, num_neighbors=3)
    assert list(found) == ['softmax', 'knn', 'centroid', 'linear']
    np.testing.assert_array_equal(found['softmax'], [1, 0])
    np.testing.assert_array_equal(found['knn'], [1, 0])
    np.testing.assert_array_equal(found['centroid'], [0, 1])
    assert found['linear'].shape == (2,)


def test_linear_classifier_separates_what_centroids_do_not():
    # Along the first axis the classes lie apart by 1, along the second each one spreads over 40.
    spread = np.linspace(-20, 20, 41)
    points = np.array([(x, y + 8 * x) for x in (0, 1) for y in spread], np.float32)
    labels = np.repeat([0, 1], 41).astype(np.int32)
    split = Faces(points, np.zeros((82, 0), np.float32), labels)
    found = predict_classes(split, split, num_neighbors=1)
    assert np.mean(found['linear'] == labels) == 1.0
    assert np.mean(found['centroid'] == labels) < 0.7


def test_softmax_is_left_out_without_logits():
    found = predict_classes(GALLERY, faces([3.0], [1]), num_neighbors=3)
    assert list(found) == ['knn', 'centroid', 'linear']


def test_more_neighbours_than_faces_means_all_faces():
    found = predict_classes(GALLERY, faces([2.1], [1]), num_neighbors=50)
    assert found['knn'] == [0]


def test_neighbours_that_vote_evenly_elect_the_smaller_label():
    found = predict_classes(faces([0.0, 1.0], [1, 0]), faces([0.1], [0]), num_neighbors=2)
    assert found['knn'] == [0]


def test_collapsed_gallery_is_classified_without_a_warning():
    collapsed = faces([1.0] * 6, [0, 0, 0, 1, 1, 1])
    found = predict_classes(collapsed, collapsed, num_neighbors=3)
    assert all(len(predicted) == 6 for predicted in found.values())


def test_gallery_of_one_class_is_refused():
    with pytest.raises(ValueError, match='at least 2 classes, found 1'):
        predict_classes(faces([0.0, 1.0], [3, 3]), GALLERY, num_neighbors=1)


def test_scores_weigh_classes_and_images_as_their_names_say():
    scores = classification_scores([0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1], num_classes=3)
    assert scores['confusion_matrix'] == [[3, 1, 0], [0, 2, 0], [0, 0, 0]]
    assert scores['per_class_accuracy'] == [0.75, 1.0, None]
    assert scores['accuracy'] == pytest.approx(5 / 6)
    assert scores['mean_class_accuracy'] == pytest.approx((0.75 + 1) / 2)
    # F1 is 2PR / (P + R): class 0 has P = 1, R = 3/4, class 1 has P = 2/3, R = 1.
    assert scores['macro_f1'] == pytest.approx((6 / 7 + 4 / 5) / 2)


def test_class_without_faces_counts_neither_in_mean_accuracy_nor_in_f1():
    scores = classification_scores([0, 0, 1], [0, 2, 1], num_classes=3)
    assert scores['mean_class_accuracy'] == pytest.approx(0.75)
    assert scores['macro_f1'] == pytest.approx((2 / 3 + 1) / 2)


def test_scores_are_plain_numbers():
    labels, predicted = np.array([0, 1, 1], np.int32), np.array([0, 1, 0], np.int64)
    scores = classification_scores(labels, predicted, num_classes=2)
    assert json.loads(json.dumps(scores)) == scores


@pytest.mark.parametrize(('labels', 'predicted'), [([], []), ([0, 1], [0])])
def test_predictions_that_do_not_match_the_labels_are_refused(labels, predicted):
    with pytest.raises(ValueError, match='as many predictions as labels'):
        classification_scores(labels, predicted, num_classes=2)


def test_interval_is_wilsons_and_not_the_normal_one():
    low, high = accuracy_interval(8, 10)
    z, p, n = 1.959964, 0.8, 10
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    assert (low, high) == pytest.approx((centre - half, centre + half), abs=1e-6)
    assert high < 1.0 < p + z * (p * (1 - p) / n) ** 0.5


def test_interval_of_a_perfect_score_has_a_width():
    assert accuracy_interval(10, 10) == pytest.approx((10 / (10 + 1.959964**2), 1.0), abs=1e-6)


def test_mistakes_come_by_confidence_with_their_nearest_faces():
    logits = [[0, 2], [0, 3], [5, 0], [1, 0], [0, 9]]
    queries = faces([0.0, 2.1, 0.05, 2.2, 2.05], [0, 0, 0, 1, 1], logits)
    predictions = {'softmax': np.argmax(logits, axis=1)}
    found = confident_mistakes(GALLERY, queries, predictions, count=2, num_neighbors=2)
    # Rows 0, 1 and 3 are wrong; row 2 and, most confident of all, row 4 are right.
    np.testing.assert_array_equal(found.rows, [1, 0])
    np.testing.assert_array_equal(found.predictions, [1, 1])
    np.testing.assert_allclose(found.confidences, 1 / (1 + np.exp([-3.0, -2.0])))
    assert found.neighbors[0, 0] == 5
    np.testing.assert_array_equal(found.neighbors[1], [0, 1])


def test_mistakes_of_a_run_without_logits_are_those_of_the_neighbours():
    queries = faces([0.1, 1.1, 2.1], [1, 0, 1])
    predictions = {'knn': np.array([0, 1, 1])}
    found = confident_mistakes(GALLERY, queries, predictions, count=5, num_neighbors=3)
    # All three neighbours of 0.1 are of class 0; those of 1.1 are at 0.2, 2.0 and 2.1.
    np.testing.assert_array_equal(found.rows, [0, 1])
    np.testing.assert_allclose(found.confidences, [1, 2 / 3])


def test_no_mistakes_give_empty_rows():
    queries = faces([0.1], [0])
    found = confident_mistakes(GALLERY, queries, {'knn': np.array([0])}, count=5, num_neighbors=3)
    assert len(found.rows) == len(found.neighbors) == 0
