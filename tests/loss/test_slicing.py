"""Cutting embeddings into unit slices and merging them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import numeric_gradient, unit_slices

from mtdml_jax import merge_slices, split_slices


@partial(jax.jit, static_argnums=1)
def slices_and_gradient(embeddings, num_slices, weights):
    """Returns the slices and the gradient of their weighted sum."""
    slices, pull_back = jax.vjp(lambda x: split_slices(x, num_slices), embeddings)
    return slices, pull_back(weights)[0]


def random_embeddings(batch, size, seed=0):
    return np.random.default_rng(seed).normal(size=(batch, size)).astype(np.float32)


def test_slices_are_neighbouring_columns_of_length_one():
    # Interleaved columns would give (3, 0) and (4, 5) in the first row.
    embeddings = jnp.array([[3.0, 4.0, 0.0, 5.0], [0.0, -2.0, 8.0, 6.0]])
    expected = [[[0.6, 0.8], [0.0, 1.0]], [[0.0, -1.0], [0.8, 0.6]]]
    np.testing.assert_allclose(split_slices(embeddings, 2), expected, rtol=1e-6)


def test_slices_match_loops():
    embeddings = random_embeddings(5, 12)
    expected = np.stack(unit_slices(embeddings, 3), axis=1)
    np.testing.assert_allclose(split_slices(embeddings, 3), expected, rtol=1e-6)


def test_one_slice_is_the_normalised_embedding():
    embeddings = random_embeddings(3, 4)
    length = np.linalg.norm(embeddings, axis=1, keepdims=True)
    np.testing.assert_allclose(split_slices(embeddings, 1)[:, 0], embeddings / length, rtol=1e-6)


def test_gradient_is_that_of_the_normalisation():
    # The largest entry, by which the slice is scaled first, must not carry a gradient of its own.
    embeddings, weights = random_embeddings(2, 6), random_embeddings(4, 3, 1).reshape(2, 2, 3)

    def by_loops(x):
        return np.sum(np.stack(unit_slices(x, 2), axis=1) * weights)

    _, found = slices_and_gradient(embeddings, 2, weights)
    np.testing.assert_allclose(found, numeric_gradient(by_loops, embeddings), atol=1e-5)


def test_zero_slice_stays_zero_and_passes_no_gradient():
    embeddings, weights = np.array([[0.0, 0.0, 3.0, 4.0]]), np.array([[[1.0, 2.0], [1.0, 0.0]]])
    slices, gradient = slices_and_gradient(embeddings, 2, weights)
    np.testing.assert_array_equal(slices[0, 0], [0.0, 0.0])
    np.testing.assert_array_equal(gradient[0, :2], [0.0, 0.0])
    # d(3/5) by the entries (3, 4): (16, -12) / 125. The zero slice leaves its neighbour alone.
    np.testing.assert_allclose(gradient[0, 2:], [0.128, -0.096], rtol=1e-6)


@pytest.mark.parametrize('scale', [1e30, 1e-30])
def test_entries_whose_squares_leave_float32_are_normalised(scale):
    embeddings, weights = np.array([[3.0, -4.0, 5.0, 12.0]]), np.array([[[1.0, 0.0], [0.0, 0.0]]])
    slices, gradient = slices_and_gradient(embeddings * scale, 2, weights)
    np.testing.assert_allclose(slices, [[[0.6, -0.8], [5 / 13, 12 / 13]]], rtol=1e-6)
    np.testing.assert_allclose(gradient * scale, [[0.128, 0.096, 0, 0]], rtol=1e-5)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16])
def test_low_precision_is_normalised_in_float32(dtype):
    # 300^2 is beyond float16, and bfloat16 has three digits.
    embeddings = jnp.array([[300.0, 400.0], [1.0, 3.0]], dtype)
    slices = split_slices(embeddings, 1)
    assert slices.dtype == jnp.float32
    np.testing.assert_array_equal(slices, split_slices(embeddings.astype(jnp.float32), 1))
    np.testing.assert_allclose(slices[:, 0], [[0.6, 0.8], [0.1**0.5, 0.9**0.5]], rtol=1e-6)


def test_float64_stays_float64():
    with jax.enable_x64(True):
        slices = split_slices(jnp.array([[1.0, 3.0]], jnp.float64), 1)
    assert slices.dtype == np.float64
    np.testing.assert_allclose(slices, [[[0.1**0.5, 0.9**0.5]]], rtol=1e-14)


def test_merged_slices_have_length_one_and_keep_their_order():
    slices = split_slices(random_embeddings(4, 12), 3)
    merged = merge_slices(slices)
    assert merged.shape == (4, 12)
    np.testing.assert_allclose(np.linalg.norm(merged, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(merged[:, 4:8] * 3**0.5, slices[:, 1], rtol=1e-6)


def test_squared_distance_of_merged_slices_is_the_mean_over_the_slices():
    slices = np.asarray(split_slices(random_embeddings(2, 12), 4))
    merged = np.asarray(merge_slices(slices))
    each = [np.sum((slices[0, s] - slices[1, s]) ** 2) for s in range(4)]
    assert np.sum((merged[0] - merged[1]) ** 2) == pytest.approx(np.mean(each), rel=1e-5)


@pytest.mark.parametrize(
    ('shape', 'num_slices', 'message'),
    [
        ((2, 10), 3, 'divisible by the number of slices, found 10 and 3'),
        ((2, 10), 0, 'divisible by the number of slices, found 10 and 0'),
        ((2, 10), -5, 'divisible by the number of slices, found 10 and -5'),
        ((10,), 2, r'expected embeddings of shape \[B, E\], found \(10,\)'),
        ((2, 5, 2), 2, r'expected embeddings of shape \[B, E\], found \(2, 5, 2\)'),
    ],
)
def test_impossible_slicing_names_expected_and_found(shape, num_slices, message):
    with pytest.raises(ValueError, match=message):
        jax.jit(split_slices, static_argnums=1)(jnp.ones(shape), num_slices)
