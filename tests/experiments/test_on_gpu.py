"""What is packed for a GPU machine arrives; `make gpu-parts` shows that every part of on_gpu.py runs."""

import os
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / 'experiments' / 'benchmarks'


@pytest.fixture
def on_gpu(monkeypatch):
    """The script, with parts of 100 bytes."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import on_gpu

    monkeypatch.setattr(on_gpu, 'PART_BYTES', 100)
    return on_gpu


@pytest.fixture
def carried(on_gpu, tmp_path):
    """A folder of parts of a folder `site`, in which a file holds 300 random bytes."""
    work, folder = tmp_path / 'work', tmp_path / 'carried'
    (work / 'site').mkdir(parents=True)
    folder.mkdir()
    (work / 'site' / 'a').write_bytes(os.urandom(300))
    on_gpu.pack(work, folder)
    assert len(list(folder.glob('part-*'))) > 3
    return folder


def test_parts_become_what_they_were(on_gpu, carried, tmp_path):
    assert on_gpu.unpack(carried) == 0
    content = (tmp_path / 'work' / 'site' / 'a').read_bytes()
    assert (carried / 'site' / 'a').read_bytes() == content


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (lambda path: path.unlink(), 'part-2: No such file or directory'),
        (lambda path: path.write_bytes(bytes(100)), 'part-2: FAILED'),
    ],
)
def test_part_that_is_missing_or_damaged_is_named(on_gpu, carried, spoil, message, capfd):
    spoil(carried / 'part-2')
    assert on_gpu.unpack(carried) != 0
    assert message in ''.join(capfd.readouterr())
    assert not (carried / 'site').exists()
