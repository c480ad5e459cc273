"""Everything that only a GPU can answer, in one command. on_gpu.md fits it into fifteen minutes.

    python experiments/benchmarks/on_gpu.py --output FOLDER
        [--parts check loss step feed quickstart fer2013 study]

Runs the parts one after the other, each in a process of its own with a time limit, and goes on after one
that fails. FOLDER gets for each part a log, and a JSON file with what was measured so far and on what;
and summary.md, tables of all of it, which is also printed. --small shows on a CPU, within two minutes,
that every part runs, two at a time. gpu_parts.py has the parts.

    --limits fer2013=300   other time limits, in seconds
    --archive FILE         after each part, a tar.gz of all that is worth to be kept, without weights
    --data, --prepared     folders of config.data.dir and config.data.prepared_dir
    --commit               of the code, where it runs without its repository
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# Part -> seconds that it may take.
LIMITS = {
    'check': 90,
    'loss': 120,
    'step': 120,
    'feed': 60,
    'quickstart': 90,
    'fer2013': 240,
    'study': 240,
}
KEPT = {'.csv', '.html', '.json', '.jsonl', '.log', '.md', '.png'}
# With --small, where compiling takes most of the time; parts share what they compile.
CHEAP = {
    'XLA_FLAGS': '--xla_backend_optimization_level=0',
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.1',
    'OMP_NUM_THREADS': '1',
}
PARTS = Path(__file__).with_name('gpu_parts.py')


def run_part(name: str, seconds: float, output: Path, options: list[str]) -> str:
    """Runs a part in a process of its own, its output in a log; returns how it ended.

    Args:
      name: the part.
      seconds: after these it is ended, with all processes that it has started.
      output: folder of its log and results.
      options: arguments for it.
    """
    command = [sys.executable, str(PARTS), name, f'--output={output}', f'--seconds={seconds}']
    # Several processes share the GPU, and JAX would take most of its memory at once.
    environment = os.environ | {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}
    if '--small' in options:
        environment |= CHEAP | {'JAX_COMPILATION_CACHE_DIR': str(output / 'compiled')}
    with (output / f'{name}.log').open('w', encoding='utf-8') as log:
        process = subprocess.Popen(
            [*command, *options],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            code = process.wait(seconds)
            return 'done' if code == 0 else f'failed with exit code {code}'
        except subprocess.TimeoutExpired:
            return f'stopped at its limit of {seconds:g} s'
        finally:
            end_all(process)


def end_all(process: subprocess.Popen) -> None:
    """Ends a process and all that it has started, also what has a session of its own."""
    for pid in [*descendants(process.pid), process.pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def descendants(pid: int) -> list[int]:
    """The processes below one, by Linux's list of all."""
    parents = {}
    for path in Path('/proc').glob('[0-9]*/stat'):
        with contextlib.suppress(OSError):  # Has ended meanwhile.
            # Number, (name), state, number of the parent; the name may hold anything.
            parents[int(path.parent.name)] = int(path.read_text().rpartition(')')[2].split()[1])
    found = [pid]
    for ancestor in found:  # Grows as it goes.
        found += [child for child, parent in parents.items() if parent == ancestor]
    return found[1:]


def archive(output: Path, path: Path) -> None:
    """Packs what was measured: tables, logs, curves and reports, but neither weights nor images."""
    partial = path.with_suffix('.partial')
    with tarfile.open(partial, 'w:gz') as file:
        for found in sorted(output.rglob('*')):
            # Runs of a study are many, and each has its report.
            kept = KEPT - {'.html'} if output / 'runs' in found.parents else KEPT
            if found.suffix in kept and found.stat().st_size < 4_000_000:
                file.add(found, found.relative_to(output))
    partial.replace(path)


def summarize(output: Path, endings: dict[str, str]) -> str:
    """Markdown: how each part ended, and a table of the rows of each kind that it has measured."""
    lines = ['| part | |', '|---|---|', *(f'| {name} | {end} |' for name, end in endings.items())]
    for name in endings:
        path = output / f'{name}.json'
        if not path.exists():
            continue
        found = json.loads(path.read_text(encoding='utf-8'))
        machine = ', '.join(f'{key} {value}' for key, value in found['machine'].items())
        lines += ['', f'## {name}', '', machine]
        for kind in dict.fromkeys(row['what'] for row in found['rows']):
            rows = [row for row in found['rows'] if row['what'] == kind]
            lines += ['', f'### {kind}', '', *table(rows)]
    return '\n'.join(lines) + '\n'


def table(rows: list[dict]) -> list[str]:
    """Lines of a Markdown table: a column for each key but 'what'."""
    keys = [key for key in dict.fromkeys(key for row in rows for key in row) if key != 'what']
    cells = [[show(row.get(key, '')) for key in keys] for row in rows]
    return ['| ' + ' | '.join(line) + ' |' for line in (keys, ['---'] * len(keys), *cells)]


def show(value: object) -> str:
    """A cell: four digits of a number are enough."""
    return f'{value:.4g}' if isinstance(value, float) else str(value).replace('|', '/')


def main() -> int:
    """Runs the parts; returns 1 if one did not end by itself."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog='Other options go to the parts.'
    )
    parser.add_argument('--output', type=Path, required=True)
    parser.add_argument('--parts', nargs='+', choices=LIMITS, default=[*LIMITS], metavar='PART')
    parser.add_argument('--limits', nargs='*', default=[], metavar='PART=SECONDS')
    parser.add_argument('--archive', type=Path, metavar='FILE')
    arguments, options = parser.parse_known_args()
    limits = LIMITS | {k: float(v) for k, v in (x.split('=') for x in arguments.limits)}
    arguments.output.mkdir(parents=True, exist_ok=True)
    endings = {}

    def run(name):
        start = time.monotonic()
        end = run_part(name, limits[name], arguments.output.absolute(), options)
        return f'{end} ({time.monotonic() - start:.0f} s)'

    # What is measured is measured alone.
    with ThreadPoolExecutor(2 if '--small' in options else 1) as pool:
        for name, end in zip(arguments.parts, pool.map(run, arguments.parts), strict=True):
            endings[name] = end
            print(f'{name}: {end}', flush=True)
            summary = summarize(arguments.output, endings)
            (arguments.output / 'summary.md').write_text(summary, encoding='utf-8')
            if arguments.archive:
                archive(arguments.output, arguments.archive)
    print(summary)
    return int(not all(end.startswith('done') for end in endings.values()))


if __name__ == '__main__':
    sys.exit(main())
