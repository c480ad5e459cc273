"""Rows of results: csv files in experiments/results/, each row with its commit, machine and versions."""

import csv
import datetime
import importlib.metadata
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).absolute().parents[1]
RESULTS = ROOT / 'experiments' / 'results'
sys.path.insert(0, str(ROOT))

# Files whose rows people typed from what a script printed. All others have a script that writes them.
TYPED = (
    'data',
    'early_steps',
    'exchange',
    'faults',
    'files',
    'loss',
    'not_kept',
    'parity',
    'peer_heads',
    'processors',
    'quickstart',
    'recipe',
    'recipe_early',
    'repeated',
    'slices',
    'thresholds_before',
    'training_step',
    'training_step_parts',
    'using',
)
# Files whose script is gone, because its question is answered: `git show 55b6d90:experiments/studies/`.
CLOSED = {'faces': 'faces.py', 'faces_ms': 'faces.py', 'fewer_slices': 'fewer_slices.py'}


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
    partial = path.with_suffix('.partial')
    with partial.open('w', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, columns, lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(path)


def record(name: str, row: Mapping[str, object], folder: Path = RESULTS) -> None:
    """Adds a row to `folder`/NAME.csv with the date, the machine, the commit and the versions."""
    today = datetime.date.today().isoformat()
    append_row(
        folder / f'{name}.csv',
        {**row, **describe_software(), 'machine': describe_machine(), 'date': today},
    )


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
    """Returns the kind of JAX's first device, or the processor and its cores where JAX uses the CPU."""
    import jax

    from mtdml_jax.host.system import processor

    device = jax.devices()[0]
    return (processor() if device.platform == 'cpu' else '') or device.device_kind
