"""Weights of a backbone from a file: a PyTorch checkpoint or NumPy's npz, with torchvision's names."""

import json
import pickle
import shlex
import sys
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mtdml_jax.errors import UserError
from mtdml_jax.models.resnet import RESNETS, Bottleneck

KEY = 'config.model.pretrained'
TORCH_ENDINGS = ('.pth', '.pth.tar', '.pt')
# Under which of its keys a checkpoint may keep the arrays.
WRAPPERS = ('state_dict', 'model', 'model_state_dict')
# What a training script may have put before the name of every array.
PREFIXES = tuple(x + y for x in ('', 'module.') for y in ('', 'backbone.', 'encoder.'))
# First part of the names of a ResNet without its classifier.
PARTS = ('conv1', 'bn1', 'layer1', 'layer2', 'layer3', 'layer4')
STEM_OF_SIDE = {7: 'imagenet', 3: 'small'}
MOST_NAMES = 4


def load_backbone(variables: Any, model) -> Any:
    """Variables of a network whose backbone is that of a file; all other layers stay as they are.

    Says on stderr what was found.

    Args:
      variables: {'params', 'batch_stats'} of a `Network`.
      model: the section `model` of the config; its `pretrained` is the path of the file.

    Raises:
      UserError: a file that cannot be read or that does not hold exactly this backbone.
    """
    arrays = read_arrays(Path(model.pretrained).expanduser())
    arrays = {name: x for name, x in arrays.items() if not name.endswith('num_batches_tracked')}
    places, flat = torchvision_names(model.backbone), flatten_dict(variables)
    prefix = max(PREFIXES, key=lambda prefix: sum(prefix + name in arrays for name in places))
    backbone = {
        name.removeprefix(prefix): x
        for name, x in arrays.items()
        if name.startswith(prefix) and name.removeprefix(prefix).split('.')[0] in PARTS
    }
    shapes = {name: _in_torch(flat[place]).shape for name, place in places.items()}
    expected = {prefix + name for name in places}
    unexpected = [name for name in arrays if name not in expected]
    _check_names(backbone, shapes, unexpected, model)
    _check_shapes(backbone, shapes, model)
    if jax.process_index() == 0:
        print(
            f'{KEY}: {len(places)} arrays of {model.backbone} read from {model.pretrained}, 0 missing, '
            f'{_listed(unexpected)} unexpected',
            file=sys.stderr,
        )
    return unflatten_dict(flat | {place: _in_flax(backbone[x]) for x, place in places.items()})


def torchvision_names(depth: str) -> dict[str, tuple[str, ...]]:
    """torchvision's names of the arrays of a ResNet -> their paths in the variables of a `Network`.

    Args:
      depth: a name in `RESNETS`.
    """
    block, stage_sizes = RESNETS[depth]
    num_convs = 3 if block is Bottleneck else 2
    layers = [('conv1', 'bn1', (), 0)]
    numbers = iter(range(sum(stage_sizes)))
    for stage, num_blocks in enumerate(stage_sizes, start=1):
        for index in range(num_blocks):
            theirs, ours = f'layer{stage}.{index}.', (f'{block.__name__}_{next(numbers)}',)
            layers += [
                (f'{theirs}conv{i + 1}', f'{theirs}bn{i + 1}', ours, i) for i in range(num_convs)
            ]
            if index == 0 and (stage > 1 or block.expansion > 1):
                shortcut = f'{theirs}downsample.'
                layers.append((f'{shortcut}0', f'{shortcut}1', ours, num_convs))
    places = {}
    for conv, norm, ours, i in layers:
        params = ('params', 'backbone', *ours)
        statistics = ('batch_stats', 'backbone', *ours)
        places |= {
            f'{conv}.weight': (*params, f'Conv_{i}', 'kernel'),
            f'{norm}.weight': (*params, f'BatchNorm_{i}', 'scale'),
            f'{norm}.bias': (*params, f'BatchNorm_{i}', 'bias'),
            f'{norm}.running_mean': (*statistics, f'BatchNorm_{i}', 'mean'),
            f'{norm}.running_var': (*statistics, f'BatchNorm_{i}', 'var'),
        }
    return places


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file by their names, as they stand there.

    Args:
      path: .npz, or a PyTorch checkpoint, for which PyTorch must be installed.

    Raises:
      UserError: no such file, another ending, no arrays in it, or no PyTorch to read it.
    """
    if not path.is_file():
        raise UserError(f'{KEY}: no file {path}')
    if path.name.endswith(TORCH_ENDINGS):
        return _read_torch(path)
    if path.suffix != '.npz':
        raise UserError(f'{KEY}: expected .npz or one of {", ".join(TORCH_ENDINGS)}, found {path}')
    try:
        with np.load(path) as file:
            return dict(file)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f'{KEY}: {path} is no npz file of arrays ({error})') from error


def _read_torch(path):
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f'{KEY}: reading {path} takes PyTorch. Install it (its CPU build is enough), or where it is '
            f'installed convert the file once and give the new one: {_conversion(path)}'
        ) from error
    try:
        checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError) as error:
        reason = str(error).split('\n')[0]
        raise UserError(
            f'{KEY}: {path} is no PyTorch file that holds weights alone ({reason}). If you trust '
            f'those who made it, convert it and give the new file: {_conversion(path, False)}'
        ) from error
    if isinstance(checkpoint, Mapping):
        checkpoint = next((checkpoint[key] for key in WRAPPERS if key in checkpoint), checkpoint)
    if not isinstance(checkpoint, Mapping):
        raise UserError(f'{KEY}: expected a dict of arrays in {path}, found {type(checkpoint)}')
    tensors = {name: x for name, x in checkpoint.items() if torch.is_tensor(x)}
    return {name: x.detach().float().numpy() for name, x in tensors.items()}


def _conversion(path, weights_only=True):
    """The command that makes an npz of a checkpoint; `_read_torch` without this package."""
    code = (
        f'import sys, numpy, torch; '
        f'c = torch.load(sys.argv[1], "cpu", weights_only={weights_only}); '
        f'c = next((c[k] for k in {json.dumps(WRAPPERS)} if k in c), c); '
        f'c = {{k: x.detach().float().numpy() for k, x in c.items() if torch.is_tensor(x)}}; '
        f'numpy.savez(sys.argv[2], **c)'
    )
    return shlex.join(['python', '-c', code, str(path), f'{path}.npz'])


def _in_torch(array):
    """Kernels HWIO -> OIHW."""
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array


def _in_flax(array):
    """Kernels OIHW -> HWIO, in a buffer of its own: the training step gives its state away."""
    return jnp.array(array.transpose(2, 3, 1, 0) if array.ndim == 4 else array, jnp.float32)


def _check_names(backbone, shapes, unexpected, model):
    if backbone.keys() == shapes.keys():
        return
    missing = [name for name in shapes if name not in backbone]
    raise UserError(
        f'{KEY}: {model.pretrained} holds no {model.backbone} by the names of torchvision: of its '
        f'{len(shapes)} arrays {_listed(missing)} missing; {_listed(unexpected)} unexpected'
        f'{_advice(backbone, shapes, model)}'
    )


def _check_shapes(backbone, shapes, model):
    for name, shape in shapes.items():
        if backbone[name].shape != shape:
            raise UserError(
                f'{KEY}: {name} of {model.pretrained}: expected shape {shape}, found '
                f'{backbone[name].shape}{_advice(backbone, shapes, model)}'
            )


def _advice(backbone, shapes, model):
    """What to set so that the network is the one in the file, as far as names and stem tell."""
    settings = [
        f'config.model.backbone={depth}'
        for depth in RESNETS
        if depth != model.backbone and torchvision_names(depth).keys() == backbone.keys()
    ]
    kernel = backbone.get('conv1.weight')
    if kernel is not None and kernel.ndim == 4:
        (width, channels, side, _), expected = kernel.shape, shapes['conv1.weight']
        if side != expected[2] and side in STEM_OF_SIDE:
            settings.append(f'config.model.stem={STEM_OF_SIDE[side]}')
        if width != expected[0]:
            settings.append(f'config.model.width_factor={width / 64}')
        if channels != expected[1]:
            settings.append(f'config.data.channels={channels}')
    return f'. Set {", ".join(settings)}' if settings else ''


def _listed(names: Iterable[str]) -> str:
    """Their number, and the names where they are few, else the first of them."""
    names = list(names)
    some = ', '.join(names[:MOST_NAMES]) + (', ...' if len(names) > MOST_NAMES else '')
    return f'{len(names)} ({some})' if names else '0'
