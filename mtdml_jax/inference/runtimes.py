"""A model for other runtimes: one file with the whole computation, from 8-bit pixels to probabilities.

Input 'images': N faces, uint8 [N, side, side, channels], grey or RGB, cut out and resized by the caller.
Scaling, mean and flip are inside. Outputs, float32, are those of `Model.predict`: 'embeddings' [N, E]
and, of a model with classifiers, 'probabilities' [N, C] and 'slice_probabilities' [N, S, C]. A model
without has embeddings alone: the means of its classes and enrolled faces stay behind. `Settings` travel
along in JSON, as in the model file.
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
from mtdml_jax.models.forward import make_forward
from mtdml_jax.models.model_file import KEY, ModelData, to_json

PLATFORMS = ('cpu', 'cuda', 'tpu')
# The oldest that jax2onnx writes right, for runtimes that are not of this year.
OPSET = 18
# Between outputs of ONNX Runtime and JAX.
TOLERANCE = 1e-4
# In the zip file of `write_stablehlo`.
COMPUTATION, SETTINGS = 'model.jax_export', f'{KEY}.json'


def write_stablehlo(data: ModelData, path: Path) -> None:
    """Writes a model for JAX alone: no Flax, and nothing of this package, is needed to run it.

    The file is a zip of the computation, by `jax.export` for the `PLATFORMS`, and of the settings:

        file = zipfile.ZipFile(path)
        settings = json.loads(file.read('mtdml_jax.json'))
        exported = jax.export.deserialize(bytearray(file.read('model.jax_export')))
        probabilities = exported.call(images)['probabilities']

    Args:
      data: content of a model file.
      path: the file.

    Raises:
      UserError: a file that cannot be written.

    References:
      https://docs.jax.dev/en/latest/export/export.html, which also says for how long it can be read.
    """
    images = _images(data, *export.symbolic_shape('N'))
    exported = export.export(jax.jit(_make_answer(data)), platforms=PLATFORMS)(images)
    content = io.BytesIO()
    with zipfile.ZipFile(content, 'w') as file:
        file.writestr(COMPUTATION, exported.serialize())
        file.writestr(SETTINGS, _settings_json(data))
    _write(path, content.getvalue())


def write_onnx(data: ModelData, path: Path) -> None:
    """Writes a model as ONNX; the settings stand in `metadata_props` under 'mtdml_jax'.

    The converter, jax2onnx, comes with the extra [onnx]. All is computed in float32, also what
    `model.dtype` has in bfloat16, in which runtimes have no convolutions.

    Args:
      data: content of a model file.
      path: the file.

    Raises:
      UserError: no converter, or one that does not fit this JAX or errs; a file that cannot be written.

    References:
      https://github.com/enpasos/jax2onnx
    """
    network = data.settings.network._replace(dtype='float32')
    data = data._replace(settings=data.settings._replace(network=network))
    content = _convert(data).SerializeToString()
    _check_onnx(data, content)
    _write(path, content)


def _make_answer(data: ModelData) -> Callable[[jax.Array], dict[str, jax.Array]]:
    """A pure function from images to outputs, as above; the weights are constants in it."""
    settings = data.settings
    forward, variables = make_forward(data.network, settings.flip), jax.device_put(data.variables)
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
    """The model as onnx.ModelProto."""
    try:
        import jax2onnx
        import onnx_ir
        from onnx_ir.passes.common import DeduplicateInitializersPass
    except ImportError as error:
        raise UserError(
            f"ONNX needs jax2onnx: pip install 'mtdml_jax[onnx]' ({one_line(str(error))})"
        ) from error
    answer = _make_answer(data)
    # In the order of JAX's trees.
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
    except Exception as error:  # Of a JAX that it does not know yet it may be any.
        raise UserError(
            f'jax2onnx cannot convert with jax {jax.__version__}; an environment of its own with '
            f"'mtdml_jax[onnx]' has one that it can ({type(error).__name__}: {one_line(str(error))})"
        ) from error
    # With flip every kernel is there twice.
    DeduplicateInitializersPass(size_limit=sys.maxsize)(model)
    # Shapes of inner values are optional, and some are left in JAX's order of axes.
    for value in (value for node in model.graph for value in node.outputs):
        if not value.is_graph_output():
            value.shape = None
    model.metadata_props[KEY] = _settings_json(data)
    return onnx_ir.to_proto(model)


def _check_onnx(data, content):
    """Raises UserError unless ONNX Runtime gives what JAX gives.

    The converter knows operations by their names, not by all their arguments: jax2onnx 0.17.1 leaves
    out the padding of a max-pool without a word.
    """
    import onnxruntime  # The converter brings it.

    session = onnxruntime.InferenceSession(content, providers=['CPUExecutionProvider'])
    shape = _images(data, 3).shape
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    with jax.default_matmul_precision('highest'):
        expected = jax.jit(_make_answer(data))(images)
    names = [output.name for output in session.get_outputs()]
    for name, values in zip(names, session.run(names, {'images': images}), strict=True):
        difference = np.max(np.abs(values - expected[name]))
        if not difference < TOLERANCE:
            raise UserError(f'ONNX: jax2onnx errs on this model: {name} differ by {difference:.1e}')


def _images(data, count):
    pixels = data.settings.preprocessing
    return jax.ShapeDtypeStruct((count, *[pixels.image_size] * 2, pixels.channels), jnp.uint8)


def _settings_json(data):
    """The settings but for names of enrolled faces, which are people's."""
    settings = data.settings._replace(gallery_labels=(), gallery_names=())
    return json.dumps(to_json(settings), ensure_ascii=False)


def _write(path, content):
    try:
        path.write_bytes(content)
    except OSError as error:
        raise UserError(f'{path}: it cannot be written ({error})') from error
