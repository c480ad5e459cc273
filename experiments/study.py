"""Runs a study of studies.py: the training command for each cell and seed, one row of results a run.

    python experiments/study.py NAME [--data FOLDER] [--seeds 0 1] [--cells 'hard*'] [--jobs 1] [--list]

The same command continues a study: it skips runs with a row in results/NAME.csv and resumes a stopped
run from its checkpoint. It runs all cells of a seed before the next seed, so a stopped study has whole
seeds. Each row holds the command that repeats it, for data in `data`. Arguments such as
`--config.train.num_steps=20` apply to all cells. At the end it prints a table of means of the chosen
cells, and one of their differences to the cell that --reference names, seed by seed.
"""

import argparse
import contextlib
import fnmatch
import json
import math
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from record import ROOT, append_row, describe_software, read_rows
from studies import STUDIES, Cell, Study
from study_tables import summary

from mtdml_jax.__main__ import DIVERGED, INTERRUPTED, STOPPED
from mtdml_jax.config import LOCATION_KEYS
from mtdml_jax.training.metrics import COLLAPSED, read_metrics

# Set when the study ends early: runs save a checkpoint and end.
STOPPING = threading.Event()
TRAIN_SCALARS = ('accuracy', 'loss', 'metric_loss', 'softmax_loss')


def run_study(study: Study, argv: Sequence[str] | None = None) -> int:
    """Runs the command line of a study.

    Args:
      study: the study.
      argv: arguments after the name of the study; by default the process's.

    Returns:
      The exit code: 0, or 130 if it was stopped by Ctrl-C or SIGTERM.
    """
    options, extra = _parse(study, argv)
    results = options.output / 'results' / f'{study.name}.csv'
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if not options.figure_only:
            _run_all(study, options, extra, results)
    except KeyboardInterrupt:
        print('stopped; the same command goes on from here', file=sys.stderr)
        return INTERRUPTED
    rows = _finished(study, results)
    if rows and not options.list:
        figure = options.output / 'figures' / f'{study.name}.png'
        figure.parent.mkdir(parents=True, exist_ok=True)
        study.draw(rows, figure)
        shown = [x for x in rows if x['cell'] in (*options.cells, options.reference)]
        if shown:
            print(summary(shown, options.reference, study.converged))
    return 0


def _finished(study, results):
    """Returns the rows of finished runs, in the order of the study's cells."""
    rows = [row for row in read_rows(results) if row['status'] == 'done']
    return [row for cell in study.cells for row in rows if row['cell'] == cell.name]


def _parse(study, argv):
    """(options, settings of the command line)."""
    parser = argparse.ArgumentParser(
        prog=f'study.py {study.name}',
        description=f'{study.name}: {study.question}',
        epilog='Any --config.key=value can follow, for all cells.',
        allow_abbrev=False,
    )
    parser.add_argument('--seeds', type=int, nargs='+', default=study.seeds)
    parser.add_argument('--cells', default='*', metavar='PATTERN', help="such as 'hard*'")
    parser.add_argument('--runs', type=_absolute, default=Path('runs'), metavar='DIR')
    parser.add_argument('--data', type=_absolute, metavar='DIR', help='config.data.dir')
    parser.add_argument('--output', type=_absolute, default=ROOT / 'experiments', metavar='DIR')
    parser.add_argument('--jobs', type=int, default=1, help='runs at a time')
    parser.add_argument('--until', type=float, default=math.inf, help='no run after time.time()')
    parser.add_argument('--list', action='store_true', help='print the commands only')
    names = [cell.name for cell in study.cells]
    parser.add_argument('--reference', default=study.reference, choices=names, metavar='CELL')
    parser.add_argument('--figure-only', action='store_true', help='no runs: figure and table')
    parser.add_argument('--keep', action='store_true', help='keep the checkpoints')
    options, others = parser.parse_known_args(argv)
    wrong = [x for x in others if not x.startswith('--config.') or '=' not in x]
    if wrong:
        parser.error(f'unexpected argument {wrong[0]!r}')
    pattern, options.cells = options.cells, fnmatch.filter(names, options.cells)
    if not options.cells:
        parser.error(f'--cells: nothing matches {pattern!r}; there are {", ".join(names)}')
    extra = dict(x.removeprefix('--config.').split('=', 1) for x in others)
    return options, ({'data.dir': options.data} if options.data else {}) | extra


def _absolute(path):
    return Path(path).absolute()


def _run_all(study, options, extra, results):
    """Runs what has no row yet, or prints the commands."""
    cells = [x for x in study.cells if x.name in options.cells]
    present = {(row['cell'], int(row['seed'])): row['command'] for row in read_rows(results)}
    portable = {key: value for key, value in extra.items() if key not in LOCATION_KEYS}
    missing = []
    for seed in options.seeds:
        for cell in cells:
            command = shlex.join(['python', *train_arguments(study, cell, seed, portable)])
            arguments = train_arguments(study, cell, seed, extra, options.runs)
            if options.list:
                print(shlex.join(['python', *arguments]))
            elif (cell.name, seed) not in present:
                what = {'study': study.name, 'cell': cell.name, 'seed': seed}
                workdir = _workdir(study, cell, seed, ROOT / options.runs)
                missing.append(({**what, 'status': '', 'command': command}, arguments, workdir))
            elif present[cell.name, seed] != command:
                sys.exit(
                    f'{results} has a row of cell {cell.name!r}, seed {seed}, by another command:\n'
                    f'  {present[cell.name, seed]}\nnow\n  {command}\nDelete the row or rename the cell.'
                )
    _run_missing(missing, options, results)


def _run_missing(missing, options, results):
    """Runs each (row, arguments, workdir), `options.jobs` at a time, and adds a row after each run."""
    STOPPING.clear()

    def work(run):
        is_over = STOPPING.is_set() or time.time() > options.until
        return None if is_over else run_cell(*run)

    with ThreadPoolExecutor(options.jobs) as pool:
        workdirs = {pool.submit(work, run): run[-1] for run in missing}
        try:
            for future in as_completed(workdirs):
                row = future.result()
                if row is None:
                    continue
                append_row(results, row)
                # After the row is written: a study that is killed in between must not train again.
                if not options.keep:
                    shutil.rmtree(workdirs[future] / 'checkpoints', ignore_errors=True)
                _print_row(row)
        except BaseException:
            STOPPING.set()
            raise


def train_arguments(
    study: Study, cell: Cell, seed: int, extra: Mapping[str, object], runs: Path = Path('runs')
) -> list[str]:
    """Returns the training command of a run, without 'python'.

    Args:
      study: the study.
      cell: its cell.
      seed: the seed.
      extra: settings that override the cell's.
      runs: folder of all runs.
    """
    settings = {**cell.settings, 'seed': seed, **extra}
    overrides = [f'--config.{key}={value}' for key, value in settings.items()]
    workdir = _workdir(study, cell, seed, runs)
    command = ['-m', 'mtdml_jax', 'train', f'--config={study.config}', f'--workdir={workdir}']
    return command + overrides


def _workdir(study, cell, seed, runs):
    return runs / study.name / cell.name / f'seed{seed}'


def run_cell(row: dict, arguments: Sequence[str], workdir: Path) -> dict:
    """Trains and evaluates one run.

    Args:
      row: what identifies the run.
      arguments: the training command, without 'python'.
      workdir: the run's folder.

    Returns:
      `row` with status 'done' or 'diverged' and the measurements.

    Raises:
      SystemExit: the command failed, with what it printed.
      KeyboardInterrupt: it was stopped.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    # If this run is stopped, the evaluation of an older run must not pass for its own.
    (workdir / 'evaluation.json').unlink(missing_ok=True)
    software = describe_software()
    log = workdir / 'log.txt'
    code = execute([sys.executable, *arguments], log)
    if code == STOPPED:
        raise KeyboardInterrupt
    if code not in (0, DIVERGED):
        printed = log.read_text(encoding='utf-8', errors='replace')[-4000:]
        sys.exit(f'{row["command"]}\nended with exit code {code}:\n{printed}')
    status = 'diverged' if code == DIVERGED else 'done'
    return {**row, 'status': status, **software, **measurements(workdir)}


def execute(command: Sequence[str], log: Path) -> int:
    """Runs a command in the project's folder, with its output in `log`; returns its exit code.

    On Ctrl-C or SIGTERM, or when the study is `STOPPING`, it sends SIGTERM and waits until the command
    has saved a checkpoint.
    """
    with log.open('w', encoding='utf-8') as output:
        # A session of its own keeps the terminal's Ctrl-C away, which would end it before it saves.
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            while not STOPPING.is_set():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return process.wait(timeout=1)
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise


def measurements(workdir: Path) -> dict[str, object]:
    """Reads the columns of a row from the files of a run; a run that diverged has fewer.

    'seconds' is the time of training without evaluation, over all its starts, and 'device' is where it
    ran. 'train_...' are means over the last logged steps, lists by slice as JSON. 'validation_...' are
    from the last validation. 'collapsed_slices' counts the slices whose collapse score there is above
    the alarm's.
    """
    found, lines = {}, read_metrics(workdir / 'metrics.jsonl')
    for line in lines:
        found |= {x.replace('/', '_'): y for x, y in line.items() if x.startswith('validation/')}
    history = [x for x in lines if 'train/loss' in x]
    if history:
        last = history[-1]
        found |= {f'train_{name}': last[f'train/{name}'] for name in TRAIN_SCALARS}
        active, incomplete, collapse = (
            last[f'train/slice_{x}'] for x in ('active_share', 'incomplete_share', 'collapse')
        )
        found['active_share'] = sum(active) / len(active)
        found['incomplete_share'] = sum(incomplete) / len(incomplete)
        found['collapsed_slices'] = sum(score > COLLAPSED for score in collapse)
        found['train_active_share'] = json.dumps(active)
        found['train_collapse'] = json.dumps(collapse)
    path = workdir / 'evaluation.json'
    if path.exists():
        evaluation = json.loads(path.read_text(encoding='utf-8'))
        found |= {name: evaluation['run'][name] for name in ('seconds', 'device')}
        for name, scores in evaluation['classifiers'].items():
            found[f'{name}_accuracy'] = scores['accuracy']
            found[f'{name}_mean_class_accuracy'] = scores['mean_class_accuracy']
        found |= evaluation['retrieval']
        found['slices'] = json.dumps(evaluation['slices'])
    return found


def _print_row(row):
    scores = ('knn_accuracy', 'softmax_accuracy', 'active_share', 'collapsed_slices', 'seconds')
    found = ', '.join(f'{name} {row[name]:.4g}' for name in scores if name in row)
    print(f'{row["cell"]}, seed {row["seed"]}: {row["status"]}, {found}', flush=True)


def main() -> int:
    """Runs the study that the first argument names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], add_help=False)
    parser.add_argument('name', choices=STUDIES)
    arguments, rest = parser.parse_known_args()
    return run_study(STUDIES[arguments.name], rest)


if __name__ == '__main__':
    sys.exit(main())
