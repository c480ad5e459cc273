import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from jax import export
from runtime_cases import CASES, COUNTS, make_case
from small_model import model_data

from mtdml_jax.host.errors import UserError
from mtdml_jax.inference.runtimes import write_onnx, write_stablehlo

pytestmark = pytest.mark.usefixtures('resnet4')

# Runs the files given, each on the images beside it, and leaves the outputs there.
WITH_JAX_ALONE = f"""
import sys, zipfile
for name in ('flax', 'mtdml_jax', 'safetensors', 'PIL'):
    sys.modules[name] = None  # It cannot be imported.
import numpy as np
from jax import export
for path in sys.argv[1:]:
    computation = zipfile.ZipFile(path).read('model.jax_export')
    exported, images = export.deserialize(bytearray(computation)), np.load(path + '.npy')
    for count in {COUNTS}:
        np.savez(f'{{path}}.{{count}}.npz', **exported.call(images[:count]))
"""


@pytest.fixture(scope='module')
def written(resnet4, tmp_path_factory):
    """Name of each case -> (its file, run by another process; expected outputs)."""
    folder, found = tmp_path_factory.mktemp('models'), {}
    for name in CASES:
        data, images, outputs = make_case(name)
        found[name] = folder / f'{name}.zip', outputs
        write_stablehlo(data, found[name][0])
        np.save(f'{found[name][0]}.npy', images)
    paths = [str(path) for path, _ in found.values()]
    subprocess.run([sys.executable, '-c', WITH_JAX_ALONE, *paths], check=True)
    return found


@pytest.mark.parametrize('count', COUNTS)
@pytest.mark.parametrize('name', CASES)
def test_process_with_jax_alone_answers_as_predict(written, name, count):
    path, expected = written[name]
    found = np.load(f'{path}.{count}.npz')
    assert set(found) == expected.keys()
    for key, values in expected.items():
        # Images are told apart by far more than the tolerance.
        assert np.ptp(values, axis=0).max() > 0.01
        np.testing.assert_allclose(found[key], values[:count], atol=1e-4)


def test_one_file_is_for_all_platforms_and_any_number_of_images(written):
    path, _ = written['grey']
    exported = export.deserialize(bytearray(zipfile.ZipFile(path).read('model.jax_export')))
    assert exported.platforms == ('cpu', 'cuda', 'tpu')
    assert str(exported.in_avals[0]) == 'uint8[N,16,16,1]'


def test_settings_are_json_without_names_of_people(written):
    path, _ = written['grey']
    settings = json.loads(zipfile.ZipFile(path).read('mtdml_jax.json'))
    assert settings['class_names'] == ['f\xe9roce "x"\n', 'happy']
    assert settings['thresholds'] == [0.2, 0.5, 0.8]
    assert settings['preprocessing']['image_size'] == 16
    assert settings['gallery_names'] == []


def test_missing_converter_is_told_with_its_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'jax2onnx', None)
    with pytest.raises(UserError, match=r"ONNX needs jax2onnx: .*'mtdml_jax\[onnx\]'"):
        write_onnx(model_data(), tmp_path / 'model.onnx')


def test_file_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(UserError, match=r'missing/model.zip: it cannot be written'):
        write_stablehlo(model_data(), tmp_path / 'missing' / 'model.zip')
