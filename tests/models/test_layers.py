"""Layers that backbones share."""

import jax
import numpy as np
import pytest
from flax import linen as nn

from mtdml_jax.models.layers import max_pool


def loops(x, gradient):
    """The maximum of 3x3 places with stride 2; the gradient goes to the place of the maximum."""
    result, to_x = np.empty_like(gradient), np.zeros_like(x)
    for b, i, j, c in np.ndindex(*gradient.shape):
        places = x[b, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3, c]
        row, column = np.unravel_index(np.argmax(places), places.shape)
        result[b, i, j, c] = places[row, column]
        to_x[b, 2 * i + row, 2 * j + column, c] += gradient[b, i, j, c]
    return result, to_x


@pytest.mark.parametrize(('height', 'width'), [(3, 4), (7, 6), (9, 5)])
def test_max_pool_and_its_gradient_are_those_of_loops(height, width):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, height, width, 3)).astype(np.float32)
    gradient = rng.normal(size=(2, (height - 1) // 2, (width - 1) // 2, 3)).astype(np.float32)
    result, pull = jax.vjp(jax.jit(max_pool), x)
    expected, to_x = loops(x, gradient)
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_allclose(pull(gradient)[0], to_x, rtol=1e-6)


@pytest.mark.parametrize('platform', ['cuda', 'tpu'])
def test_other_devices_have_the_max_pool_of_xla(platform):
    x = np.zeros((2, 7, 7, 3), np.float32)
    ours, xla = (
        jax.jit(pool).trace(x).lower(lowering_platforms=(platform,)).as_text()
        for pool in (max_pool, lambda x: nn.max_pool(x, (3, 3), strides=(2, 2)))
    )
    assert ours.count('reduce_window') == xla.count('reduce_window') == 1
    assert ours.count('stablehlo.slice') == 0
