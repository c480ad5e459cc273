"""Small files of random weights with PyTorch's names, and PyTorch's layers in NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict
from small_data import CONFIG

from mtdml_jax.config import load_config
from mtdml_jax.models import make_network
from mtdml_jax.models.backbones import BACKBONES
from mtdml_jax.models.pretrained import load_backbone

NUM_CLASSES, SIDE = 7, 32


def model_section(backbone='resnet18', stem='imagenet', width=4, pretrained=''):
    """Returns the section `model` of a config, with `width` channels in the first stage."""
    model = ConfigDict(load_config(CONFIG).model.to_dict())
    sizes = {'width_factor': width / 64, 'embedding_size': 4, 'num_slices': 2}
    model.update(backbone=backbone, stem=stem, pretrained=str(pretrained), **sizes)
    return model


def blank_variables(model, channels=3):
    """Returns the network's variables, all 0.25, because BatchNorm starts with 0 and 1."""
    images = jnp.zeros((1, SIDE, SIDE, channels))
    init = partial(make_network(model, NUM_CLASSES).init, jax.random.key(0))
    return jax.tree.map(lambda x: np.full(x.shape, 0.25, np.float32), jax.eval_shape(init, images))


def random_arrays(model, channels=3):
    """Returns PyTorch name -> random array of the backbone; kernels are [O, I, H, W]."""
    rng = np.random.default_rng(0)
    flat = flatten_dict(blank_variables(model, channels))
    arrays = {}
    for name, (kind, *rest) in BACKBONES[model.backbone].torch_names(model).items():
        shape = flat[kind, 'backbone', *rest].shape
        if len(shape) == 4:
            height, width, inputs, outputs = shape
            size = (outputs, inputs, height, width)
            arrays[name] = rng.normal(size=size, scale=(inputs * height * width) ** -0.5)
        else:
            arrays[name] = rng.uniform(0.5, 1.5, shape)
    return {name: x.astype(np.float32) for name, x in arrays.items()}


def write(folder, arrays):
    """Writes these arrays to an npz file; returns its path."""
    np.savez(folder / 'weights.npz', **arrays)
    return folder / 'weights.npz'


def file_of(folder, channels=3, **model):
    """Writes random arrays of such a backbone to an npz file; returns its path."""
    return write(folder, random_arrays(model_section(**model), channels))


def features_of(path, images, **model):
    """Returns the features of images [N, C, H, W] by the backbone with the arrays of a file."""
    model = model_section(pretrained=path, **model)
    variables = load_backbone(blank_variables(model), model)
    inside = {kind: tree['backbone'] for kind, tree in variables.items()}
    apply = jax.jit(partial(make_network(model, NUM_CLASSES).backbone.apply, train=False))
    return apply(inside, images.transpose(0, 2, 3, 1))


def two_images():
    return np.random.default_rng(1).normal(size=(2, 3, SIDE, SIDE), scale=3).astype(np.float32)


# The layers of PyTorch in NumPy. Images are [N, C, H, W].


def convolve(x, kernel, stride):
    size = kernel.shape[2]
    margin = [(size // 2, size // 2)] * 2
    x = np.pad(x, [(0, 0), (0, 0), *margin])
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(2, 3))
    windows = windows[:, :, ::stride, ::stride]
    if len(kernel) == x.shape[1] and kernel.shape[1] == 1:  # Depthwise.
        return np.einsum('nchwij,cij->nchw', windows, kernel[:, 0])
    return np.einsum('nchwij,ocij->nohw', windows, kernel)


def normalize(x, arrays, name, epsilon=1e-5):
    scale, bias, mean, variance = (
        arrays[f'{name}.{key}'][:, None, None]
        for key in ('weight', 'bias', 'running_mean', 'running_var')
    )
    return (x - mean) / np.sqrt(variance + epsilon) * scale + bias
