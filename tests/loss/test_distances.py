"""Distances of pairs of vectors and their gradients, especially where the vectors are equal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtdml_jax.loss.distances import DISTANCES, check_distance, paired_distance

X = jnp.array([[0.0, 3.0], [1.0, 1.0]])
Y = jnp.array([[4.0, 0.0], [1.0, 0.5]])
SQUARED = DISTANCES['squared_euclidean']


@pytest.mark.parametrize(
    ('distance', 'expected'), [('euclidean', [5.0, 0.5]), ('squared_euclidean', [25.0, 0.25])]
)
def test_each_vector_is_measured_to_its_partner(distance, expected):
    np.testing.assert_allclose(paired_distance(X, Y, DISTANCES[distance]), expected, rtol=1e-6)


def test_distance_is_euclidean_by_default():
    np.testing.assert_allclose(paired_distance(X, Y), [5.0, 0.5], rtol=1e-6)


def test_one_partner_may_serve_all():
    np.testing.assert_allclose(paired_distance(X[None], Y[1:][None]), [[7.25**0.5, 0.5]], rtol=1e-6)


@pytest.mark.parametrize(
    ('distance', 'expected'),
    [
        # (x - y) / |x - y| and 2 (x - y).
        ('euclidean', [[-0.8, 0.6], [0.0, 1.0]]),
        ('squared_euclidean', [[-8.0, 6.0], [0.0, 1.0]]),
    ],
)
def test_gradient_points_away_from_the_partner(distance, expected):
    for_x, for_y = jax.grad(lambda *xy: jnp.sum(paired_distance(*xy, DISTANCES[distance])), (0, 1))(
        X, Y
    )
    np.testing.assert_allclose(for_x, expected, rtol=1e-6)
    np.testing.assert_allclose(for_y, -for_x)


@pytest.mark.parametrize('distance', DISTANCES)
def test_equal_vectors_have_distance_and_gradient_zero(distance):
    # The last pair differs, so a gradient of 0 everywhere would fail.
    equal = jnp.array([[0.6, 0.8], [0.0, 0.0], [1.0, 0.0]])
    partner = jnp.array([[0.6, 0.8], [0.0, 0.0], [0.0, 0.0]])
    value, pull_back = jax.vjp(lambda x: paired_distance(x, partner, DISTANCES[distance]), equal)
    (gradient,) = pull_back(jnp.ones(3))
    np.testing.assert_array_equal(value[:2], 0)
    np.testing.assert_array_equal(gradient[:2], 0)
    assert gradient[2, 0] > 0


def test_vectors_that_only_rounding_keeps_apart_have_euclidean_distance_and_gradient_zero():
    x = jnp.array([0.6, 0.8])
    apart = jnp.nextafter(x, 2.0)
    distance, gradient = jax.value_and_grad(paired_distance)(x, apart)
    assert distance == 0
    np.testing.assert_array_equal(gradient, [0.0, 0.0])
    # The squared distance has a small gradient anyway.
    assert paired_distance(x, apart, SQUARED) > 0


def test_rounding_reaches_up_to_four_eps_of_the_length():
    gaps = np.float32([3.9, 4.1, 3900, 4100]) * np.finfo(np.float32).eps
    x = np.float32([[1, 0], [1, 0], [1000, 0], [1000, 0]])
    y = np.stack([x[:, 0], gaps], axis=1)
    np.testing.assert_allclose(paired_distance(x, y), [0, gaps[1], 0, gaps[3]], rtol=1e-5)


def test_small_distances_of_unit_vectors_keep_their_digits():
    # 2 - 2 cos would be 0 or noise here: the squared distance is below float32's rounding of 2.
    x = jnp.array([1.0, 0.0])
    y = jnp.array([1.0, 1e-5])
    np.testing.assert_allclose(paired_distance(x, y), 1e-5, rtol=1e-5)
    np.testing.assert_allclose(paired_distance(x, y, SQUARED), 1e-10, rtol=1e-5)


def test_unknown_distance_names_expected_and_found():
    with pytest.raises(ValueError, match=r"\('euclidean', 'squared_euclidean'\), found 'l1'"):
        check_distance('l1')
