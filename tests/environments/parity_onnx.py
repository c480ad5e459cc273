"""ONNX in ONNX Runtime against `Model.predict`, for the models of tests/helpers/runtime_cases.py.

    make parity

sets up an environment with jax2onnx and runs the tests of this file.
"""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax2onnx
import numpy as np
import onnx
import pytest

sys.path.append(str(Path(__file__).absolute().parents[1] / 'helpers'))

from runtime_cases import CASES, COUNTS, make_case, predict

from mtdml_jax.host.errors import UserError
from mtdml_jax.inference.runtimes import write_onnx

# Whose shortcuts have strides.
BACKBONE = 'resnet10'

# Runs a file on the images beside it, and leaves its outputs and metadata there; prints warnings.
WITH_ONNX_RUNTIME_ALONE = f"""
import json, sys
for name in ('jax', 'flax', 'mtdml_jax'):
    sys.modules[name] = None  # It cannot be imported.
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])
images, names = np.load(sys.argv[1] + '.npy'), [x.name for x in session.get_outputs()]
for count in {COUNTS}:
    outputs = session.run(names, {{'images': images[:count]}})
    np.savez(f'{{sys.argv[1]}}.{{count}}.npz', **dict(zip(names, outputs, strict=True)))
print(json.dumps(session.get_modelmeta().custom_metadata_map))
"""


def run(data, images, path):
    """(outputs by count and name, metadata) of a model in another process."""
    write_onnx(data, path)
    np.save(f'{path}.npy', images)
    found = subprocess.run(
        [sys.executable, '-c', WITH_ONNX_RUNTIME_ALONE, str(path)], capture_output=True, check=True
    )
    # A graph that ONNX Runtime finds fault with is told of there.
    assert found.stderr == b''
    outputs = {count: dict(np.load(f'{path}.{count}.npz')) for count in COUNTS}
    return outputs, json.loads(found.stdout)


@pytest.mark.parametrize('name', CASES)
def test_onnx_runtime_answers_as_predict(name, tmp_path):
    """For all numbers of images by the same file, which has the settings with it."""
    data, images, expected = make_case(name, backbone=BACKBONE)
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
    """ONNX Runtime has no convolutions in bfloat16."""
    data, images, _ = make_case('grey', backbone=BACKBONE)
    settings = data.settings
    low = settings._replace(network=settings.network._replace(dtype='bfloat16'))
    outputs, _ = run(data._replace(settings=low), images, tmp_path / 'model.onnx')
    for key, values in predict(data, images).items():
        np.testing.assert_allclose(outputs[64][key], values, atol=1e-4)


def test_mirror_image_takes_no_second_copy_of_the_weights(tmp_path):
    """Beside the network's own there are a few constants, such as means of pixels."""
    data, *_ = make_case('colour with flip', backbone=BACKBONE)
    write_onnx(data, tmp_path / 'model.onnx')
    arrays = map(onnx.numpy_helper.to_array, onnx.load(tmp_path / 'model.onnx').graph.initializer)
    floats = sum(x.size for x in arrays if x.dtype == np.float32)
    assert floats == pytest.approx(sum(map(np.size, jax.tree.leaves(data.variables))), rel=0.02)


def test_jax_that_the_converter_does_not_know_is_told(monkeypatch, tmp_path):
    """As jax 0.12 of jax2onnx 0.17.1."""

    def fail(*_, **__):
        raise AttributeError("module 'jax._src.core' has no attribute 'ClosedJaxpr'")

    monkeypatch.setattr(jax2onnx, 'to_onnx', fail)
    data, *_ = make_case('grey', backbone=BACKBONE)
    with pytest.raises(UserError, match=r'jax2onnx cannot convert with jax .*ClosedJaxpr'):
        write_onnx(data, tmp_path / 'model.onnx')
