"""Compares exported models in ONNX Runtime with `Model.predict`.

    make parity

installs an environment with jax2onnx and runs the tests of this file. The models are those of
tests/helpers/runtime_cases.py.
"""

import json
import subprocess
import sys

import jax
import jax2onnx
import numpy as np
import onnx
import pytest
from runtime_cases import CASES, COUNTS, make_case, predict

from mtdml_jax.host.errors import UserError
from mtdml_jax.inference.runtimes import write_onnx
from mtdml_jax.models.forward import make_folded_forward

# The shortcuts of this backbone have strides.
BACKBONE = 'resnet10'

# Runs an ONNX file on the images of the .npy file beside it. Writes the outputs beside it, prints the
# metadata, and prints warnings to stderr.
WITH_ONNX_RUNTIME_ALONE = f"""
import json, sys
for name in ('jax', 'flax', 'mtdml_jax'):
    sys.modules[name] = None  # Importing it fails.
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])
images, names = np.load(sys.argv[1] + '.npy'), [x.name for x in session.get_outputs()]
for count in {COUNTS}:
    outputs = session.run(names, {{'images': images[:count]}})
    np.savez(f'{{sys.argv[1]}}.{{count}}.npz', **dict(zip(names, outputs, strict=True)))
print(json.dumps(session.get_modelmeta().custom_metadata_map))
"""


def run(data, images, path):
    """Runs a model in another process; returns (outputs by count and name, metadata)."""
    write_onnx(data, path)
    np.save(f'{path}.npy', images)
    found = subprocess.run(
        [sys.executable, '-c', WITH_ONNX_RUNTIME_ALONE, str(path)], capture_output=True, check=True
    )
    # ONNX Runtime would print its complaints about a graph there.
    assert found.stderr == b''
    outputs = {count: dict(np.load(f'{path}.{count}.npz')) for count in COUNTS}
    return outputs, json.loads(found.stdout)


@pytest.mark.parametrize(
    ('name', 'backbone'), [*((name, BACKBONE) for name in CASES), ('grey', 'dlib_resnet')]
)
def test_onnx_runtime_answers_as_predict(name, backbone, tmp_path):
    """One file serves all numbers of images, and contains the settings."""
    data, images, expected = make_case(name, backbone=backbone)
    outputs, metadata = run(data, images, tmp_path / 'model.onnx')
    for count, found in outputs.items():
        assert found.keys() == expected.keys()
        for key, values in expected.items():
            assert np.ptp(values, axis=0).max() > 0.01
            np.testing.assert_allclose(found[key], values[:count], atol=1e-4)
    settings = json.loads(metadata['mtdml_jax'])
    assert settings['class_names'] == list(data.settings.class_names)
    assert settings['gallery_names'] == []


def test_bfloat16_network_is_computed_in_float32(tmp_path):
    """ONNX Runtime does not implement convolutions in bfloat16."""
    data, images, _ = make_case('grey', backbone=BACKBONE)
    settings = data.settings
    low = settings._replace(network=settings.network._replace(dtype='bfloat16'))
    outputs, _ = run(data._replace(settings=low), images, tmp_path / 'model.onnx')
    for key, values in predict(data, images).items():
        np.testing.assert_allclose(outputs[64][key], values, atol=1e-4)


def test_mirror_image_takes_no_second_copy_of_the_weights(tmp_path):
    """Besides the weights the file has a few constants, such as the means of pixels."""
    data, *_ = make_case('colour with flip', backbone=BACKBONE)
    write_onnx(data, tmp_path / 'model.onnx')
    arrays = map(onnx.numpy_helper.to_array, onnx.load(tmp_path / 'model.onnx').graph.initializer)
    floats = sum(x.size for x in arrays if x.dtype == np.float32)
    _, variables = make_folded_forward(data)
    assert floats == pytest.approx(sum(map(np.size, jax.tree.leaves(variables))), rel=0.02)


def test_jax_that_the_converter_does_not_support_is_named_in_the_error(monkeypatch, tmp_path):
    """For example, jax2onnx 0.17.1 does not support jax 0.12."""

    def fail(*_, **__):
        raise AttributeError("module 'jax._src.core' has no attribute 'ClosedJaxpr'")

    monkeypatch.setattr(jax2onnx, 'to_onnx', fail)
    data, *_ = make_case('grey', backbone=BACKBONE)
    with pytest.raises(UserError, match=r'jax2onnx cannot convert with jax .*ClosedJaxpr'):
        write_onnx(data, tmp_path / 'model.onnx')
