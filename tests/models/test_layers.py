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
def test_other_devices_have_the_gradient_of_xla(platform):
    x = np.zeros((2, 7, 7, 3), np.float32)
    ours, xla = (
        jax.jit(jax.grad(lambda x, pool=pool: pool(x).sum()))
        .trace(x)
        .lower(lowering_platforms=(platform,))
        .as_text()
        for pool in (max_pool, lambda x: nn.max_pool(x, (3, 3), strides=(2, 2)))
    )
    assert ours.count('stablehlo.select_and_scatter') == 1
    for name in ('select_and_scatter', 'slice', 'maximum'):
        assert ours.count(f'stablehlo.{name}') == xla.count(f'stablehlo.{name}')


def test_max_pool_without_a_gradient_is_one_operation_for_exports():
    """jax2onnx converts no choice by the device."""
    text = str(jax.make_jaxpr(max_pool)(np.zeros((1, 5, 5, 2), np.float32)))
    assert text.count('reduce_window_max') == 1
    assert 'platform_index' not in text
