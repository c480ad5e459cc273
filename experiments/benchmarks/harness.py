"""What the benchmarks share: turns, new processes, time limits, medians, tables, and rows of results.

Contestants take turns, round by round, so that a slow minute of the machine meets all of them.
"""

import argparse
import contextlib
import math
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from queue import Empty
from unittest import mock

sys.path.insert(0, str(Path(__file__).absolute().parents[1]))

from record import ROOT

MEASUREMENT_SECONDS = 0.05
# Held while os.environ has the variables of a process that is about to start.
ENVIRONMENT = threading.Lock()


def make_parser(doc, rounds=None, **options):
    """A parser with --output and, unless `rounds` is None, --rounds."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0], **options)
    folder = ROOT / 'experiments'
    parser.add_argument('--output', type=Path, default=folder, help='folder of results/, figures/')
    if rounds:
        parser.add_argument('--rounds', type=int, default=rounds)
    return parser


@contextlib.contextmanager
def new_process(**variables):
    """Yields a function that calls others in one new process with these environment variables."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn')) as pool:

        def call(function, *arguments):
            with ENVIRONMENT, mock.patch.dict(os.environ, variables):
                future = pool.submit(function, *arguments)
            return future.result()

        yield call


def in_new_process(function, *arguments, **variables):
    """Returns the result of a call in a new process with these environment variables."""
    with new_process(**variables) as call:
        return call(function, *arguments)


def rows_of_process(function, *arguments, deadline, **variables):
    """Yields the rows that a function puts into a queue, in a new process, until the deadline.

    The function's last argument is the queue. A failure or the deadline (time.time()) is the last row.
    """
    context = multiprocessing.get_context('spawn')
    queue = context.Queue()
    process = context.Process(target=function, args=(*arguments, queue))
    with ENVIRONMENT, mock.patch.dict(os.environ, variables):
        process.start()
    while (process.is_alive() and time.time() < deadline) or not queue.empty():
        with contextlib.suppress(Empty):
            yield queue.get(timeout=0.5)
    if process.is_alive():
        process.kill()
        yield {'failed': 'stopped at the limit'}
    process.join()
    if process.exitcode > 0:
        yield {'failed': f'exit code {process.exitcode}'}


def run_python(command, **variables):
    """Runs Python with arguments in the project's folder; yields and prints the lines of its output."""
    with ENVIRONMENT:
        environment = os.environ | variables
    command, line = [sys.executable, *map(str, command)], ''
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'text': True}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as process:
        for line in process.stdout:
            print(line, end='', flush=True)
            yield line
    if process.returncode:
        raise RuntimeError(f'exit code {process.returncode} of {command}: {line.strip()}')


def call_logged(function, arguments, log):
    """Calls a function with the output of this process in a file."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    function(*arguments)


def run_limited(function, arguments, *, seconds, log):
    """Calls a function in a new process with a time limit and a log; returns how it ended."""
    context = multiprocessing.get_context('spawn')
    process = context.Process(target=call_logged, args=(function, arguments, log))
    process.start()
    process.join(seconds)
    end = 'done' if process.exitcode == 0 else f'failed with exit code {process.exitcode}'
    if process.is_alive():
        end = f'stopped at its limit of {seconds:g} s'
        for pid in [*descendants(process.pid), process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    process.join()
    return end


def descendants(pid):
    """The processes below a process, also those with a session of their own."""
    parents = {}
    for path in Path('/proc').glob('[0-9]*/stat'):
        with contextlib.suppress(OSError):  # The process has ended meanwhile.
            # The fields are number, (name), state, parent. The name may contain anything.
            parents[int(path.parent.name)] = int(path.read_text().rpartition(')')[2].split()[1])
    found = [pid]
    for ancestor in found:  # The list grows during the loop.
        found += [child for child, parent in parents.items() if parent == ancestor]
    return found[1:]


def medians_in_turns(calls, rounds):
    """Medians over rounds in which all calls take turns.

    Args:
      calls: name -> function that returns a dict of numbers.
      rounds: number of rounds.

    Returns:
      A dict name -> dict of medians.
    """
    found = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            found[name].append(call())
    return {
        name: {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        for name, rows in found.items()
    }


def timed(call, repeats=1):
    """Seconds of a call, averaged over repeated calls."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def time_in_turns(calls, rounds):
    """Median seconds of each call over rounds in which all calls take turns in this process."""

    def turn(call, repeats):
        call()  # The threads of the previous contestant may still be spinning.
        return {'seconds': timed(call, repeats)}

    repeats = {name: math.ceil(MEASUREMENT_SECONDS / timed(call)) for name, call in calls.items()}
    turns = {name: lambda name=name: turn(calls[name], repeats[name]) for name in calls}
    return {name: row['seconds'] for name, row in medians_in_turns(turns, rounds).items()}


def kilobytes(path, key):
    """A value of a status file of Linux."""
    lines = Path(path).read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def memory(key='VmRSS'):
    """The resident memory of this process in MB, or with 'VmHWM' its peak."""
    return kilobytes('/proc/self/status', key) * 1024 / 1e6


@contextlib.contextmanager
def other_processes():
    """Prints at the end which share of the cores other processes took."""

    def seconds():
        ticks = [int(x) for x in Path('/proc/stat').read_text().splitlines()[0].split()[1:9]]
        busy = sum(ticks) - sum(ticks[3:5])  # without idle time and waiting for disks
        return busy / os.sysconf('SC_CLK_TCK') - sum(os.times()[:4])

    start, before = time.perf_counter(), seconds()
    yield
    share = (seconds() - before) / (time.perf_counter() - start) / os.cpu_count()
    print(f'Other processes took {share:.1%} of the cores meanwhile.')


def table(header, rows):
    """Lines of a Markdown table; floats have four digits."""

    def show(value):
        is_float = isinstance(value, float)
        return f'{value:.4g}' if is_float else str(value).replace('|', '/')

    lines = [header, ['---'] * len(header), *rows]
    return ['| ' + ' | '.join(map(show, line)) + ' |' for line in lines]
