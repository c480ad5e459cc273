"""Weights of a backbone from a file: a PyTorch checkpoint, NumPy's npz or a pickled dict of arrays.

The arrays have the names that the backbone's `torch_names` tell after any one prefix
('module.base_net.'), in which the keys of dicts in dicts are the first parts ('state_dict.module.'). A
file with a whole backbone under each of two, such as a student and its teacher, is refused: which one is
meant it does not tell.

Names and shapes are all that a file tells. Networks here are torchvision's (ResNets, MobileNetV3) and
face.evoLVe's (IR-50); weights of one that differs in what follows load all the same, but are a start
then, not an equal. To be checked by the user, of a ResNet:

- Stride: in the 3x3 convolution of a bottleneck (resnet50). Caffe's have it in the first 1x1: He's own
  weights, and VGGFace2's (resnet50_ft_weight.pkl). Networks for segmentation may dilate instead.
- Stem: 7x7 of stride 2 and a 3x3 max-pool of stride 2, or 3x3 with the stride of `model.stem`, no pool.
- Padding: half the side of the kernel, 3 or 1, on all four sides, 1 for the max-pool. Caffe's max-pool
  has none and rounds its size up; TensorFlow's paddings depend on the size of the map.
- BatchNorm: epsilon 1e-5, between a convolution and its ReLU.
- Input: RGB, (pixel / 255 - `data.mean`) / `data.std`; configs/raf_db.py has ImageNet's. Caffe's is
  BGR, pixel - mean: reverse the second axis of conv1.weight in the file, set `data.std` to 1 / 255 and
  `data.mean` to the means in the order RGB / 255 (VGGFace2: 131.0912, 103.8827, 91.4953).

Of an IR-50 the input: face.evoLVe's is RGB of 112 px, with `data.mean` and `data.std` 0.5.
"""

import pickle
import shlex
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mtdml_jax.host.errors import UserError, listed
from mtdml_jax.host.paths import user_path
from mtdml_jax.models.backbones import BACKBONES

if TYPE_CHECKING:  # Whoever has a file of weights may have none of it.
    from ml_collections import ConfigDict

KEY = 'config.model.pretrained'
TORCH_ENDINGS = ('.pth', '.pth.tar', '.pt')
ENDINGS = ('.npz', '.pkl', *TORCH_ENDINGS)
# How many dicts deep in its own a checkpoint may keep the arrays; its optimizer's are deeper.
LEVELS = 2


def load_backbone(variables: Any, model: 'ConfigDict') -> Any:
    """Variables of a network whose backbone is that of a file; all other layers stay as they are.

    Says on stderr what was found, and under which prefix.

    Args:
      variables: {'params', 'batch_stats'} of a `Network`.
      model: the section `model` of the config; its `pretrained` is the path of the file.

    Raises:
      UserError: a file that cannot be read or that does not hold exactly this backbone.
    """
    find_names, path = BACKBONES[model.backbone].torch_names, user_path(model.pretrained)
    if find_names is None:
        known = ', '.join(name for name, x in BACKBONES.items() if x.torch_names)
        raise UserError(
            f'{KEY}: no names of arrays in PyTorch are known of {model.backbone}, as they are of {known}'
        )
    arrays = read_arrays(path)
    arrays = {name: x for name, x in arrays.items() if not name.endswith('num_batches_tracked')}
    flat = flatten_dict(variables, keep_empty_nodes=True)
    places = {name: (kind, 'backbone', *rest) for name, (kind, *rest) in find_names(model).items()}
    prefix, *others = _prefixes(arrays, places) or ['']
    if others:
        both = [prefix, *others]
        raise UserError(
            f'{KEY}: {path} holds more than one backbone, under {", ".join(map(repr, both))}. '
            f'Keep one and give the new file, as here the last: {_keeping(path, both[-1])}'
        )
    where = f'{model.pretrained} (under {prefix})' if prefix else model.pretrained
    backbone = _under(prefix, arrays, places)
    shapes = {name: _in_torch(flat[place]).shape for name, place in places.items()}
    expected = {prefix + name for name in places}
    unexpected = [name for name in arrays if name not in expected]
    _check_names(backbone, shapes, unexpected, arrays, model, where)
    _check_arrays(backbone, shapes, arrays, model, where)
    if jax.process_index() == 0:
        print(
            f'{KEY}: {len(places)} arrays of {model.backbone} read from {where}, 0 missing, '
            f'{_counted(unexpected)} unexpected',
            file=sys.stderr,
        )
    return unflatten_dict(flat | {place: _in_flax(backbone[x]) for x, place in places.items()})


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file by their names, those in a dict of its dict as 'key.name'.

    Args:
      path: .npz, .pkl, which is read without running what it calls, or a PyTorch checkpoint, for which
        PyTorch must be installed.

    Raises:
      UserError: no such file, another ending, no arrays in it, or no PyTorch to read it.
    """
    if not path.is_file():
        raise UserError(f'{KEY}: no file {path}')
    if path.name.endswith(TORCH_ENDINGS):
        return _read_torch(path)
    if path.suffix == '.pkl':
        return _read_pickle(path)
    if path.suffix != '.npz':
        raise UserError(f'{KEY}: expected one of {", ".join(ENDINGS)}, found {path}')
    try:
        with np.load(path) as file:
            return dict(file)
    except Exception as error:  # Of a broken file it may be any.
        raise UserError(f'{KEY}: {path} is no npz file of arrays ({_reason(error)})') from error


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
    except Exception as error:  # Of a broken file it may be any.
        raise UserError(
            f'{KEY}: {path} is no PyTorch file that holds weights alone ({_reason(error)}). If you '
            f'trust those who made it, convert it and give the new file: {_conversion(path, False)}'
        ) from error
    tensors = {name: x for name, x in _flat(checkpoint, path).items() if torch.is_tensor(x)}
    return {name: x.detach().float().numpy() for name, x in tensors.items()}


def _conversion(path, weights_only=True):
    """The command that makes an npz of a checkpoint; `_read_torch` without this package."""
    code = (
        f'import sys, numpy, torch; '
        f'c = torch.load(sys.argv[1], "cpu", weights_only={weights_only}); '
        f'flat = lambda c, n: {{k + end: x for k, v in c.items() if isinstance(k, str) for end, x in '
        f'({{"." + m: y for m, y in flat(v, n - 1).items()}} if n and isinstance(v, dict) else '
        f'{{"": v}}).items()}}; '
        f'c = flat(c, {LEVELS}); '
        f'c = {{k: x.detach().float().numpy() for k, x in c.items() if torch.is_tensor(x)}}; '
        f'numpy.savez(sys.argv[2], **c)'
    )
    return shlex.join(['python', '-c', code, str(path), f'{path}.npz'])


def _flat(checkpoint, path, levels=LEVELS):
    """The entries of a dict, and in the place of a dict its own as 'key.name'."""
    if not isinstance(checkpoint, dict):
        raise UserError(f'{KEY}: expected a dict of arrays in {path}, found {type(checkpoint)}')
    flat: dict[str, Any] = {}
    for key, x in checkpoint.items():
        if not isinstance(key, str):
            continue
        if levels and isinstance(x, dict):
            flat |= {f'{key}.{name}': y for name, y in _flat(x, path, levels - 1).items()}
        else:
            flat[key] = x
    return flat


class _Pickled:
    """What a pickle makes with a call: its arguments and state are kept, and nothing is called.

    NumPy would take the room that a broken pickle claims, and trust all that it says of a dtype.
    """

    state = None

    def __init__(self, *args):
        self.args = args

    def __setstate__(self, state):
        self.state = state


class _PickledDict(dict, _Pickled):
    """An OrderedDict; PyTorch's have a state."""


class _PickledArray(_Pickled):
    def read(self):
        """The array, of `_reconstruct` by its state, of `_frombuffer` (protocol 5) by its arguments."""
        order: Literal['C', 'F']
        if self.state:
            _, shape, dtype, is_fortran, data = self.state
            order, axes = ('F' if is_fortran else 'C'), []
        else:
            data, dtype, shape, order, *axes = self.args
        dtype = np.dtype(dtype.state[1] + dtype.args[0])
        if dtype.hasobject:
            raise ValueError('an array of objects')
        # Bytes are text where Python 2 wrote them, and the call that encodes it up to protocol 2.
        data = ''.join(data.args[:1]) if isinstance(data, _Pickled) else data
        data = data.encode('latin1') if isinstance(data, str) else data
        array = np.frombuffer(data, dtype).reshape(shape, order='C' if axes else order)
        return array.transpose(*axes) if axes else array


_GLOBALS: dict[str, type] = {'collections.OrderedDict': _PickledDict}
for _name in ('numpy.dtype', 'numpy.ndarray', '_codecs.encode', '__builtin__.bytes'):
    _GLOBALS[_name] = _Pickled
for _core in ('numpy.core', 'numpy._core'):
    _GLOBALS[f'{_core}.multiarray._reconstruct'] = _PickledArray
    _GLOBALS[f'{_core}.multiarray.scalar'] = _Pickled
    _GLOBALS[f'{_core}.numeric._frombuffer'] = _PickledArray


class _Unpickler(pickle._Unpickler):
    """The one in Python: C's takes room for as many objects as a broken file claims to hold."""

    # Read as bytes, which end with the file; a bytearray would be made as large as the file claims.
    dispatch = pickle._Unpickler.dispatch | {
        pickle.BYTEARRAY8[0]: pickle._Unpickler.load_binbytes8  # type: ignore[attr-defined]  # Typeshed lacks it.
    }

    def find_class(self, module, name):
        called = f'{module}.{name}'
        if called not in _GLOBALS:
            raise pickle.UnpicklingError(f'it calls {called[:80]!r}, which is refused')
        return _GLOBALS[called]


def _read_pickle(path):
    try:
        with path.open('rb') as file:
            entries = _flat(_Unpickler(file, encoding='latin1').load(), path)
        return {name: x.read() for name, x in entries.items() if isinstance(x, _PickledArray)}
    except UserError:
        raise
    except Exception as error:  # Of a broken file it may be any.
        raise UserError(
            f'{KEY}: {path} is no pickled dict of NumPy arrays ({_reason(error)}). '
            'A file that torch.save wrote has to end in .pth'
        ) from error


def _reason(error):
    """In one line."""
    return f'{type(error).__name__}: {error}'.split('\n')[0][:200]


def _prefixes(names, expected):
    """Prefixes that stand before all expected names; if none does, the one before most of them.

    The shorter first, and by text.
    """
    counts = Counter(
        name.removesuffix(end) for name in names for end in expected if name.endswith(end)
    )
    prefixes = sorted(counts, key=lambda prefix: (-counts[prefix], len(prefix), prefix))
    return [x for x in prefixes if counts[x] == len(expected)] or prefixes[:1]


def _under(prefix, arrays, expected):
    """The arrays under a prefix whose names begin as expected ones do, which a classifier's do not."""
    parts = {name.split('.')[0] for name in expected}
    found = {name.removeprefix(prefix): x for name, x in arrays.items() if name.startswith(prefix)}
    return {name: x for name, x in found.items() if name.split('.')[0] in parts}


def _keeping(path, prefix):
    """The command that makes an npz of the arrays under a prefix."""
    code = (
        'import sys, numpy, pathlib; from mtdml_jax.models.pretrained import read_arrays; '
        'c = read_arrays(pathlib.Path(sys.argv[1])); '
        'numpy.savez(sys.argv[2], **{k: x for k, x in c.items() if k.startswith(sys.argv[3])})'
    )
    return shlex.join(['python', '-c', code, str(path), f'{path}.npz', prefix])


def _in_torch(array):
    """Kernels HWIO -> OIHW, or IO -> OI."""
    axes = {4: (3, 2, 0, 1), 2: (1, 0)}
    return array.transpose(axes[array.ndim]) if array.ndim in axes else array


def _in_flax(array):
    """The inverse, in a buffer of its own: the training step gives its state away."""
    axes = {4: (2, 3, 1, 0), 2: (1, 0)}
    return jnp.array(
        array.transpose(axes[array.ndim]) if array.ndim in axes else array, jnp.float32
    )


def _check_names(backbone, shapes, unexpected, arrays, model, where):
    if backbone.keys() == shapes.keys():
        return
    missing = [name for name in shapes if name not in backbone]
    raise UserError(
        f'{KEY}: {where} holds no {model.backbone} by the names of PyTorch: of its '
        f'{len(shapes)} arrays {_counted(missing)} missing; {_counted(unexpected)} unexpected'
        f'{_advice(backbone, shapes, arrays, model)}'
    )


def _check_arrays(backbone, shapes, arrays, model, where):
    for name, shape in shapes.items():
        x = backbone[name]
        if x.shape != shape:
            raise UserError(
                f'{KEY}: {name} of {where}: expected shape {shape}, found '
                f'{x.shape}{_advice(backbone, shapes, arrays, model)}'
            )
        if x.dtype.kind != 'f':
            raise UserError(f'{KEY}: {name} of {where}: expected floats, found {x.dtype}')


def _advice(backbone, shapes, arrays, model):
    """What to set so that the network is the one in the file, as far as names and shapes tell."""
    settings = []
    for other, (_, find_names, _) in BACKBONES.items():
        if other != model.backbone and find_names:
            names = find_names(SimpleNamespace(backbone=other, width_factor=model.width_factor))
            found = [_under(prefix, arrays, names).keys() for prefix in _prefixes(arrays, names)]
            if names.keys() in found:
                settings.append(f'config.model.backbone={other}')
    first = next(iter(shapes))
    found, expected = backbone.get(first, np.zeros(())).shape, shapes[first]
    if len(found) == len(expected) == 4:
        settings += BACKBONES[model.backbone].advise(found, expected)
        if found[1] != expected[1]:
            settings.append(f'config.data.channels={found[1]}')
    return f'. Set {", ".join(settings)}' if settings else ''


def _counted(names):
    """Their number and the first of them."""
    return f'{len(names)} ({listed(names)})' if names else '0'
