"""The model file: one .safetensors file with everything that inference needs.

Reading a file never runs code from it. Arrays are named after their place in the network
('params/backbone/conv_init/kernel'); two more arrays are 'centres' and 'gallery'. Everything else is
JSON in the file's metadata, under the key 'mtdml_jax'.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mtdml_jax.host.errors import UserError, check_choice, listed
from mtdml_jax.host.files import write_whole
from mtdml_jax.images.pixels import Preprocessing
from mtdml_jax.loss.distances import DISTANCES
from mtdml_jax.models.network import Network, NetworkSettings, make_network

FORMAT = 1
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16, 'float16': jnp.float16}
KEY, CENTRES, GALLERY, COLLECTIONS = 'mtdml_jax', 'centres', 'gallery', ('params', 'batch_stats')
# Upper limits for models of this package. A file that claims larger values is refused before any memory
# is allocated.
MAX_SIDE, MAX_WIDTH, MAX_EMBEDDING = 2048, 16, 2**16


class Settings(NamedTuple):
    """The JSON part of a model file.

    Attributes:
      format: version of the file format, `FORMAT`.
      network: the network's settings.
      preprocessing: steps that turn a face into the network's input.
      flip: whether an image and its mirror image are averaged.
      has_head: whether the classifiers on slices were trained.
      class_names: name of each class, [C].
      thresholds: threshold of each slice, in units of the distance, [S].
      distance: distance between unit slices: 'euclidean' or 'squared_euclidean'.
      class_counts: number of training faces over which `centres` averages, for each class, [C].
      gallery_labels: name of the class of each enrolled face, [G].
      gallery_names: name of each enrolled face, '' if it has none, [G].
      measured: the measured scores: 'split', 'num_examples' and 'classifiers' of evaluation.json.
      trained: how the model was trained: data set, steps, seed, versions, commit.
      license: what the licence of the data allows, as free text.
    """

    format: int
    network: NetworkSettings
    preprocessing: Preprocessing
    flip: bool
    has_head: bool
    class_names: tuple[str, ...]
    thresholds: tuple[float, ...]
    distance: str
    class_counts: tuple[int, ...]
    gallery_labels: tuple[str, ...]
    gallery_names: tuple[str, ...]
    measured: dict
    trained: dict
    license: str


class ModelData(NamedTuple):
    """Content of a model file.

    Attributes:
      settings: the JSON part.
      variables: {'params', 'batch_stats'} of the network, float32.
      centres: mean embedding of each class over the training faces, float32 [C, E]; 0 without faces.
      gallery: embeddings of enrolled faces, float32 [G, E].
    """

    settings: Settings
    variables: Mapping[str, Any]
    centres: np.ndarray
    gallery: np.ndarray

    @property
    def network(self) -> Network:
        """The network to which `variables` belong."""
        return make_network(self.settings.network, len(self.settings.class_names))


def write_model(path: Path, data: ModelData, dtype: str = 'float32') -> None:
    """Writes a model file, first under a temporary name, and then renames it.

    Args:
      path: the file.
      data: content of the file.
      dtype: type of the weights and of enrolled faces in the file: float32, bfloat16 or float16. Means
        and variances of BatchNorm, and centres, stay float32.

    Raises:
      UserError: the type is unknown, a weight exceeds its range, or the file cannot be written.
    """
    if dtype not in DTYPES:
        raise UserError(f'dtype: expected one of {", ".join(DTYPES)}, found {dtype!r}')
    arrays = _flatten(data.variables) | {GALLERY: data.gallery}
    with np.errstate(over='ignore'):  # `_check_finite` reports an overflow.
        arrays = {
            name: x if name.startswith('batch_stats/') else np.asarray(x).astype(DTYPES[dtype])
            for name, x in arrays.items()
        }
    _check_finite(path, arrays)
    arrays[CENTRES] = data.centres
    arrays = {name: np.array(x, order='C') for name, x in arrays.items()}
    text = json.dumps(to_json(data.settings), ensure_ascii=False)
    try:
        write_whole(path, save(arrays, metadata={KEY: text}))
    except (OSError, SafetensorError) as error:
        raise UserError(f'{path}: it cannot be written ({error})') from error


def read_model(path: Path) -> ModelData:
    """Reads a model file and checks its content.

    Raises:
      UserError: there is no such file, or it is not a valid model file. The message is one line.
    """
    try:
        # Each array is copied out of the memory-mapped file when it is read.
        with safe_open(path, framework='numpy') as file:
            settings = _parse_settings(path, file.metadata())
            arrays = _read_arrays(path, file, _shapes(path, settings))
    except (OSError, SafetensorError) as error:
        raise UserError(f'{path}: it is not a readable model file ({error})') from error
    _check_finite(path, arrays)
    centres, gallery = arrays.pop(CENTRES), arrays.pop(GALLERY)
    # A network without BatchNorm has no arrays under 'batch_stats'.
    variables = {kind: {} for kind in COLLECTIONS} | _unflatten(arrays)
    return ModelData(settings, variables, centres, gallery)


def _parse_settings(path, metadata):
    text = (metadata or {}).get(KEY)
    if text is None:
        raise UserError(f'{path}: it is not a model file of mtdml_jax (it has no metadata {KEY!r})')
    try:
        found = json.loads(text)
        if isinstance(found, dict) and found.get('format') != FORMAT:
            raise ValueError(
                f'format {found.get("format")!r} is not known here, only {FORMAT}; a newer mtdml_jax '
                f'may read it'
            )
        settings = _parse(Settings, found, 'settings')
        _check_settings(settings)
    except (ValueError, RecursionError) as error:
        raise UserError(f'{path}: {error}') from error
    return settings


def _parse(kind, value, where):
    """Converts a JSON value to the type of an annotation; raises ValueError if it has another type."""
    if isinstance(kind, type) and issubclass(kind, tuple):
        kinds = kind.__annotations__
        if not isinstance(value, dict) or value.keys() != kinds.keys():
            raise ValueError(f'{where}: expected {", ".join(kinds)}')
        return kind(**{key: _parse(x, value[key], key) for key, x in kinds.items()})
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise ValueError(f'{where}: expected a list')
        return tuple(_parse(get_args(kind)[0], x, where) for x in value)
    if kind is float and type(value) is int:
        value = float(value) if abs(value) < 2**53 else math.inf
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise ValueError(f'{where}: expected {kind.__name__}, found {value!r:.50}')
    return value


def _check_settings(settings):
    """Raises ValueError if a value is impossible for a model."""
    network, pixels, names = settings.network, settings.preprocessing, settings.class_names
    check_choice('loss.distance', settings.distance, DISTANCES)
    conditions = {
        'image_size': 1 <= pixels.image_size <= MAX_SIDE,
        'channels': pixels.channels in (1, 3),
        'crop_margin': abs(pixels.crop_margin) < 100,
        'mean': len(pixels.mean) in (1, pixels.channels),
        'std': len(pixels.std) in (1, pixels.channels) and min(map(abs, pixels.std)) > 0,
        'width_factor': 0 < network.width_factor <= MAX_WIDTH,
        'embedding_size': 1 <= network.embedding_size <= MAX_EMBEDDING,
        'class_names': len(names) == len(set(names)) > 0,
        'thresholds': len(settings.thresholds) == network.num_slices,
        'class_counts': len(settings.class_counts) == len(names)
        and min(settings.class_counts) >= 0,
        'gallery_names': len(settings.gallery_names) == len(settings.gallery_labels),
    }
    for name, holds in conditions.items():
        if not holds:
            raise ValueError(f'{name}: no model can have this value or this number of values')


def _shapes(path, settings):
    """Returns {name of an array: its shape}."""
    num_classes = len(settings.class_names)
    try:
        network = make_network(settings.network, num_classes)
        image = jax.ShapeDtypeStruct((1, *settings.preprocessing.shape), jnp.float32)
        variables = jax.eval_shape(network.init, jax.eval_shape(jax.random.key, 0), image)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f'{path}: no network can be made of its settings ({error})') from error
    size = settings.network.embedding_size
    extra = {CENTRES: (num_classes, size), GALLERY: (len(settings.gallery_labels), size)}
    return {name: x.shape for name, x in _flatten(variables).items()} | extra


def _read_arrays(path, file, shapes):
    """Reads the arrays as float32; raises UserError unless names and shapes equal `shapes`."""
    names = set(file.keys())
    if names != shapes.keys():
        missing, unknown = sorted(shapes.keys() - names), sorted(names - shapes.keys())
        raise UserError(
            f"{path}: its arrays are not the network's; missing: {listed(missing) or 'none'}; unknown: "
            f'{listed(unknown) or "none"}'
        )
    known = {np.dtype(dtype).name for dtype in DTYPES.values()}
    arrays = {}
    for name, shape in shapes.items():
        if tuple(file.get_slice(name).get_shape()) != shape:
            raise UserError(
                f'{path}: {name}: expected shape {shape}, found {file.get_slice(name).get_shape()}'
            )
        array = file.get_tensor(name)
        if array.dtype.name not in known:
            raise UserError(f'{path}: {name}: expected floats, found {array.dtype}')
        arrays[name] = array.astype(np.float32)
    return arrays


def _check_finite(path, arrays):
    for name, array in arrays.items():
        if not np.isfinite(array.astype(np.float32)).all():
            raise UserError(f'{path}: {name}: expected finite numbers, found NaN or infinity')


def _flatten(variables):
    """Flattens nested dictionaries to {'params/backbone/...': array}."""
    leaves = jax.tree_util.tree_leaves_with_path(dict(variables))
    return {'/'.join(key.key for key in keys): leaf for keys, leaf in leaves}


def _unflatten(arrays):
    variables: dict[str, Any] = {}
    for name, array in arrays.items():
        *folders, last = name.split('/')
        place = variables
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = array
    return variables


def to_json(value: Any) -> Any:
    """Converts `Settings` to nested dictionaries, which `json` can write."""
    if hasattr(value, '_asdict'):
        return {key: to_json(x) for key, x in value._asdict().items()}
    return value
