import io
import json
import pickle

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_model import model_data

from mtdml_jax.host.errors import UserError
from mtdml_jax.models.model_file import read_model, write_model

pytestmark = pytest.mark.usefixtures('resnet4')


@pytest.fixture(scope='module')
def data(resnet4):
    return model_data(
        class_names=('sad', 'f\xe9roce "x"\n'),
        gallery_labels=('sad', 'new', 'new'),
        gallery_names=('', 'a.png', 'b.png'),
        measured={'split': 'test', 'classifiers': {'knn': {'accuracy': 0.5}}},
        license='as you like',
    )._replace(gallery=np.arange(36, dtype=np.float32).reshape(3, 12))


@pytest.fixture
def path(data, tmp_path):
    write_model(tmp_path / 'm.safetensors', data)
    return tmp_path / 'm.safetensors'


def test_what_was_written_is_read(data, path):
    found = read_model(path)
    assert found.settings == data.settings
    jax.tree.map(np.testing.assert_array_equal, found.variables, dict(data.variables))
    np.testing.assert_array_equal(found.centres, data.centres)
    np.testing.assert_array_equal(found.gallery, data.gallery)
    assert [x.name for x in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_smaller_types_round_weights_but_not_statistics(data, tmp_path, dtype):
    path = tmp_path / 'm.safetensors'
    write_model(path, data, dtype)
    found = read_model(path)
    kernel = found.variables['params']['embedding']['kernel']
    rounded = data.variables['params']['embedding']['kernel'].astype(
        ml_dtypes.bfloat16 if dtype == 'bfloat16' else np.float16
    )
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel, rounded.astype(np.float32))
    statistics = (x['batch_stats']['BatchNorm_0'] for x in (found.variables, data.variables))
    jax.tree.map(np.testing.assert_array_equal, *statistics)
    np.testing.assert_array_equal(found.centres, data.centres)


def change_settings(path, change):
    """Writes the file again, with other settings."""
    text = path.read_bytes()
    length = int.from_bytes(text[:8], 'little')
    settings = json.loads(json.loads(text[8 : 8 + length])['__metadata__']['mtdml_jax'])
    change(settings)
    save_file(load_file(path), path, metadata={'mtdml_jax': json.dumps(settings)})


@pytest.mark.parametrize(
    ('keys', 'value', 'message'),
    [
        ('format', 2, 'format 2 is not known here, only 1'),
        ('flip', 1, 'flip: expected bool, found 1'),
        ('license', None, 'license: expected str'),
        ('class_names', 'ab', 'class_names: expected a list'),
        ('class_names', ['a', 'a'], 'class_names: no model'),
        ('class_names', ['a', 'b', 'c'], 'class_counts: no model'),
        ('thresholds', [0.1, 0.2], 'thresholds: no model'),
        ('thresholds', [0.1, 0.2, float('inf')], 'thresholds: expected float, found inf'),
        ('thresholds', [0.1, 0.2, 10**400], 'thresholds: expected float, found inf'),
        ('distance', 'cosine', "expected one of euclidean, .*, found 'cosine'"),
        ('class_counts', [1, -1], 'class_counts: no model'),
        ('gallery_names', ['a'], 'gallery_names: no model'),
        ('gallery_labels', ['a'], 'gallery_names: no model'),
        ('unknown', 0, 'settings: expected format, network'),
        ('network', [], 'network: expected backbone'),
        ('network backbone', 'vgg', "expected one of resnet10.*, found 'vgg'"),
        ('network backbone', [], 'backbone: expected str'),
        ('network width_factor', 0, 'width_factor: no model'),
        ('network width_factor', 1e300, 'width_factor: no model'),
        ('network width_factor', 0.125, r'mean: expected shape \(8,\), found .4'),
        ('network embedding_size', 10**12, 'embedding_size: no model'),
        ('network embedding_size', 13, 'must be divisible'),
        ('network num_slices', 0, 'thresholds: no model'),
        ('network embedding_norm', 'none', r'missing: none; unknown: batch_stats/BatchNorm_0/mean'),
        ('network learn_logit_scale', False, 'unknown: params/scale'),
        ('preprocessing image_size', 10**6, 'image_size: no model'),
        ('preprocessing channels', 2, 'channels: no model'),
        ('preprocessing channels', 3, r'kernel: expected shape \(3, 3, 3, 4\), found .3, 3, 1, 4'),
        ('preprocessing std', [0], 'std: no model'),
        ('preprocessing mean', [], 'mean: no model'),
        ('preprocessing crop_margin', 'x', "crop_margin: expected float, found 'x'"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_line(path, keys, value, message):
    *folder, key = keys.split()

    def change(settings):
        (settings[folder[0]] if folder else settings)[key] = value

    change_settings(path, change)
    with pytest.raises(UserError, match=message) as found:
        read_model(path)
    assert str(found.value).startswith(f'{path}: ')


def test_arrays_that_are_not_finite_or_no_floats_are_refused(data, path):
    arrays = load_file(path)
    text = path.read_bytes()
    metadata = json.loads(text[8 : 8 + int.from_bytes(text[:8], 'little')])['__metadata__']
    broken = arrays | {'centres': np.full_like(arrays['centres'], np.nan)}
    save_file(broken, path, metadata=metadata)
    with pytest.raises(UserError, match='centres: expected finite numbers'):
        read_model(path)
    save_file(arrays | {'centres': arrays['centres'].astype(np.int32)}, path, metadata=metadata)
    with pytest.raises(UserError, match='centres: expected floats, found int32'):
        read_model(path)
    too_large = data._replace(gallery=np.full_like(data.gallery, 1e6))
    with pytest.raises(UserError, match='gallery: expected finite numbers'):
        write_model(path, too_large, 'float16')


class Bomb:
    def __reduce__(self):
        return print, ('this was run',)


def test_what_is_no_model_file_is_refused_and_nothing_of_it_run(data, path, tmp_path, capsys):
    content = path.read_bytes()
    deep = {'mtdml_jax': '[' * 100_000}
    save_file({}, tmp_path / 'deep', metadata=deep)
    save_file({}, tmp_path / 'other')
    stored = io.BytesIO()
    np.savez(stored, x=np.zeros(3))
    cases = {
        'cut': content[:-9],
        'empty': b'',
        'long header': (2**60).to_bytes(8, 'little') + content[8:],
        'pickle': pickle.dumps(Bomb()),
        'npz': stored.getvalue(),
        'deep': (tmp_path / 'deep').read_bytes(),
        'other': (tmp_path / 'other').read_bytes(),
    }
    for name, case in cases.items():
        path.write_bytes(case)
        with pytest.raises(UserError, match='m.safetensors: ') as found:
            read_model(path)
        assert '\n' not in str(found.value), name
    with pytest.raises(UserError, match='it is not a readable model file'):
        read_model(tmp_path)
    assert capsys.readouterr().out == ''
