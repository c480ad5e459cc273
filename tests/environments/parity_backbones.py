"""Compares our backbones with PyTorch networks that have the same weights, and with dlib's network.

    make parity

runs the tests of this file too. The PyTorch networks have the parameter names of torchvision and
face.evoLVe, and random weights and running statistics. Neither of the two packages is needed. dlib's
network has the weights of the package face_recognition_models.
"""

import argparse
import re
import shlex
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import dlib
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn
from torch_ir import TorchIR
from torch_mobilenet import TorchMobileNet
from torch_resnet import NETWORKS, TorchResNet

from mtdml_jax.data.face_drawing import EXPRESSIONS, draw_face
from mtdml_jax.host.errors import UserError
from mtdml_jax.models.backbones import BACKBONES
from mtdml_jax.models.dlib_resnet import GREY_MEAN, MEANS, SCALE
from mtdml_jax.models.pretrained import DLIB, find_file, load_backbone, read_arrays

# Our name -> PyTorch's network, its stem, and the sides of images. The second side gives feature maps
# with odd sides, where paddings differ most.
PEERS = {
    **{name: (partial(TorchResNet, name), 'imagenet', (224, 100)) for name in NETWORKS},
    'mobilenet_v3_small': (TorchMobileNet, 'imagenet', (224, 100)),
    'ir50': (TorchIR, 'small', (112, 75)),
}
# The state of an optimizer has tensors under numbers.
OPTIMIZER = {'state': {0: {'momentum_buffer': torch.zeros(2)}}, 'param_groups': [{'lr': 0.1}]}


def random_network(name='resnet18'):
    """Returns a network in evaluation mode whose features differ between images."""
    torch.manual_seed(0)
    network = PEERS[name][0]()
    network.fc = nn.Linear(network.num_features, 10)  # Files of weights have such a layer.
    network.eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            for x in (module.weight.data, module.running_var):
                x.uniform_(0.5, 1.5)
            for x in (module.bias.data, module.running_mean):
                x.normal_(std=0.5)
        if isinstance(module, nn.PReLU):
            module.weight.data.uniform_(-0.2, 0.6)
    return network


def load(path, name='resnet18', channels=3):
    """Returns our backbone and its variables, which are read from a file."""
    model = SimpleNamespace(backbone=name, width_factor=1.0, pretrained=str(path))
    model.stem = PEERS[name][1] if name in PEERS else ''
    module = BACKBONES[name].make(model, dtype=jnp.float32, axis_name=None)
    init = partial(module.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 64, 64, channels)))
    blank = {
        kind: {'backbone': jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), tree)}
        for kind, tree in shapes.items()
    }
    variables = load_backbone(blank, model)
    return module, {kind: tree['backbone'] for kind, tree in variables.items()}


@pytest.mark.parametrize(
    ('name', 'side'), [(name, side) for name, peer in PEERS.items() for side in peer[2]]
)
def test_features_are_those_of_pytorch(name, side, tmp_path):
    """All arrays of our backbone come from a file."""
    network = random_network(name)
    torch.save({'state_dict': network.state_dict()}, tmp_path / 'weights.pth')
    module, variables = load(tmp_path / 'weights.pth', name)
    # The patterns are coarse, because noise of single pixels would average out.
    images = nn.functional.interpolate(torch.randn(4, 3, 8, 8), (side, side), mode='bilinear')
    with torch.inference_mode():
        expected = network(images).numpy()
    apply = jax.jit(partial(module.apply, train=False))
    found = np.asarray(apply(variables, images.permute(0, 2, 3, 1).numpy()))
    difference, largest = np.max(np.abs(found - expected)), np.max(np.abs(expected))
    spread = np.mean(np.std(expected, axis=0))
    print(
        f'{name}, {side} px: largest difference {difference:.1e}, relative {difference / largest:.1e} '
        f'(largest feature {largest:.2f}, spread over images {spread:.2f})'
    )
    assert difference < 1e-4 * largest
    assert difference < 1e-3 * spread


def faces():
    """Twenty drawn faces of 150 px, the last ten of them grey, in the place of dlib's aligned chips."""
    expressions = [*EXPRESSIONS]
    drawn = [draw_face(0, n, expressions[n % len(expressions)], n) for n in range(20)]
    grey = jax.image.resize(np.float32(drawn), (20, 150, 150), 'bilinear')[..., None]
    tints = np.random.default_rng(0).uniform(0.5, 1, (20, 1, 1, 3))
    tints[10:] = 1
    return np.clip(grey * tints, 0, 255).astype(np.uint8)


@pytest.mark.parametrize('channels', [3, 1])
def test_descriptors_are_those_of_dlib(channels):
    images = faces()[10 * (channels == 1) :]
    file = find_file(DLIB)
    network = dlib.face_recognition_model_v1(str(file))
    expected = np.array([network.compute_face_descriptor(image) for image in images])
    module, variables = load(DLIB, 'dlib_resnet', channels)
    means = np.float32(MEANS if channels == 3 else GREY_MEAN)
    pixels = (images[..., :channels] - means) / np.float32(SCALE)
    features = jax.jit(partial(module.apply, train=False))(variables, pixels)
    found = np.asarray(features) @ read_arrays(file)['fc.weight'].T
    difference, spread = np.max(np.abs(found - expected)), np.mean(np.std(expected, axis=0))
    print(f'dlib_resnet, {channels} channels: {difference:.1e} (spread over images {spread:.2f})')
    assert difference < 1e-4
    assert difference < 1e-3 * spread


@pytest.mark.parametrize(
    ('name', 'wrap', 'prefix'),
    [
        ('bare.pt', lambda arrays: arrays, ''),
        ('wrapped.pth', lambda arrays: {'model': arrays, 'epoch': 3}, 'model.'),
        ('kept.pth', lambda arrays: {'net': arrays, 'optimizer': OPTIMIZER}, 'net.'),
        ('deep.pth', lambda arrays: {'ema': {'module': arrays}}, 'ema.module.'),
    ],
)
def test_arrays_are_found_in_every_nesting(name, wrap, prefix, tmp_path):
    """The nestings are those that training scripts write."""
    arrays = random_network().state_dict()
    torch.save(wrap(arrays), tmp_path / name)
    found = read_arrays(tmp_path / name)
    assert found.keys() == {prefix + key for key in arrays}
    for key, array in arrays.items():
        np.testing.assert_array_equal(found[prefix + key], array)


def test_prefix_and_extra_layers_are_ignored(tmp_path, capsys):
    """The file ijba_res18_naive.pth.tar has such a prefix and such layers."""
    arrays = random_network().state_dict()
    arrays['feature.weight'] = torch.zeros(2, 2)
    wrapped = {'state_dict': {f'module.{name}': x for name, x in arrays.items()}, 'best': 0.5}
    torch.save(wrapped, tmp_path / 'weights.pth.tar')
    _, variables = load(tmp_path / 'weights.pth.tar')
    bias = variables['params']['BasicBlock_7']['BatchNorm_1']['bias']
    np.testing.assert_array_equal(bias, arrays['layer4.1.bn2.bias'])
    names = ('fc.weight', 'fc.bias', 'feature.weight')
    unexpected = f'3 ({", ".join(f"state_dict.module.{name}" for name in names)}) unexpected'
    message = capsys.readouterr().err
    assert unexpected in message
    assert '(under state_dict.module.)' in message


def command_in(error):
    """Returns the arguments of the command at the end of a message, with this Python."""
    (command,) = re.findall(r'python -c .*$', str(error.value))
    return [sys.executable, *shlex.split(command)[1:]]


def test_command_without_pytorch_makes_the_same_arrays(tmp_path, monkeypatch):
    """The command in the message runs where PyTorch is installed."""
    path = tmp_path / 'some weights.pth'
    arrays = random_network().state_dict()
    torch.save({'net': {'state_dict': arrays}, 'optimizer': OPTIMIZER, 0: arrays, 'epoch': 3}, path)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, 'torch', None)
        with pytest.raises(UserError, match='needs PyTorch') as error:
            read_arrays(path)
    subprocess.run(command_in(error), check=True)
    expected, found = read_arrays(path), read_arrays(tmp_path / 'some weights.pth.npz')
    assert found.keys() == expected.keys() == {f'net.state_dict.{name}' for name in arrays}
    assert all(np.array_equal(found[name], x) for name, x in expected.items())


def test_file_with_more_than_weights_is_refused_with_the_command_for_those_who_trust_it(tmp_path):
    """Reading the file could run code that the file contains."""
    path = tmp_path / 'weights.pth'
    arrays = random_network().state_dict()
    torch.save({'state_dict': arrays, 'args': argparse.Namespace(lr=1)}, path)
    with pytest.raises(UserError, match='If you trust') as error:
        read_arrays(path)
    subprocess.run(command_in(error), check=True)
    found = read_arrays(tmp_path / 'weights.pth.npz')
    assert found.keys() == {f'state_dict.{name}' for name in arrays}
