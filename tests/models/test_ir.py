"""IR-50: sizes, maps, what it computes with the arrays of a file, and what it refuses."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from backbone_files import (
    blank_variables,
    convolve,
    features_of,
    file_of,
    model_section,
    normalize,
    two_images,
    write,
)

from mtdml_jax.host.errors import UserError
from mtdml_jax.models import make_network
from mtdml_jax.models.backbones import BACKBONES, Backbone
from mtdml_jax.models.ir import IR
from mtdml_jax.models.pretrained import load_backbone


def shapes_of(side, **options):
    """(features, parameters, maps behind the last unit of each stage), as shapes."""
    model = IR(**options)
    images = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    variables = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
    apply = partial(model.apply, train=False, capture_intermediates=True, mutable='intermediates')
    features, state = jax.eval_shape(apply, variables, images)
    maps = [state['intermediates'][f'body_{i}']['__call__'][0].shape[1:] for i in (2, 6, 20, 23)]
    return features, variables['params'], maps


def test_network_has_as_many_parameters_as_its_layers_have():
    features, params, _ = shapes_of(112)
    # Two kernels, two BatchNorms and the slopes; where the width doubles, a 1x1 kernel and a BatchNorm.
    units, inputs = 27 * 64 + 3 * 64, 64
    for outputs, count in ((64, 3), (128, 4), (256, 14), (512, 3)):
        for _ in range(count):
            units += 9 * inputs * outputs + 9 * outputs**2 + 2 * inputs + 3 * outputs
            units += (inputs + 2) * outputs if inputs != outputs else 0
            inputs = outputs
    assert sum(x.size for x in jax.tree.leaves(params)) == units == 30_727_360
    assert features.shape == (2, 512)


@pytest.mark.parametrize(
    ('stem', 'side', 'sides'), [('small', 112, [56, 28, 14, 7]), ('cifar', 48, [48, 24, 12, 6])]
)
def test_stem_decides_the_sides_of_the_maps(stem, side, sides):
    _, _, maps = shapes_of(side, stem=stem)
    widths = [64, 128, 256, 512]
    assert maps == [(x, x, width) for x, width in zip(sides, widths, strict=True)]


def test_width_factor_multiplies_the_channels_and_bfloat16_is_that_of_the_computation():
    features, params, maps = shapes_of(32, width_factor=0.25, dtype=jnp.bfloat16)
    assert [width for *_, width in maps] == [16, 32, 64, 128]
    assert features.dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype(np.float32)}


def features_in_numpy(x, arrays):
    def slope(x, name):
        return np.where(x >= 0, x, arrays[f'{name}.weight'][:, None, None] * x)

    x = convolve(x, arrays['input_layer.0.weight'], 1)
    x = slope(normalize(x, arrays, 'input_layer.1'), 'input_layer.2')
    for number in range(24):
        name, stride = f'body.{number}', 2 if number in (0, 3, 7, 21) else 1
        y = normalize(x, arrays, f'{name}.res_layer.0')
        y = slope(convolve(y, arrays[f'{name}.res_layer.1.weight'], 1), f'{name}.res_layer.2')
        y = convolve(y, arrays[f'{name}.res_layer.3.weight'], stride)
        y = normalize(y, arrays, f'{name}.res_layer.4')
        if f'{name}.shortcut_layer.0.weight' in arrays:
            x = convolve(x, arrays[f'{name}.shortcut_layer.0.weight'], stride)
            x = normalize(x, arrays, f'{name}.shortcut_layer.1')
        else:
            x = x[:, :, ::stride, ::stride]
        x = x + y
    return x.mean(axis=(2, 3))


def test_backbone_computes_what_the_arrays_of_the_file_compute(tmp_path, capsys):
    path = file_of(tmp_path, backbone='ir50', stem='small')
    arrays = dict(np.load(path))
    write(tmp_path, arrays | {'output_layer.3.weight': np.zeros((2, 8))})
    expected = features_in_numpy(two_images(), arrays)
    assert np.max(np.abs(expected[0] - expected[1])) > 0.1
    found = features_of(path, two_images(), backbone='ir50', stem='small')
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.max(np.abs(expected)))
    assert '285 arrays of ir50' in capsys.readouterr().err


def test_weights_of_another_kind_are_refused_with_the_setting_for_it(tmp_path):
    path = file_of(tmp_path, backbone='ir50', stem='small')
    model = model_section('resnet10', pretrained=path)
    with pytest.raises(
        UserError, match=r'285 \(.*\) unexpected\. Set config.model.pretrained_family=face_evolve$'
    ):
        load_backbone(blank_variables(model), model)


def test_stem_that_it_does_not_have_is_refused():
    message = "config.model.stem: expected one of small, cifar, found 'imagenet'"
    with pytest.raises(UserError, match=message):
        make_network(model_section('ir50', stem='imagenet'), 7)


def test_weights_for_a_backbone_without_names_are_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(BACKBONES, 'mine', Backbone(BACKBONES['ir50'].make))
    model = model_section('mine', stem='small', pretrained=tmp_path / 'weights.npz')
    with pytest.raises(
        UserError, match=r'of mine are not known, only those of resnet10, .*, dlib_resnet$'
    ):
        load_backbone(None, model)


def test_training_changes_every_parameter_and_statistic():
    model = IR(width_factor=1 / 16, stages=(2, 1))
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype(np.float32)
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), images)

    @jax.jit
    def step(params):
        def loss(params):
            inputs = {'params': params, 'batch_stats': variables['batch_stats']}
            features, state = model.apply(inputs, images, train=True, mutable='batch_stats')
            return jnp.sum(jnp.sin(features)), state['batch_stats']

        return jax.grad(loss, has_aux=True)(params)

    gradient, statistics = step(variables['params'])
    assert all(np.max(np.abs(x)) > 0 for x in jax.tree.leaves(gradient))
    changes = jax.tree.map(
        lambda old, new: np.max(np.abs(old - new)), variables['batch_stats'], statistics
    )
    assert all(x > 0 for x in jax.tree.leaves(changes))
    chex.assert_trees_all_equal_shapes(statistics, variables['batch_stats'])
