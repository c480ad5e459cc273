"""Tests that a run survives kills, full disks and damaged checkpoints, and ends with the same bits.

    python tests/environments/faults.py [--kills 50] [--others 10] [--only FAULT] [--folder DIR]

Trains a small run on the digits once without a fault. Then trains it many times with one fault each,
starts it again, and compares the final state to the bit and metrics.jsonl to the byte. The faults are
SIGKILL at a random moment, SIGKILL during the writing of a checkpoint, SIGTERM, a truncated file of the
newest checkpoint, and a full disk (needs root, for a tmpfs). Runs that read images from files lose all
images for a while, or the end of one image. Runs of two processes lose the second one by SIGKILL. Prints
a line for each fault and a table; the exit code is 1 if a run failed.
"""

import argparse
import collections
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parents[2]))

from mtdml_jax.__main__ import STOPPED, UNWRITABLE

WRONG = 2  # The exit code of wrong input.
# JAX has two messages for the death of process 1.
SECOND_DIED = re.compile(r'Task 1 heartbeat timeout|stopped sending heartbeats\):\s+1\b')
ROOT = Path(__file__).absolute().parents[2]
SETTINGS = {
    'model.backbone': 'resnet10',
    'model.width_factor': 0.125,
    'model.embedding_size': 32,
    'data.batch_size': 20,
    'eval.gallery_size': 50,
    'train.num_steps': 60,
    'train.log_every': 2,
    'train.checkpoint_every': 4,
}


class Run:
    """A run in its own folder, of one or two processes, with images in memory or in files."""

    def __init__(self, folder, images=None, processes=1):
        """Does not start the run. It reads the files of `images`, by default the digits."""
        self.folder, self.log, self.images = folder, folder.with_suffix('.log'), images
        settings = SETTINGS | {'data.prepared_dir': folder.parent / 'prepared'}
        if images:
            settings |= {'data.name': 'folder', 'data.dir': images, 'data.in_memory': False}
        overrides = [f'--config.{key}={value}' for key, value in settings.items()]
        command = [
            'train',
            '--no-evaluate',
            '--config=configs/digits.py',
            f'--workdir={folder}',
            *overrides,
        ]
        self._command = [sys.executable, '-m', 'mtdml_jax', *command]
        self._processes = processes

    def start(self):
        """Starts or continues the run, and appends its output to the log; returns its processes."""
        port, count = free_port(), self._processes
        joins, environment = [[]], None
        if count > 1:
            joins = [[f'--distributed=127.0.0.1:{port},{count},{i}'] for i in range(count)]
            environment = os.environ | {'JAX_NUM_CPU_DEVICES': '1', 'JAX_PLATFORMS': 'cpu'}
        with self.log.open('a') as log:
            options = {'cwd': ROOT, 'env': environment, 'stdout': log, 'stderr': log}
            return [subprocess.Popen(self._command + join, **options) for join in joins]

    def finish(self):
        """Continues to the end; returns the exit code, 0 if that of all processes is 0."""
        codes = [process.wait() for process in self.start()]
        return next((code for code in codes if code), 0)

    def finished_steps(self):
        """Returns the steps of the complete checkpoints."""
        return sorted(int(x.name) for x in self.folder.glob('checkpoints/*') if x.name.isdigit())

    def result(self):
        """Returns the final state and all metrics as bytes."""
        _, arrays = load_latest(self.folder)
        content = b''.join(x.tobytes() for x in arrays)
        return content, (self.folder / 'metrics.jsonl').read_bytes()


def load_latest(folder):
    """Returns step and arrays of the latest checkpoint of a run on the digits."""
    import jax
    import numpy as np

    from mtdml_jax.config import read_config
    from mtdml_jax.models import make_network
    from mtdml_jax.reports.evaluate import load_checkpoint

    config = read_config(folder)
    config.eval.checkpoint = 'latest'
    state, _ = load_checkpoint(make_network(config.model, 10), config, folder)
    return int(state.step), [np.asarray(x) for x in jax.tree.leaves(state)]


def free_port():
    """Returns a port that no process uses."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return free.getsockname()[1]


def write_images(folder):
    """Writes the digits as files: <split>/<class>/<number>.png."""
    from PIL import Image
    from sklearn import datasets

    images, labels = datasets.load_digits(return_X_y=True)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        split = ('train', 'train', 'train', 'validation', 'test')[number % 5]
        path = folder / split / f'class{label}' / f'{number}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image.reshape(8, 8) * 15).astype('uint8')).save(path)


def wait_for(process, condition, seconds=120):
    """Waits until the condition holds or the process ends; returns whether the condition holds."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.001)
    return False


def kill_anywhen(run, rng, seconds):
    """Sends SIGKILL at a random moment of a run that takes this many seconds."""
    (process,) = run.start()
    time.sleep(rng.uniform(0, seconds))
    process.kill()
    process.wait()
    return f'at steps {run.finished_steps()}'


def kill_while_saving(run, rng, _seconds):
    """Sends SIGKILL while the run writes a checkpoint that is chosen at random."""
    (process,), after = run.start(), rng.randrange(2, SETTINGS['train.num_steps'] - 6, 4)

    def is_saving():
        steps = [x.name.split('.')[0] for x in run.folder.glob('checkpoints/*checkpoint-tmp')]
        return any(int(step) > after for step in steps if step.isdigit())

    met = wait_for(process, is_saving)
    time.sleep(rng.uniform(0, 0.05))
    process.kill()
    process.wait()
    left = [x.name for x in run.folder.glob('checkpoints/*checkpoint-tmp')]
    return f'saving after step {after}: {met}, left half-written: {left}'


def terminate(run, rng, seconds):
    """Sends SIGTERM at a random moment after the first checkpoint."""
    (process,) = run.start()
    wait_for(process, run.finished_steps)
    time.sleep(rng.uniform(0, seconds / 4))
    process.terminate()
    code = process.wait()
    assert code in (0, STOPPED), f'exit code {code}'
    return f'exit code {code} at steps {run.finished_steps()}'


def cut_off_newest(run, rng, _seconds):
    """Kills the run and truncates a file of the newest checkpoint."""
    (process,) = run.start()
    wait_for(process, lambda: len(run.finished_steps()) > 1)
    process.kill()
    process.wait()
    newest = run.folder / 'checkpoints' / str(run.finished_steps()[-1])
    files = [x for x in newest.rglob('*') if x.is_file() and 'success' not in x.name]
    path = rng.choice([x for x in files if x.stat().st_size])
    size = rng.randrange(path.stat().st_size)
    with path.open('rb+') as file:
        file.truncate(size)
    return f'{path.relative_to(run.folder)} cut to {size} bytes'


def fill_disk(run, rng, _seconds):
    """Runs on a small disk until it is full, and then enlarges the disk."""
    size = rng.randrange(1000, 3000)
    run.folder.mkdir()
    subprocess.check_call(['mount', '-t', 'tmpfs', '-o', f'size={size}k', 'tmpfs', run.folder])
    code = run.finish()
    steps = run.finished_steps()
    subprocess.check_call(['mount', '-o', 'remount,size=100m', run.folder])
    assert code in (0, UNWRITABLE), f'exit code {code}'
    return f'{size} kB: exit code {code} at steps {steps}'


def wait_for_any_step(run, process, rng):
    """Waits until a random moment after a checkpoint that is chosen at random."""
    after = rng.randrange(4, SETTINGS['train.num_steps'] - 10, 4)
    wait_for(process, lambda: after <= max(run.finished_steps(), default=0), 600)
    time.sleep(rng.uniform(0, 0.2))


def take_images_away(run, rng, _seconds):
    """Moves the folder of the images away for a while."""
    (process,) = run.start()
    wait_for_any_step(run, process, rng)
    away = run.images.rename(run.images.with_name('away'))
    code = process.wait()
    away.rename(run.images)
    return _images_were_missed(run, code, UNWRITABLE)


def cut_off_image(run, rng, _seconds):
    """Truncates a validation image for a while."""
    (process,) = run.start()
    wait_for_any_step(run, process, rng)
    path = rng.choice(sorted(run.images.glob('validation/*/*')))
    content, stat = path.read_bytes(), path.stat()
    path.write_bytes(content[: rng.randrange(len(content) // 2)])
    code = process.wait()
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return _images_were_missed(run, code, WRONG)


def _images_were_missed(run, code, expected):
    """Checks that the last line names the fault, unless the run needed no more images."""
    *_, line = run.log.read_text().splitlines()
    assert code in (0, expected), f'exit code {code}'
    assert code == 0 or 'cannot be now' in line, line
    assert 'Traceback' not in run.log.read_text()
    return f'exit code {code} at steps {run.finished_steps()}'


def kill_second_process(run, rng, _seconds):
    """Kills the second of two processes at a random moment after the first checkpoint."""
    first, second = run.start()
    wait_for_any_step(run, first, rng)
    second.kill()
    second.wait()
    start = time.monotonic()
    try:
        code = first.wait(timeout=60)
    finally:
        first.kill()
    took = time.monotonic() - start
    assert code == 0 or SECOND_DIED.search(run.log.read_text()), (
        'no message says which process died'
    )
    return f'the first ended after {took:.0f} s, exit code {code}, at steps {run.finished_steps()}'


def try_fault(fault, run, rng, seconds, expected):
    """Whether a run with the fault ends with the expected result; prints what happened."""
    steps, said = [], ''
    try:
        said = fault(run, rng, seconds)
        steps = run.finished_steps()
        code = run.finish()
        assert code == 0, f'exit code {code} of the second start'
        assert run.result() == expected, 'another result'
        survived = True
    except (AssertionError, OSError, ValueError, subprocess.TimeoutExpired) as error:
        said, survived = f'{said} FAILED: {error}', False
    print(f'{fault.__name__}: {said}; then steps {steps}', flush=True)
    if fault is fill_disk:
        subprocess.call(['umount', run.folder])
    if survived:
        shutil.rmtree(run.folder)
        run.log.unlink()
    return survived


# Faults of runs that read images from files, and of runs of two processes.
ON_DISK = (take_images_away, cut_off_image)
OF_TWO = (kill_second_process,)


def make_run(fault, folder, name):
    """Makes the run for a fault."""
    images = folder / 'images' if fault in ON_DISK else None
    if images and not images.exists():
        write_images(images)
    return Run(folder / name, images, processes=2 if fault in OF_TWO else 1)


def run_undisturbed(run):
    """Returns the seconds of a run without a fault, and its result."""
    run.finish()  # Prepares the data and fills the cache of compiled programs.
    shutil.rmtree(run.folder)
    start = time.monotonic()
    code = run.finish()
    seconds = time.monotonic() - start
    if code:
        sys.exit(f'an undisturbed run ended with exit code {code}: {run.log}')
    print(f'{run.folder.name}: {seconds:.0f} s', flush=True)
    return seconds, run.result()


def main():
    """Tries the faults; returns the exit code."""
    kills = [kill_anywhen, kill_while_saving]
    others = [terminate, cut_off_newest, fill_disk, *ON_DISK, *OF_TWO]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--kills', type=int, default=50, help='half of them while saving')
    parser.add_argument('--others', type=int, default=10, help='of each other fault')
    parser.add_argument('--only', choices=[x.__name__ for x in kills + others])
    parser.add_argument('--folder', type=Path, default=Path('/tmp/mtdml_jax_faults'))
    parser.add_argument('--seed', type=int, default=0)
    arguments = parser.parse_args()
    folder, rng = arguments.folder.absolute(), random.Random(arguments.seed)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    faults = kills * (arguments.kills // 2) + others * arguments.others
    faults = [x for x in faults if arguments.only in (None, x.__name__)]
    undisturbed, survived = {}, collections.Counter()
    for number, fault in enumerate(faults):
        kind = fault in ON_DISK, fault in OF_TWO
        if kind not in undisturbed:
            undisturbed[kind] = run_undisturbed(make_run(fault, folder, f'undisturbed-{number}'))
        run = make_run(fault, folder, f'{number}-{fault.__name__}')
        survived[fault.__name__] += try_fault(fault, run, rng, *undisturbed[kind])
    tried = collections.Counter(x.__name__ for x in faults)
    print('| fault | runs | ended with the same bits |\n|---|---|---|')
    for name, count in tried.items():
        print(f'| {name.replace("_", " ")} | {count} | {survived[name]} |')
    return int(survived != tried)


if __name__ == '__main__':
    sys.exit(main())
