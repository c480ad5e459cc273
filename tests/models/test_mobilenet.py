"""MobileNetV3-small: sizes, maps, rounding, and what it computes with the arrays of a file."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from backbone_files import convolve, features_of, file_of, normalize, two_images
from flax import linen as nn

from mtdml_jax.models.layers import DepthwiseConv
from mtdml_jax.models.mobilenet import MobileNetV3Small, multiple_of_8


def shapes_of(side, channels=3, **options):
    """(features, parameters, maps behind the first convolution and the blocks), as shapes."""
    model = MobileNetV3Small(**options)
    images = jax.ShapeDtypeStruct((2, side, side, channels), jnp.float32)
    variables = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
    apply = partial(model.apply, train=False, capture_intermediates=True, mutable='intermediates')
    features, state = jax.eval_shape(apply, variables, images)
    maps = [state['intermediates'][name]['__call__'][0] for name in ('features_0_0', *BLOCKS)]
    return features, variables['params'], maps


BLOCKS = [f'features_{number}' for number in range(1, 12)]


def test_network_has_the_published_number_of_parameters_and_features():
    features, params, _ = shapes_of(224)
    # Published are 2,542,856; torchvision's classifier has layers of 576 x 1024 and 1024 x 1000.
    classifier = 576 * 1024 + 1024 + 1024 * 1000 + 1000
    assert sum(x.size for x in jax.tree.leaves(params)) == 2_542_856 - classifier
    assert features.shape == (2, 576)
    assert features.dtype == jnp.float32


@pytest.mark.parametrize(
    ('stem', 'side', 'sides'),
    [
        ('imagenet', 224, [112, 56, 28, 28, *[14] * 5, *[7] * 3]),
        ('small', 48, [48, 24, 12, 12, *[6] * 5, *[3] * 3]),
        ('cifar', 48, [48, 48, 24, 24, *[12] * 5, *[6] * 3]),
    ],
)
def test_stem_decides_the_sides_of_the_maps(stem, side, sides):
    _, _, maps = shapes_of(side, stem=stem)
    assert [x.shape[1] for x in maps] == [x.shape[2] for x in maps] == sides


def test_widths_are_rounded_to_multiples_of_8():
    # 8 is less than nine tenths of 9.5, which is nearer to it than to 16.
    widths = {0.1: 8, 8.8: 8, 9.5: 16, 12: 16, 36: 40, 44: 48, 74.7: 72, 576: 576}
    assert {x: multiple_of_8(x) for x in widths} == widths
    features, params, maps = shapes_of(48, 1, width_factor=0.5, dtype=jnp.bfloat16)
    # Half of 16, 24, 40, 48 and 96; the first of 20 is rounded up.
    assert [x.shape[-1] for x in maps] == [8, 8, 16, 16, 24, 24, 24, 24, 24, 48, 48, 48]
    assert features.shape == (2, 6 * 48)
    assert params['features_0_0']['kernel'].shape == (3, 3, 1, 8)
    assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    assert {x.dtype for x in maps} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize(('size', 'strides', 'side'), [(3, 1, 5), (3, 2, 6), (5, 2, 7), (5, 1, 2)])
def test_depthwise_convolution_is_that_of_flax_with_its_gradients(size, strides, side):
    x = np.random.default_rng(0).normal(size=(2, side, side + 1, 3)).astype(np.float32)
    theirs = nn.Conv(
        3, (size, size), strides, padding=size // 2, feature_group_count=3, use_bias=False
    )
    variables = theirs.init(jax.random.key(0), x)

    def outcome(module):
        def loss(variables, x):
            return jnp.sum(jnp.sin(module.apply(variables, x)))

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(variables, x)

    ours = DepthwiseConv(size, strides, jnp.float32)
    chex.assert_trees_all_close(outcome(ours), outcome(theirs), rtol=1e-4, atol=1e-5)


def hard_sigmoid(x):
    return np.clip(x + 3, 0, 6) / 6


def features_in_numpy(x, arrays, kernels):
    """By the rows of Table 2 of the paper: (size, hard-swish, stride) of each block."""

    def layer(x, name, stride=1):
        x = convolve(x, arrays[f'{name}.0.weight'], stride)
        return normalize(x, arrays, f'{name}.1', epsilon=1e-3)

    def hard_swish(x):
        return x * hard_sigmoid(x)

    x = hard_swish(layer(x, 'features.0'))
    for number, (size, swishes, stride) in enumerate(kernels, start=1):
        y, name = x, f'features.{number}.block'
        activate = hard_swish if swishes else lambda x: np.maximum(x, 0)
        parts = sorted({key.split('.')[3] for key in arrays if key.startswith(f'{name}.')}, key=int)
        for part in parts:
            inside = f'{name}.{part}'
            if f'{inside}.fc1.weight' in arrays:
                means = y.mean(axis=(2, 3), keepdims=True)
                hidden = convolve(means, arrays[f'{inside}.fc1.weight'], 1)
                hidden = np.maximum(hidden + arrays[f'{inside}.fc1.bias'][:, None, None], 0)
                weights = convolve(hidden, arrays[f'{inside}.fc2.weight'], 1)
                y = y * hard_sigmoid(weights + arrays[f'{inside}.fc2.bias'][:, None, None])
            else:
                is_depthwise = arrays[f'{inside}.0.weight'].shape[-1] == size
                y = layer(y, inside, stride if is_depthwise else 1)
                y = y if part == parts[-1] else activate(y)
        x = x + y if x.shape == y.shape else y
    return hard_swish(layer(x, 'features.12')).mean(axis=(2, 3))


def test_backbone_computes_what_the_arrays_of_the_file_compute(tmp_path, capsys):
    model = {'backbone': 'mobilenet_v3_small', 'stem': 'small', 'width': 16}
    path = file_of(tmp_path, **model)
    kernels = [(3, False, s) for s in (2, 2, 1)] + [(5, True, s) for s in (2, 1, 1, 1, 1, 2, 1, 1)]
    arrays = dict(np.load(path))
    np.savez(path, **arrays, **{'classifier.0.weight': np.zeros((4, 4))})
    expected = features_in_numpy(two_images(), arrays, kernels)
    assert np.max(np.abs(expected[0] - expected[1])) > 0.01
    found = features_of(path, two_images(), **model)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert '0 missing, 1 (classifier.0.weight) unexpected' in capsys.readouterr().err
