"""Pickled dicts of arrays: read without running what they call."""

import os
import pickle

import numpy as np
import pytest

from mtdml_jax.host.errors import UserError
from mtdml_jax.models.pretrained import read_arrays


def pickled(folder, content, protocol=None):
    """The path of a pickle, or of bytes as they are in its place."""
    path = folder / 'weights.pkl'
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickled_arrays_are_those_that_were_written(protocol, tmp_path):
    grid = np.arange(24, dtype=np.float32).reshape(2, 3, 4) - 7
    arrays = {
        'c': grid,
        'fortran': grid.T,
        'view': grid.transpose(1, 0, 2),
        'big': grid.astype('>f8'),
    }
    arrays |= {
        'half': grid[0, 0, ::2].astype(np.float16),
        'scalar': np.array(3),
        'none': np.zeros(0),
    }
    content = {**arrays, 'accuracy': np.float32(0.5), 'epoch': 3, 'text': 'text'}
    found = read_arrays(pickled(tmp_path, content, protocol))
    assert found.keys() == arrays.keys()
    for name, x in arrays.items():
        np.testing.assert_array_equal(found[name], x, strict=True)


def test_pickle_of_python_2_is_read(tmp_path):
    path = pickled(
        tmp_path,
        b'\x80\x02}q\x01U\x08bn1.biasq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\n'
        b'q\x04K\x00\x85U\x01b\x87Rq\x05(K\x01K\x02\x85cnumpy\ndtype\nq\x06U\x02f4K\x00K\x01\x87Rq\x07(K\x03'
        b'U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08\x00\x00 \xc0\x00\x00\x80?tbs.',
    )
    np.testing.assert_array_equal(read_arrays(path)['bn1.bias'], np.array([-2.5, 1], np.float32))


class Command:
    """Pickled as a call that starts a program."""

    def __init__(self, line):
        self.line = line

    def __reduce__(self):
        return os.system, (self.line,)


@pytest.mark.parametrize('protocol', [0, 2, pickle.HIGHEST_PROTOCOL])
def test_pickle_that_would_run_code_is_refused_and_runs_nothing(protocol, tmp_path):
    content = {'conv1.weight': Command(f'touch {tmp_path}/trace')}
    path = pickled(tmp_path, content, protocol)
    refused = f"it calls '{os.system.__module__}.system', which is refused"
    with pytest.raises(UserError, match=refused):
        read_arrays(path)
    assert not (tmp_path / 'trace').exists()
    pickle.loads(path.read_bytes())
    assert (tmp_path / 'trace').exists()


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'', 'not a pickled dict of NumPy arrays .EOFError'),
        (bytes(range(255, 0, -1)), 'not a pickled dict'),
        (pickle.dumps({'x': np.zeros(50)})[:-20], 'not a pickled dict'),
        ({'x': np.array(['a', None])}, 'an array of objects'),
        ([np.zeros(2)], "expected a dict of arrays in .*, found <class 'list'>"),
        # A memo numbered 2**32 - 1, and bytes and an array of 2**45: room for them is not taken.
        (b'Nr\xff\xff\xff\xff.', "found <class 'NoneType'>"),
        *(
            (code + (2**45).to_bytes(8, 'little'), 'not a pickled dict')
            for code in (b'\x8e', b'\x96')
        ),
        (
            b"}S'x'\ncnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(L35184372088832L\nt"
            b"S'f8'\ntRs.",
            'not a pickled dict',
        ),
    ],
)
def test_broken_pickle_is_refused(content, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read_arrays(pickled(tmp_path, content))
