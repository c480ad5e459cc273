"""Weights from files: where each array goes, what it computes there, and what is refused."""

import pickle
import shlex
import sys
from collections import OrderedDict
from pathlib import Path

import chex
import numpy as np
import pytest
from backbone_files import (
    NUM_CLASSES,
    blank_variables,
    convolve,
    features_of,
    file_of,
    model_section,
    normalize,
    random_arrays,
    two_images,
    write,
)
from flax.traverse_util import flatten_dict
from small_data import small_config

from mtdml_jax.host.errors import UserError
from mtdml_jax.models import make_network
from mtdml_jax.models.backbones import BACKBONES
from mtdml_jax.models.pretrained import load_backbone
from mtdml_jax.reports.evaluate import load_checkpoint
from mtdml_jax.training import loop
from mtdml_jax.training.state import create_state, make_optimizer, make_schedule

pytestmark = pytest.mark.usefixtures('resnet4')

HEAD = {'fc.weight': np.zeros((5, 2)), 'fc.bias': np.zeros(5)}


# torchvision's ResNet in NumPy, images [N, C, H, W].


def block(x, arrays, name, strides):
    """A block with strides of its convolutions, of which the shortcut has the product."""
    y = x
    for number, stride in enumerate(strides, start=1):
        y = convolve(y, arrays[f'{name}.conv{number}.weight'], stride)
        y = normalize(y, arrays, f'{name}.bn{number}')
        y = np.maximum(y, 0) if number < len(strides) else y
    if f'{name}.downsample.0.weight' in arrays:
        x = convolve(x, arrays[f'{name}.downsample.0.weight'], np.prod(strides))
        x = normalize(x, arrays, f'{name}.downsample.1')
    return np.maximum(x + y, 0)


def features_in_numpy(x, arrays, stage_sizes, first_strides):
    x = np.maximum(normalize(convolve(x, arrays['conv1.weight'], 2), arrays, 'bn1'), 0)
    x = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)])
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
    x = np.max(windows[:, :, ::2, ::2], axis=(4, 5))
    for stage, num_blocks in enumerate(stage_sizes, start=1):
        for index in range(num_blocks):
            strides = first_strides if stage > 1 and index == 0 else [1] * len(first_strides)
            x = block(x, arrays, f'layer{stage}.{index}', strides)
    return np.mean(x, axis=(2, 3))


@pytest.mark.parametrize(
    ('backbone', 'stage_sizes', 'first_strides'),
    [('resnet18', (2, 2, 2, 2), [2, 1]), ('resnet50', (3, 4, 6, 3), [1, 2, 1])],
)
def test_backbone_computes_what_the_arrays_of_the_file_compute(
    backbone, stage_sizes, first_strides, tmp_path
):
    path = file_of(tmp_path, backbone=backbone)
    images = two_images()
    expected = features_in_numpy(images, np.load(path), stage_sizes, first_strides)
    assert np.max(np.abs(expected[0] - expected[1])) > 0.1
    found = features_of(path, images, backbone=backbone)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ('backbone', 'count', 'name', 'place'),
    [
        ('resnet18', 100, 'conv1.weight', 'params/Conv_0/kernel'),
        ('resnet18', 100, 'bn1.running_mean', 'batch_stats/BatchNorm_0/mean'),
        (
            *('resnet18', 100, 'layer2.0.downsample.0.weight'),
            'params/BasicBlock_2/Conv_2/kernel',
        ),
        ('resnet34', 180, 'layer3.5.bn2.bias', 'params/BasicBlock_12/BatchNorm_1/bias'),
        (
            *('resnet50', 265, 'layer1.0.downsample.1.weight'),
            'params/Bottleneck_0/BatchNorm_3/scale',
        ),
        (
            *('resnet50', 265, 'layer4.2.bn3.running_var'),
            'batch_stats/Bottleneck_15/BatchNorm_2/var',
        ),
        ('dlib_resnet', 145, 'conv0.weight', 'params/Conv_0/kernel'),
        ('dlib_resnet', 145, 'bn28.running_mean', 'batch_stats/Block_13/BatchNorm_1/mean'),
    ],
)
def test_every_array_of_the_backbone_has_a_name(backbone, count, name, place):
    model = model_section(backbone)
    names = BACKBONES[backbone].torch_names(model)
    flat = flatten_dict(blank_variables(model))
    inside = {(kind, *rest) for kind, part, *rest in flat if part == 'backbone'}
    assert set(names.values()) == inside
    assert len(names) == len(set(names.values())) == count
    assert '/'.join(names[name]) == place


def test_embedding_and_classifier_stay_as_they_were(tmp_path):
    model = model_section(pretrained=file_of(tmp_path))
    before = flatten_dict(blank_variables(model))
    after = flatten_dict(load_backbone(blank_variables(model), model))
    same = {path[1] for path, x in before.items() if np.array_equal(x, after[path])}
    assert same == {'embedding', 'classes', 'scale'}
    assert before.keys() == after.keys()


@pytest.mark.parametrize('prefix', ['', 'module.', 'module.base_net.', 'model.visual.backbone.'])
def test_prefix_of_all_names_is_seen_through(prefix, tmp_path, capsys):
    plain = random_arrays(model_section())
    counts = {f'{prefix}bn1.num_batches_tracked': np.asarray(7)}
    arrays = {prefix + name: x for name, x in plain.items()} | counts | HEAD
    model = model_section(pretrained=write(tmp_path, arrays))
    flat = flatten_dict(load_backbone(blank_variables(model), model))
    np.testing.assert_array_equal(
        flat['params', 'backbone', 'Conv_0', 'kernel'],
        plain['conv1.weight'].transpose(2, 3, 1, 0),
    )
    under = f' (under {prefix})' if prefix else ''
    assert capsys.readouterr().err == (
        f'config.model.pretrained: 100 arrays of resnet18 read from {model.pretrained}{under}, '
        '0 missing, 2 (fc.weight, fc.bias) unexpected\n'
    )


def test_array_without_the_prefix_of_the_others_is_unexpected(tmp_path, capsys):
    plain = random_arrays(model_section())
    arrays = {f'module.{name}': x for name, x in plain.items()} | {'bn1.bias': plain['bn1.bias']}
    model = model_section(pretrained=write(tmp_path, arrays))
    load_backbone(blank_variables(model), model)
    assert '1 (bn1.bias) unexpected' in capsys.readouterr().err


def test_two_whole_backbones_are_refused_with_the_command_that_keeps_one(tmp_path, monkeypatch):
    plain = random_arrays(model_section('resnet4'))
    arrays = {f'student.{name}': x for name, x in plain.items()}
    arrays |= {f'teacher.net.{name}': x + 1 for name, x in plain.items()}
    path = write(tmp_path, arrays)
    model = model_section('resnet4', pretrained=path)
    both = r"under 'student\.', 'teacher\.net\.'\. Write a new file"
    with pytest.raises(UserError, match=both) as error:
        load_backbone(blank_variables(model), model)
    _, _, code, *args = shlex.split(str(error.value).partition('the last: ')[2])
    monkeypatch.setattr(sys, 'argv', ['-c', *args])
    exec(code)
    model.pretrained = f'{path}.npz'
    flat = flatten_dict(load_backbone(blank_variables(model), model))
    found = flat['params', 'backbone', 'BatchNorm_0', 'bias']
    np.testing.assert_array_equal(found, plain['bn1.bias'] + 1)


def test_prefix_is_the_one_before_most_names(tmp_path, capsys):
    plain = random_arrays(model_section('resnet4'))
    arrays = {f'module.net.{name}': x for name, x in plain.items()}
    arrays |= {'conv1.weight': np.zeros(2), 'b.conv1.weight': np.zeros(2)}
    model = model_section('resnet4', pretrained=write(tmp_path, arrays))
    load_backbone(blank_variables(model), model)
    assert (
        '(under module.net.), 0 missing, 2 (conv1.weight, b.conv1.weight)'
        in capsys.readouterr().err
    )


@pytest.mark.parametrize('name', ['layer3.1.conv2.weight', 'bn1.running_var'])
def test_array_that_is_missing_is_named(name, tmp_path):
    arrays = {f'a.b.{key}': x for key, x in random_arrays(model_section()).items() if key != name}
    model = model_section(pretrained=write(tmp_path, arrays))
    message = rf'\(under a\.b\.\) .*of its 100 arrays 1 \({name}\) missing; 0 unexpected$'
    with pytest.raises(UserError, match=message):
        load_backbone(blank_variables(model), model)


def test_another_architecture_is_refused_with_names_of_both(tmp_path):
    arrays = {f'body.{number}.res_layer.1.weight': np.zeros((2, 2, 3, 3)) for number in range(24)}
    model = model_section(pretrained=write(tmp_path, arrays))
    both = r'100 \(conv1.weight, bn1.weight, .*, \.\.\.\) missing; 24 \(body.0.res_layer.1.weight,'
    with pytest.raises(UserError, match=both):
        load_backbone(blank_variables(model), model)


# Every array of ResNet-18 has its like in ResNet-34: half a network would be read.
@pytest.mark.parametrize('backbone', ['resnet34', 'resnet50'])
def test_deeper_backbone_is_refused_with_the_setting_for_it(backbone, tmp_path):
    model = model_section(pretrained=file_of(tmp_path, backbone=backbone))
    with pytest.raises(UserError, match=f'0 missing; .* Set config.model.backbone={backbone}$'):
        load_backbone(blank_variables(model), model)


@pytest.mark.parametrize(
    ('model', 'channels', 'found', 'settings'),
    [
        ({}, 1, '(4, 1, 7, 7)', 'config.data.channels=1'),
        ({'stem': 'small'}, 3, '(4, 3, 3, 3)', 'config.model.stem=small'),
        (
            *({'width': 8}, 1, '(8, 1, 7, 7)'),
            'config.model.width_factor=0.125, config.data.channels=1',
        ),
    ],
)
def test_other_shape_is_refused_with_the_settings_for_it(
    model, channels, found, settings, tmp_path
):
    path = file_of(tmp_path, channels, **model)
    model = model_section(pretrained=path)
    with pytest.raises(UserError) as error:
        load_backbone(blank_variables(model), model)
    assert str(error.value) == (
        f'config.model.pretrained: conv1.weight of {path}: expected shape (4, 3, 7, 7), found {found}'
        f'. Set {settings}'
    )


@pytest.mark.parametrize(
    ('array', 'message'),
    [
        (np.zeros(9), r'expected shape \(8,\), found \(9,\)$'),
        (np.zeros(8, int), 'expected floats, found int64$'),
    ],
)
def test_other_array_that_no_setting_gives_is_refused(array, message, tmp_path):
    arrays = random_arrays(model_section()) | {'layer2.1.bn1.bias': array}
    model = model_section(pretrained=write(tmp_path, arrays))
    with pytest.raises(UserError, match=f'layer2.1.bn1.bias of .*: {message}'):
        load_backbone(blank_variables(model), model)


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('none.npz', 'no file'),
        ('weights.h5', 'expected one of .npz, .pkl, .dat, .pth, .pth.tar, .pt, found'),
        ('weights.npz', 'is not an npz file of arrays'),
        ('net.dat.bz2', 'is packed; unpack it: bunzip2 .*net.dat.bz2$'),
    ],
)
def test_file_that_cannot_be_read_is_named(name, message, tmp_path):
    for name_of_text in ('weights.h5', 'weights.npz', 'net.dat.bz2'):
        (tmp_path / name_of_text).write_text('some text')
    model = model_section(pretrained=tmp_path / name)
    with pytest.raises(UserError, match=rf'config.model.pretrained: .*{message}'):
        load_backbone(None, model)


@pytest.mark.parametrize('ending', ['.pth', '.pth.tar', '.pt'])
def test_without_torch_its_file_is_refused_with_the_command_that_converts_it(
    ending, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, 'torch', None)
    path = tmp_path / f'weights{ending}'
    path.touch()
    with pytest.raises(UserError, match=f"needs PyTorch.*python -c '.*' {path} {path}.npz$"):
        load_backbone(None, model_section(pretrained=path))


@pytest.fixture
def config(folder, tmp_path):
    """Config of a short run that starts from a file."""
    model = {'backbone': 'resnet4', 'width': 4, 'stem': 'small'}
    path = file_of(tmp_path, channels=1, **model)
    return small_config(folder, f'--config.model.pretrained={path}', '--config.train.num_steps=3')


def first_state(config, **options):
    optimizer = make_optimizer(config.optim, make_schedule(config.optim, 3))
    return create_state(make_network(config.model, NUM_CLASSES), optimizer, config, **options)


def test_first_state_and_its_running_mean_start_from_the_file(config):
    state = first_state(config)
    bias = np.load(config.model.pretrained)['layer1.0.bn2.bias']
    for variables in (state.variables, state.ema):
        found = variables['params']['backbone']['BasicBlock_0']['BatchNorm_1']['bias']
        np.testing.assert_array_equal(found, bias)
    Path(config.model.pretrained).unlink()
    shapes = first_state(config, shapes_only=True)
    chex.assert_trees_all_equal_shapes_and_dtypes(shapes, state)
    config.model.pretrained = ''
    random = first_state(config)
    np.testing.assert_array_equal(
        state.variables['params']['embedding']['kernel'],
        random.variables['params']['embedding']['kernel'],
    )


@pytest.mark.slow
def test_run_starts_from_the_file_and_then_goes_on_and_is_evaluated_without_it(config, tmp_path):
    config.optim.learning_rate = 0.0
    expected = first_state(config).variables['params']
    assert loop.train(config, tmp_path / 'run')
    Path(config.model.pretrained).unlink()
    assert loop.train(config, tmp_path / 'run')
    network = make_network(config.model, NUM_CLASSES)
    state, _ = load_checkpoint(network, config, tmp_path / 'run')
    assert int(state.step) == 3
    chex.assert_trees_all_equal(state.variables['params'], expected)


def test_file_that_is_refused_leaves_no_run_behind(config, tmp_path):
    Path(config.model.pretrained).unlink()
    with pytest.raises(UserError, match='no file'):
        loop.train(config, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('wrappers', ['net', 'ema.params'])
def test_dicts_in_dicts_are_the_start_of_the_prefix(wrappers, tmp_path, capsys):
    plain = random_arrays(model_section('resnet4'))
    arrays = OrderedDict((f'module.{name}', x) for name, x in plain.items())
    arrays._metadata = OrderedDict(version=1)  # As PyTorch's have.
    for key in reversed(wrappers.split('.')):
        arrays = {'a': {'conv1.weight': np.zeros(2)}, 0: np.zeros(2), 'epoch': 3, key: arrays}
    path = tmp_path / 'weights.pkl'
    path.write_bytes(pickle.dumps(arrays))
    model = model_section('resnet4', pretrained=path)
    load_backbone(blank_variables(model), model)
    assert f'weights.pkl (under {wrappers}.module.), 0 missing' in capsys.readouterr().err
