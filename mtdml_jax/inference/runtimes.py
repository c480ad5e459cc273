"""Writes a model for other runtimes: one file that computes probabilities from 8-bit pixels.

The input 'images' has N faces, uint8 [N, side, side, channels], grey or RGB. The caller cuts the faces
out and resizes them. The file includes the scaling, the mean and the flip. The outputs are float32 and
equal those of `Model.predict`: 'embeddings' [N, E] and, if the model has classifiers, 'probabilities'
[N, C] and 'slice_probabilities' [N, S, C]. Without classifiers the file has embeddings only, because it
contains neither the class means nor the enrolled faces. The file includes `Settings` as JSON, like the
model file.
"""

import io
import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from mtdml_jax.host.errors import UserError, one_line
from mtdml_jax.loss.slicing import merge_slices
from mtdml_jax.models.forward import make_folded_forward
from mtdml_jax.models.model_file import KEY, ModelData, to_json

PLATFORMS = ('cpu', 'cuda', 'tpu')
# The oldest version that jax2onnx writes correctly; older runtimes can read it.
OPSET = 18
# Largest accepted difference between the outputs of ONNX Runtime and JAX.
TOLERANCE = 1e-4
# Names of the members of the zip file that `write_stablehlo` writes.
COMPUTATION, SETTINGS = 'model.jax_export', f'{KEY}.json'


def write_stablehlo(data: ModelData, path: Path) -> None:
    """Writes a model that runs with JAX alone, without Flax and without this package.

    The file is a zip with the computation, which `jax.export` writes for the `PLATFORMS`, and the
    settings:

        file = zipfile.ZipFile(path)
        settings = json.loads(file.read('mtdml_jax.json'))
        exported = jax.export.deserialize(bytearray(file.read('model.jax_export')))
        probabilities = exported.call(images)['probabilities']

    Args:
      data: content of a model file.
      path: the file.

    Raises:
      UserError: the file cannot be written.

    References:
      https://docs.jax.dev/en/latest/export/export.html. It also says how long the file stays readable.
    """
    images = _images(data, *export.symbolic_shape('N'))
    exported = export.export(jax.jit(_make_answer(data)), platforms=PLATFORMS)(images)
    content = io.BytesIO()
    with zipfile.ZipFile(content, 'w') as file:
        file.writestr(COMPUTATION, exported.serialize())
        file.writestr(SETTINGS, _settings_json(data))
    _write(path, content.getvalue())


def write_onnx(data: ModelData, path: Path) -> None:
    """Writes a model as ONNX, with the settings in `metadata_props` under the key 'mtdml_jax'.

    The extra [onnx] installs the converter jax2onnx. The file computes everything in float32, even if
    `model.dtype` is bfloat16, because runtimes have no convolutions in bfloat16.

    Args:
      data: content of a model file.
      path: the file.

    Raises:
      UserError: the converter is not installed, does not support this JAX, or computes wrong values; or
        the file cannot be written.

    References:
      https://github.com/enpasos/jax2onnx
    """
    network = data.settings.network._replace(dtype='float32')
    data = data._replace(settings=data.settings._replace(network=network))
    content = _convert(data).SerializeToString()
    _check_onnx(data, content)
    _write(path, content)


def _make_answer(data: ModelData) -> Callable[[jax.Array], dict[str, jax.Array]]:
    """Makes the pure function from images to outputs (see above), with the weights as constants."""
    settings = data.settings
    forward, variables = make_folded_forward(data)
    pixels = settings.preprocessing
    mean, std = (np.asarray(x, np.float32) for x in (pixels.mean, pixels.std))

    def answer(images):
        slices, logits = forward(variables, (images.astype(jnp.float32) / 255 - mean) / std)
        found = {'embeddings': merge_slices(slices)}
        if settings.has_head:
            found['probabilities'] = jax.nn.softmax(jnp.mean(logits, axis=1))
            found['slice_probabilities'] = jax.nn.softmax(logits)
        return found

    return answer


def _convert(data):
    """Converts the model to an onnx.ModelProto."""
    try:
        import jax2onnx
        import onnx_ir
        from onnx_ir.passes.common import DeduplicateInitializersPass
    except ImportError as error:
        raise UserError(
            f"ONNX needs jax2onnx: pip install 'mtdml_jax[onnx]' ({one_line(str(error))})"
        ) from error
    answer = _make_answer(data)
    # JAX's trees sort the keys of a dict, so the outputs are in this order.
    names = sorted(jax.eval_shape(answer, _images(data, 1)))
    images = _images(data, 'N')
    try:
        model = jax2onnx.to_onnx(
            answer,
            [images],
            opset=OPSET,
            input_names=['images'],
            output_names=names,
            return_mode='ir',
        )
    except (
        Exception
    ) as error:  # A version of JAX that jax2onnx does not support can raise anything.
        raise UserError(
            f'jax2onnx cannot convert with jax {jax.__version__}; a new environment with '
            f"'mtdml_jax[onnx]' installs a version that works ({type(error).__name__}: "
            f'{one_line(str(error))})'
        ) from error
    # With flip the file would contain every kernel twice.
    DeduplicateInitializersPass(size_limit=sys.maxsize)(model)
    # The shapes of inner values are optional, and the converter leaves some in JAX's order of axes.
    for value in (value for node in model.graph for value in node.outputs):
        if not value.is_graph_output():
            value.shape = None
    model.metadata_props[KEY] = _settings_json(data)
    return onnx_ir.to_proto(model)


def _check_onnx(data, content):
    """Raises UserError unless ONNX Runtime computes the same outputs as JAX.

    The converter does not handle all arguments of all operations: jax2onnx 0.17.1 silently drops the
    padding of a max-pool.
    """
    import onnxruntime  # It is installed with the converter.

    session = onnxruntime.InferenceSession(content, providers=['CPUExecutionProvider'])
    shape = _images(data, 3).shape
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    with jax.default_matmul_precision('highest'):
        expected = jax.jit(_make_answer(data))(images)
    names = [output.name for output in session.get_outputs()]
    for name, values in zip(names, session.run(names, {'images': images}), strict=True):
        difference = np.max(np.abs(values - expected[name]))
        if not difference < TOLERANCE:
            raise UserError(
                f'ONNX: jax2onnx converts this model wrongly: {name} differ by {difference:.1e}'
            )


def _images(data, count):
    return jax.ShapeDtypeStruct((count, *data.settings.preprocessing.shape), jnp.uint8)


def _settings_json(data):
    """Returns the settings as JSON, without the names of enrolled faces, which are personal data."""
    settings = data.settings._replace(gallery_labels=(), gallery_names=())
    return json.dumps(to_json(settings), ensure_ascii=False)


def _write(path, content):
    try:
        path.write_bytes(content)
    except OSError as error:
        raise UserError(f'{path}: it cannot be written ({error})') from error
