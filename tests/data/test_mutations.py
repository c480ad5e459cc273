"""Damages a small tree of each data set: `prepare` reports what it reads, or fails with one line.

MUTATIONS=1000 python -m pytest tests/data/test_mutations.py tries more damages than the default of 2.
"""

import os
import re
import shutil
import tempfile
from pathlib import Path

import face_trees
import hypothesis
import pytest
from hypothesis import strategies as st
from small_data import CONFIG

from mtdml_jax.__main__ import main
from mtdml_jax.data.pipeline import load_split

NUMBER = int(os.environ.get('MUTATIONS', '2'))
SETS = [
    'fer2013',
    'ferplus',
    'raf_db',
    'affectnet',
    'sfew',
    'ck_plus',
    'mmi',
    'oulu_casia',
    'jaffe',
]
SETS += ['folder', 'image_list']
NAMES = [
    'train',
    'Test',
    'val',
    'valid',
    'a b',
    ' x',
    '_x',
    '.x',
    'a\nb',
    'x.png',
    'caf\udce9',
    '10',
]
EXOTIC = [
    b'\xef\xbb\xbf',
    b'\0',
    b'"',
    b'\n',
    b'\r',
    b',',
    b';',
    b'\t',
    b'\xff',
    b'9' * 30,
    b'-1',
    b'nan',
]


@pytest.fixture(scope='module')
def trees(tmp_path_factory):
    """Writes an intact tree of each data set; returns their folder."""
    root = tmp_path_factory.mktemp('trees')
    for name in SETS:
        write = getattr(face_trees, f'write_{name.removeprefix("image_")}')
        write(root / name)
    return root


def damage_bytes(path, kind, draw):
    """Changes the content of a file."""
    content = path.read_bytes()
    place = draw(st.integers(0, max(len(content) - 1, 0)))
    if kind == 'flip':
        content = content[:place] + bytes([draw(st.integers(0, 255))]) + content[place + 1 :]
    elif kind == 'insert':
        content = content[:place] + draw(st.sampled_from(EXOTIC)) + content[place:]
    elif kind == 'cut':
        content = content[:place]
    else:
        lines = content.split(b'\n')
        i, j = (draw(st.integers(0, len(lines) - 1)) for _ in range(2))
        if kind == 'drop line':
            del lines[i]
        elif kind == 'double line':
            lines.insert(j, lines[i])
        else:
            lines[i], lines[j] = lines[j], lines[i]
        content = b'\n'.join(lines)
    path.write_bytes(content)


def damage(folder, draw):
    """Changes the content of a file, or moves, copies or empties a file or folder."""
    paths = sorted(folder.rglob('*'))
    files = [path for path in paths if path.is_file()]
    # Lists are rare among images but matter more, so half of the damages hit a list.
    lists = [path for path in files if path.suffix in ('.csv', '.txt', '.xml', '.npy')]
    if not files:
        return
    kind = draw(
        st.sampled_from(
            [
                'flip',
                'insert',
                'cut',
                'drop line',
                'double line',
                'swap lines',
                'move',
                'empty',
                'copy',
            ]
        )
    )
    if kind in ('move', 'empty', 'copy'):
        path, name = draw(st.sampled_from(paths)), draw(st.sampled_from(NAMES))
        target = path.with_name(name)
        if kind == 'empty' and path.is_dir():
            shutil.rmtree(path)
            path.mkdir()
        elif kind == 'empty':
            path.unlink()
            path.mkdir()
        elif target.exists():
            return
        elif kind == 'move':
            path.rename(target)
        elif path.is_file():
            shutil.copy(path, target)
        else:
            shutil.copytree(path, target)
        return
    among = lists if lists and draw(st.booleans()) else files
    damage_bytes(draw(st.sampled_from(among)), kind, draw)


@pytest.mark.parametrize('name', SETS)
def test_damaged_tree_is_read_as_told_or_refused_in_one_line(trees, name, capfd):
    @hypothesis.settings(
        max_examples=NUMBER,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(st.data())
    def check(data):
        with tempfile.TemporaryDirectory() as root:
            folder = Path(root) / 'set'
            shutil.copytree(trees / name, folder)
            for _ in range(data.draw(st.integers(1, 3))):
                damage(folder, data.draw)
            prepare_and_check(name, folder, capfd)

    check()


def prepare_and_check(name, folder, capfd):
    options = {'name': name, 'dir': folder, 'prepared_dir': folder.parent / 'prepared'}
    arguments = [f'--config.data.{key}={value}' for key, value in options.items()]
    capfd.readouterr()
    code = main(['prepare', f'--config={CONFIG}', *arguments])
    captured = capfd.readouterr()
    lines = captured.err.rstrip('\n').split('\n')
    if code == 2:
        assert lines[-1].startswith('mtdml_jax: ')
        assert not any('Traceback' in line for line in lines)
        return
    assert code == 0
    config = face_trees.data_config(name, folder)
    sizes = captured.out.partition(': ')[2].partition(' images of ')[0]
    told = re.findall(r'([\w.-]+) ([\d,]+)(?=, |$)', sizes)
    assert told
    for split, number in told:
        found = load_split(config, split)
        assert len(found.labels) == int(number.replace(',', ''))
        assert len(set(zip(found.file_names, map(tuple, found.boxes), strict=True))) == len(
            found.labels
        )
