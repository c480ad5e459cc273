"""Random damage to images, videos and model files: a row that says so, or one line; never a traceback.

BROKEN_INPUTS=2000 python -m pytest -n0 FILE tries more than the few of every day.
"""

import csv
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_model import model_data
from test_predict import coarse_frames, write_video

import mtdml_jax
from mtdml_jax.__main__ import main
from mtdml_jax.host.errors import UserError
from mtdml_jax.inference.model import Model

pytestmark = pytest.mark.usefixtures('resnet4')

NUMBER = int(os.environ.get('BROKEN_INPUTS', '60'))
FORMATS = {
    '.png': 'PNG',
    '.jpg': 'JPEG',
    '.bmp': 'BMP',
    '.tiff': 'TIFF',
    '.gif': 'GIF',
    '.webp': 'WEBP',
}


@pytest.fixture(scope='module')
def sound(tmp_path_factory):
    """Files that are whole: images of every format, videos and a model."""
    folder = tmp_path_factory.mktemp('sound')
    photograph = Image.fromarray(coarse_frames(1)[0])
    for suffix, name in FORMATS.items():
        photograph.save(folder / f'image{suffix}', name)
    for suffix in ('.mp4', '.avi'):
        write_video(folder / f'video{suffix}', coarse_frames(4))
    Model(model_data()).save(folder / 'm.safetensors')
    return folder


def damage(content, rng):
    """Content that is cut, has bytes changed, doubled or left out, or is nothing."""
    content = bytearray(content)
    kind = rng.integers(6)
    place = int(rng.integers(len(content)))
    if kind == 0:
        return bytes(content[:place])
    if kind == 1:
        for at in rng.integers(0, len(content), rng.integers(1, 20)):
            content[at] ^= 1 << rng.integers(8)
    elif kind == 2:
        # Where formats say how long and wide everything is.
        start = int(rng.integers(min(64, len(content))))
        content[start : start + 4] = rng.choice([b'\xff' * 4, b'\x7f\xff\xff\xff', bytes(4)])
    elif kind == 3:
        content[place:place] = content[: int(rng.integers(1, 200))]
    elif kind == 4:
        del content[place : place + int(rng.integers(1, 200))]
    else:
        return rng.choice([b'', b'\0' * 5000, rng.bytes(3000), b'text'])
    return bytes(content)


def write_damaged(sound, folder, number):
    """Damaged images and videos, some under another's ending; their names."""
    rng = np.random.default_rng(0)
    whole = sorted(path for path in sound.iterdir() if path.suffix != '.safetensors')
    for i in range(number):
        source, ending = whole[i % len(whole)], whole[int(rng.integers(len(whole)))].suffix
        suffix = ending if rng.random() < 0.2 else source.suffix
        (folder / f'{i}{suffix}').write_bytes(damage(source.read_bytes(), rng))


def test_damaged_pictures_are_rows_and_the_others_are_read(sound, tmp_path, capsys):
    write_damaged(sound, tmp_path, NUMBER)
    (tmp_path / 'folder.png').mkdir()
    (tmp_path / 'whole.png').write_bytes((sound / 'image.png').read_bytes())
    assert main(['predict', f'--model={sound / "m.safetensors"}', f'{tmp_path}/*.*']) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {row['path'] for row in rows} == {
        str(path) for path in tmp_path.iterdir() if not path.is_dir()
    }
    assert all(bool(row['class']) != bool(row['error']) for row in rows)
    assert next(row for row in rows if Path(row['path']).name == 'whole.png')['class']
    assert sum(bool(row['error']) for row in rows) > NUMBER / 4


def png_of_size(width, height):
    """A PNG file that claims to be as large, of one kilobyte of zeros."""

    def chunk(name, content):
        body = name + content
        return struct.pack('>I', len(content)) + body + struct.pack('>I', zlib.crc32(body))

    header = struct.pack('>2I5B', width, height, 8, 2, 0, 0, 0)
    content = chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(bytes(1000)))
    return b'\x89PNG\r\n\x1a\n' + content + chunk(b'IEND', b'')


@pytest.mark.parametrize('size', [(2**31 - 1, 2**31 - 1), (100_000, 100_000), (1, 2**27)])
def test_picture_of_huge_dimensions_is_refused_before_it_takes_memory(sound, size):
    model = mtdml_jax.load(sound / 'm.safetensors')
    with pytest.raises(UserError, match='pixels are more than|exceeds limit'):
        model.predict(png_of_size(*size))
    with pytest.raises(UserError, match='it cannot be decoded'):
        model.predict(png_of_size(300, 300))


def test_damaged_model_file_ends_in_one_line_or_is_whole(sound, tmp_path):
    content, rng, messages = (sound / 'm.safetensors').read_bytes(), np.random.default_rng(0), []
    for number in range(NUMBER):
        path = tmp_path / f'{number}.safetensors'
        path.write_bytes(damage(content, rng))
        try:
            mtdml_jax.load(path)
        except UserError as error:
            messages.append(str(error))
        path.unlink()
    assert not [message for message in messages if '\n' in message]
    assert len(messages) > NUMBER / 3
