import os
import subprocess
import sys
from pathlib import Path

import pytest

from mtdml_jax.host.files import write_whole


@pytest.mark.parametrize('content', ['grün\nzwei\n', b'\xff\x00\r\n', '', b''])
def test_content_is_written_byte_for_byte(content, tmp_path):
    path = tmp_path / 'file.json'
    write_whole(path, content)
    expected = content.encode('utf-8') if isinstance(content, str) else content
    assert path.read_bytes() == expected
    assert os.listdir(tmp_path) == ['file.json']


def test_file_that_exists_is_replaced(tmp_path):
    path = tmp_path / 'file'
    path.write_text('a much longer text')
    write_whole(path, 'new')
    assert path.read_text() == 'new'
    assert os.listdir(tmp_path) == ['file']


def test_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / 'file'
    path.write_text('old')

    def write_half(self, data):
        with self.open('wb') as file:
            file.write(data[:2])
        raise OSError('no space left on device')

    monkeypatch.setattr(Path, 'write_bytes', write_half)
    with pytest.raises(OSError, match='no space left'):
        write_whole(path, 'new')
    assert path.read_text() == 'old'
    assert os.listdir(tmp_path) == ['file']


def test_failed_rename_leaves_no_other_file(tmp_path):
    path = tmp_path / 'folder'
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        write_whole(path, 'new')
    assert os.listdir(tmp_path) == ['folder']


def test_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / 'missing' / 'file', 'new')


def test_process_killed_before_the_rename_leaves_the_old_file(tmp_path):
    path = tmp_path / 'file'
    path.write_text('old')
    code = (
        'import os, signal, sys\n'
        'from pathlib import Path\n'
        'from mtdml_jax.host.files import write_whole\n'
        'Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n'
        'write_whole(Path(sys.argv[1]), "new")\n'
    )
    assert subprocess.run([sys.executable, '-c', code, path], check=False).returncode == -9
    assert path.read_text() == 'old'


def test_writes_of_one_file_at_a_time_use_different_names(tmp_path, monkeypatch):
    written = []
    write_bytes = Path.write_bytes

    def note(self, data):
        written.append(self.name)
        return write_bytes(self, data)

    monkeypatch.setattr(Path, 'write_bytes', note)
    for content in ('a', 'b'):
        write_whole(tmp_path / 'file', content)
    assert len(set(written)) == 2
    assert 'file' not in written
