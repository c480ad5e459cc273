"""What is packed for a GPU machine arrives; `make gpu-parts` shows that every part of on_gpu.py runs."""

import os
import subprocess
from pathlib import Path

import pytest

CARRY = Path(__file__).parents[2] / 'experiments' / 'benchmarks' / 'carry.sh'


def carry(*arguments):
    """Runs the script with parts of 100 bytes; returns the finished process."""
    environment = os.environ | {'PART_BYTES': '100'}
    return subprocess.run([CARRY, *arguments], env=environment, capture_output=True, text=True)


@pytest.fixture
def carried(tmp_path):
    """A folder of parts of a folder `site`, in which a file holds 300 random bytes."""
    work, folder = tmp_path / 'work', tmp_path / 'carried'
    (work / 'site').mkdir(parents=True)
    folder.mkdir()
    (work / 'site' / 'a').write_bytes(os.urandom(300))
    assert carry('pack', work, folder).returncode == 0
    assert len(list(folder.glob('part-*'))) > 3
    return folder


def test_parts_become_what_they_were(carried, tmp_path):
    assert carry('unpack', carried).returncode == 0
    content = (tmp_path / 'work' / 'site' / 'a').read_bytes()
    assert (carried / 'site' / 'a').read_bytes() == content


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (lambda path: path.unlink(), 'part-2: No such file or directory'),
        (lambda path: path.write_bytes(bytes(100)), 'part-2: FAILED'),
    ],
)
def test_part_that_is_missing_or_damaged_is_named(carried, spoil, message):
    spoil(carried / 'part-2')
    done = carry('unpack', carried)
    assert done.returncode != 0
    assert message in done.stdout + done.stderr
    assert not (carried / 'site').exists()
