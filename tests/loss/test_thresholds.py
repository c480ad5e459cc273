"""The valid range of thresholds, against values by hand and against points on the sphere."""

import numpy as np
import pytest

from mtdml_jax import sample_thresholds, threshold_range


def smallest_distance(points):
    pairs = [(i, j) for i in range(len(points)) for j in range(i)]
    return min(np.linalg.norm(points[i] - points[j]) for i, j in pairs)


# sqrt(2 * 7 / 6) and 2 * 7 / 6.
@pytest.mark.parametrize(
    ('distance', 'high'), [('euclidean', 1.527525), ('squared_euclidean', 2.333333)]
)
@pytest.mark.parametrize('slice_dim', [None, 6, 64])
def test_seven_expressions_reach_up_to_the_simplex_distance(slice_dim, distance, high):
    assert threshold_range(7, slice_dim, distance) == pytest.approx((0.0, high), abs=1e-6)


def test_distance_is_euclidean_by_default():
    assert threshold_range(7) == threshold_range(7, None, 'euclidean')


@pytest.mark.parametrize('num_classes', [2, 3, 8])
def test_regular_simplex_keeps_exactly_the_highest_threshold(num_classes):
    # The corners e_i of R^C, seen from their centre, span C - 1 dimensions.
    corners = np.eye(num_classes) - 1 / num_classes
    corners /= np.linalg.norm(corners, axis=1, keepdims=True)
    _, high = threshold_range(num_classes, num_classes - 1)
    assert smallest_distance(corners) == pytest.approx(high, rel=1e-12)


def test_more_classes_than_simplex_corners_reach_up_to_the_right_angle():
    # 4 points in the plane: a square, 2d = 4 points, attains sqrt(2). A simplex would claim 1.633.
    square = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])
    assert threshold_range(4, 2)[1] == pytest.approx(smallest_distance(square))
    assert threshold_range(100, 2) == (0.0, pytest.approx(2**0.5))
    assert threshold_range(100, 2, 'squared_euclidean') == (0.0, 2.0)


def test_simplex_ends_where_classes_exceed_the_dimension_by_more_than_one():
    assert threshold_range(7, 6, 'squared_euclidean')[1] == pytest.approx(7 / 3)
    assert threshold_range(7, 5, 'squared_euclidean')[1] == 2.0
    assert threshold_range(2, 1)[1] == 2.0
    assert threshold_range(3, 1)[1] == pytest.approx(2**0.5)


def test_range_shrinks_towards_the_right_angle_with_many_classes():
    highs = [threshold_range(c)[1] for c in (2, 3, 7, 100, 10_000)]
    assert highs == sorted(highs, reverse=True)
    assert highs[-1] == pytest.approx(2**0.5, abs=1e-4)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ((1,), 'expected num_classes of at least 2, found 1'),
        ((7, 0), 'expected slice_dim of at least 1, found 0'),
        ((7, None, 'cosine'), r"expected distance .*'euclidean', 'squared_euclidean'.*'cosine'"),
    ],
)
def test_impossible_range_names_expected_and_found(arguments, message):
    with pytest.raises(ValueError, match=message):
        threshold_range(*arguments)


def test_thresholds_are_the_midpoints_of_equal_bins():
    # Neither the ends (0, .67, 1.33, 2) nor the lower edges of the bins (0, .5, 1, 1.5).
    np.testing.assert_allclose(sample_thresholds(4, 0.0, 2.0), [0.25, 0.75, 1.25, 1.75])
    np.testing.assert_allclose(sample_thresholds(2, 1.0, 3.0), [1.5, 2.5])


def test_single_threshold_is_the_middle_of_the_range():
    np.testing.assert_allclose(sample_thresholds(1, 0.5, 1.5), [1.0])


def test_thresholds_are_float32_and_lie_inside_the_range():
    low, high = threshold_range(7, 32)
    thresholds = sample_thresholds(16, low, high)
    assert thresholds.shape == (16,)
    assert thresholds.dtype == np.float32
    assert low < thresholds[0]
    assert thresholds[-1] < high
    np.testing.assert_allclose(np.diff(thresholds), (high - low) / 16, rtol=1e-5)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ((0, 0.0, 1.0), 'expected num_slices of at least 1, found 0'),
        ((4, 1.0, 1.0), r'expected low < high, found low=1\.0, high=1\.0'),
        ((4, 2.0, 1.0), r'expected low < high, found low=2\.0, high=1\.0'),
    ],
)
def test_impossible_sampling_names_expected_and_found(arguments, message):
    with pytest.raises(ValueError, match=message):
        sample_thresholds(*arguments)
