"""The study of the slices, against plain loops."""

from typing import NamedTuple

import numpy as np
import pytest

from mtdml_jax.scoring.slice_scores import agreement, linear_cka, slice_study


class Faces(NamedTuple):
    embeddings: np.ndarray
    logits: np.ndarray
    labels: np.ndarray


def random_faces(count, seed, size=6, num_classes=3):
    """Faces whose first half of the embedding knows something of the class."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % num_classes).astype(np.int32)
    embeddings = rng.normal(size=(count, size)).astype(np.float32)
    embeddings[:, : size // 2] += 1.2 * np.eye(num_classes, size // 2)[labels]
    return Faces(embeddings, np.zeros((count, 0), np.float32), labels)


def study(gallery, queries, thresholds, **changed):
    options = {'num_neighbors': 1, 'distance': 'euclidean', 'dual': True, 'batch_size': 64}
    return slice_study(gallery, queries, np.array(thresholds), **(options | changed))


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def nearest_accuracy(gallery, queries, known, asked):
    nearest = [np.argmin([np.linalg.norm(q - g) for g in known]) for q in asked]
    return np.mean(gallery.labels[nearest] == queries.labels)


def batch_hard_by_loops(points, labels, threshold, distance, dual):
    """Active share, mean positive and mean negative distance of unit vectors [N, D]."""
    between = np.linalg.norm(points[:, None] - points[None], axis=-1) ** (
        1 if distance == 'euclidean' else 2
    )
    rows = range(len(labels))
    active, positives, negatives = [], [], []
    for a in rows:
        same = [i for i in rows if labels[i] == labels[a] and i != a]
        other = [i for i in rows if labels[i] != labels[a]]
        p, n = max(same, key=lambda i: between[a, i]), min(other, key=lambda i: between[a, i])
        sides = (between[a, n], between[p, n]) if dual else (between[a, n],)
        active.append(any(between[a, p] - side + threshold > 0 for side in sides))
        positives.append(between[a, p])
        negatives.append(between[a, n])
    return np.mean(active), np.mean(positives), np.mean(negatives)


def test_accuracy_of_each_slice_and_of_the_first_ones_match_loops():
    gallery, queries = random_faces(50, seed=0), random_faces(40, seed=1)
    found = study(gallery, queries, [0.2, 0.6, 1.0])
    known, asked = (unit(f.embeddings.reshape(-1, 3, 2)) for f in (gallery, queries))
    for s, row in enumerate(found):
        alone = nearest_accuracy(gallery, queries, known[:, s], asked[:, s])
        first = (x[:, : s + 1].reshape(len(x), -1) for x in (known, asked))
        assert row['knn_accuracy'] == pytest.approx(alone)
        assert row['knn_accuracy_first'] == pytest.approx(
            nearest_accuracy(gallery, queries, *first)
        )
    assert [row['threshold'] for row in found] == pytest.approx([0.2, 0.6, 1.0])


@pytest.mark.parametrize(('distance', 'dual'), [('euclidean', False), ('squared_euclidean', True)])
def test_triplet_statistics_match_loops_and_padding_does_not_count(distance, dual):
    # Two loose groups on a circle, so that part of the anchors satisfies the smaller threshold.
    rng = np.random.default_rng(3)
    labels = np.repeat([0, 1], (9, 6)).astype(np.int32)
    angles = np.where(labels == 0, 0.0, 1.8)[:, None] + rng.normal(size=(15, 2)) * (0.4, 0.6)
    embeddings = np.stack([np.cos(angles), np.sin(angles)], axis=-1).reshape(15, 4)
    faces = Faces(embeddings.astype(np.float32), np.zeros((15, 0), np.float32), labels)
    found = study(faces, faces, [0.3, 0.9], distance=distance, dual=dual, batch_size=20)
    points = embeddings.reshape(15, 2, 2)
    for s, row in enumerate(found):
        active, positive, negative = batch_hard_by_loops(
            points[:, s], labels, row['threshold'], distance, dual
        )
        deviation = points[:, s] - points[:, s].mean(axis=0)
        assert row['active_share'] == pytest.approx(active)
        assert row['positive_distance'] == pytest.approx(positive, rel=1e-5)
        assert row['negative_distance'] == pytest.approx(negative, rel=1e-5)
        assert row['spread'] == pytest.approx(np.sqrt(np.mean(np.sum(deviation**2, -1))), rel=1e-5)
        orthogonal = 2.0 if distance == 'squared_euclidean' else 2.0**0.5
        collapse = 1 - max(positive, negative) / orthogonal
        assert row['collapse'] == pytest.approx(max(collapse, 0), abs=1e-5)
    assert 0 < found[0]['active_share'] < 1


def test_batch_without_a_triplet_does_not_pull_the_means_down():
    # Two points at a right angle: every negative is at sqrt(2). The third batch is a single face.
    labels = np.array([0, 1] * 4 + [0], np.int32)
    faces = Faces(np.eye(2, dtype=np.float32)[labels], np.zeros((9, 0), np.float32), labels)
    found = study(faces, faces, [0.5], batch_size=4)
    assert found[0]['negative_distance'] == pytest.approx(2**0.5, rel=1e-6)
    assert found[0]['positive_distance'] == 0.0


def test_faces_without_any_triplet_report_distance_zero_but_their_spread():
    faces = Faces(np.eye(3, dtype=np.float32), np.zeros((3, 0), np.float32), np.arange(3))
    found = study(faces, faces, [0.5])
    assert found[0]['active_share'] == found[0]['negative_distance'] == 0.0
    # Three axes around their mean (1/3, 1/3, 1/3).
    assert found[0]['spread'] == pytest.approx((2 / 3) ** 0.5)


def test_agreement_is_the_share_of_equal_predictions():
    predictions = np.array([[0, 1, 2, 1], [0, 1, 0, 0], [2, 1, 2, 1]])
    expected = [[1, 0.5, 0.75], [0.5, 1, 0.25], [0.75, 0.25, 1]]
    np.testing.assert_array_equal(agreement(predictions), expected)


def test_cka_of_slices_matches_its_definition():
    slices = unit(np.random.default_rng(0).normal(size=(30, 3, 2)) + 0.5)
    centred = slices - slices.mean(axis=0)
    grams = [x @ x.T for x in np.moveaxis(centred, 1, 0)]
    expected = [
        [np.sum(a * b) / np.sqrt(np.sum(a * a) * np.sum(b * b)) for b in grams] for a in grams
    ]
    np.testing.assert_allclose(linear_cka(slices), expected, rtol=1e-10)


def test_cka_sees_no_rotation_and_no_scale_and_takes_a_point_for_unlike():
    angles = np.random.default_rng(1).uniform(0, 0.1, size=40)
    points = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    rotated = 3 * points @ np.array([[0.6, 0.8], [-0.8, 0.6]])
    # A point up to the rounding of float32.
    point = np.full((40, 2), 0.7) + 1e-7 * np.random.default_rng(2).normal(size=(40, 2))
    found = linear_cka(np.stack([points, rotated, point], axis=1))
    np.testing.assert_allclose(found, [[1, 1, 0], [1, 1, 0], [0, 0, 0]], atol=1e-12)


def test_slices_are_compared_with_the_others_and_a_single_one_with_none():
    gallery, queries = random_faces(50, seed=0), random_faces(40, seed=1)
    # The second slice repeats the first; the third is another.
    repeat = [
        f._replace(embeddings=f.embeddings[:, [0, 1, 0, 1, 4, 5]]) for f in (gallery, queries)
    ]
    found = study(*repeat, [0.2, 0.6, 1.0])
    alike, other = (linear_cka(unit(repeat[1].embeddings.reshape(-1, 3, 2)))[0, s] for s in (1, 2))
    assert alike == pytest.approx(1)
    assert found[0]['cka'] == pytest.approx((alike + other) / 2)
    assert found[2]['cka'] == pytest.approx(other)
    agreements = [row['agreement'] for row in found]
    assert agreements[:2] == pytest.approx([(1 + agreements[2]) / 2] * 2)
    assert 'cka' not in study(gallery, queries, [0.2])[0]
