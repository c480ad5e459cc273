"""Rows of results: csv files in experiments/results/, each row with its commit, machine and versions."""

import csv
import datetime
import importlib.metadata
import io
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).absolute().parents[1]
RESULTS = ROOT / 'experiments' / 'results'
sys.path.insert(0, str(ROOT))

# ruff: isort: split
from mtdml_jax.host.files import write_whole  # noqa: E402
from mtdml_jax.host.system import processor  # noqa: E402

# Files whose rows people typed from what a script printed. Scripts wrote all others. Rows from before
# 2026-11-30 have no commit in runtimes, scaling, start, training_step_parts, using, and in the files of
# `CLOSED`.
TYPED = (
    'early_steps',
    'exchange',
    'faults',
    'not_kept',
    'parity',
    'peer_heads',
    'pretrained',
    'processors',
    'quickstart',
    'recipe',
    'recipe_early',
    'repeated',
    'slices',
    'thresholds_before',
)
# File -> its script, which is gone because its question is answered: `git show 55b6d90:experiments/...`.
# Pages say at which commit studies.py had a study.
CLOSED = {
    **dict.fromkeys(('convergence', 'memory_digits', 'memory_faces'), 'studies.py'),
    **dict.fromkeys(('ablation', 'ingredients', 'precision'), 'studies.py'),
    'faces': 'studies/faces.py',
    'faces_ms': 'studies/faces.py',
    'fewer_slices': 'studies/fewer_slices.py',
    'parts': 'benchmarks/benchmark_parts.py',
    'peer_pytorch': 'peers/peer_pytorch.py',
    'training_step_parts': 'benchmarks/benchmark_training.py',
}


def read_rows(path: Path) -> list[dict[str, str]]:
    """Reads the rows of a file; there are none if there is no file. Empty cells are ''."""
    if not path.exists():
        return []
    with path.open(newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file))


def append_row(path: Path, row: Mapping[str, object]) -> None:
    """Adds a row, and the columns that the file lacks; a kill leaves the file as it was, or whole."""
    rows = [*read_rows(path), row]
    columns = dict.fromkeys(name for row in rows for name in row)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue())


def record(output: Path, name: str, row: Mapping[str, object]) -> None:
    """Adds a row to OUTPUT/results/NAME.csv with commit, versions, machine and date."""
    facts = {**describe_software(), 'machine': describe_machine()}
    today = datetime.date.today().isoformat()
    append_row(output / 'results' / f'{name}.csv', {**row, **facts, 'date': today})


def describe_software() -> dict[str, str]:
    """Returns the commit and the versions; changed results do not make the commit dirty."""

    def git(*arguments):
        if not shutil.which('git'):  # A machine that is lent for minutes may lack it.
            return ''
        command = ['git', '-C', str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout

    commit = git('rev-parse', '--short', 'HEAD').strip()
    changed = git('status', '--porcelain', '--', 'mtdml_jax', 'configs')
    versions = {'jax': importlib.metadata.version('jax'), 'python': platform.python_version()}
    for peer in ('torch', 'onnxruntime'):
        if peer in sys.modules:
            versions[peer] = importlib.metadata.version(peer)
    return {'commit': commit + ('-dirty' if commit and changed else ''), **versions}


def describe_machine() -> str:
    """Returns the processor and its cores, and the GPU with its driver if there is one."""
    found = processor() or f'unknown processor, {os.cpu_count()} cores'
    if shutil.which('nvidia-smi'):
        query = ['nvidia-smi', '--query-gpu=name,driver_version', '--format=csv,noheader']
        found += f', {subprocess.check_output(query, text=True).strip()}'
    return found
