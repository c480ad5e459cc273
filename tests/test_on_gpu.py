"""What is prepared for a GPU: every part runs on a CPU, and what is carried arrives."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / 'experiments' / 'benchmarks'


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


@pytest.mark.slow
def test_every_part_runs_on_a_cpu(tmp_path):
    output, archive = tmp_path / 'results', tmp_path / 'results.tgz'
    command = [sys.executable, BENCHMARKS / 'on_gpu.py', '--small', f'--output={output}']
    # The limits are for a GPU; nobody else may be at work there.
    limits = [f'{path}=600' for path in ('check', 'loss', 'step', 'feed', 'quickstart', 'fer2013')]
    command += [f'--archive={archive}', f'--prepared={tmp_path / "prepared"}', '--limits', *limits]
    # Without what conftest.py sets for the tests.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(('JAX_', 'XLA_'))}
    done = subprocess.run(
        [*map(str, command), 'study=600'], env=environment, text=True, stdout=subprocess.PIPE
    )
    logs = ''.join(path.read_text(encoding='utf-8')[-2000:] for path in output.glob('*.log'))
    assert done.returncode == 0, done.stdout + logs
    for name in ('check', 'loss', 'step', 'feed', 'quickstart', 'fer2013', 'study'):
        assert json.loads((output / f'{name}.json').read_text(encoding='utf-8'))['rows'], name
    assert archive.stat().st_size > 1000
