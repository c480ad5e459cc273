"""Tests on a CPU that every part of on_gpu.py runs: `make gpu-parts`."""

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / 'experiments' / 'benchmarks'


def test_every_part_runs_on_a_cpu(tmp_path):
    """Each part writes rows, and the archive contains them."""
    output, archive = tmp_path / 'results', tmp_path / 'results.tgz'
    command = [sys.executable, BENCHMARKS / 'on_gpu.py', '--small', f'--output={output}']
    # The default limits are for an idle machine with a GPU.
    limits = [f'{path}=600' for path in ('check', 'loss', 'step', 'feed', 'quickstart', 'fer2013')]
    command += [f'--archive={archive}', f'--prepared={tmp_path / "prepared"}', '--limits', *limits]
    done = subprocess.run([*map(str, command), 'study=600'], text=True, stdout=subprocess.PIPE)
    logs = ''.join(path.read_text(encoding='utf-8')[-2000:] for path in output.glob('*.log'))
    assert done.returncode == 0, done.stdout + logs
    for name in ('check', 'loss', 'step', 'feed', 'quickstart', 'fer2013', 'study'):
        assert json.loads((output / f'{name}.json').read_text(encoding='utf-8'))['rows'], name
    assert archive.stat().st_size > 1000
