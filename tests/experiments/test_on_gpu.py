"""What is carried to a GPU arrives; `make gpu-parts` shows that every part of on_gpu.py runs."""

import os
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / 'experiments' / 'benchmarks'


@pytest.fixture
def carry(monkeypatch):
    """The script, with parts of 100 bytes."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import carry

    monkeypatch.setattr(carry, 'PART_BYTES', 100)
    return carry


@pytest.fixture
def carried(carry, tmp_path):
    """A folder of parts of a folder `site`, in which a file holds 300 random bytes."""
    work, folder = tmp_path / 'work', tmp_path / 'carried'
    (work / 'site').mkdir(parents=True)
    folder.mkdir()
    (work / 'site' / 'a').write_bytes(os.urandom(300))
    assert len(carry.pack(work, folder)) > 3
    return folder


def test_parts_become_what_they_were(carry, carried, tmp_path):
    carry.unpack(carried)
    content = (tmp_path / 'work' / 'site' / 'a').read_bytes()
    assert (carried / 'site' / 'a').read_bytes() == content


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (lambda path: path.unlink(), 'part-2 is missing'),
        (lambda path: path.write_bytes(bytes(100)), 'part-2 is not as it was packed'),
    ],
)
def test_part_that_is_missing_or_damaged_is_named(carry, carried, spoil, message):
    spoil(carried / 'part-2')
    with pytest.raises(SystemExit, match=message):
        carry.unpack(carried)
