"""What a run survives: kills, full disks, damaged checkpoints. Every one must end with the same bits.

    python experiments/checks/faults.py [--kills 50] [--others 10] [--folder DIR] [--seed 0]

A small run on the digits is trained once undisturbed. Then it is trained again and again, each time with
one fault, started again, and compared: the final state to the bit, metrics.jsonl to the byte. Faults are
SIGKILL at a random moment, SIGKILL while a checkpoint is being written, SIGTERM, a file of the newest
checkpoint cut off at random, and a disk that is full (needs root, for a tmpfs). Prints a line for each
and a table; ends with 1 if one of them failed.
"""

import argparse
import collections
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parents[2]))

from mtdml_jax.__main__ import STOPPED, UNWRITABLE

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
# The worker trains without the evaluation that follows.
WORKER = """
import sys
from mtdml_jax.__main__ import main
from mtdml_jax.training import commands
commands._finish = lambda *_: 0
sys.exit(main(sys.argv[1:]))
"""


class Run:
    """One run in a folder of its own."""

    def __init__(self, folder, prepared):
        """Not started yet."""
        self.folder, self.log = folder, folder.with_suffix('.log')
        settings = SETTINGS | {'data.prepared_dir': prepared}
        overrides = [f'--config.{key}={value}' for key, value in settings.items()]
        command = ['train', '--config=configs/digits.py', f'--workdir={folder}', *overrides]
        self._command = [sys.executable, '-c', WORKER, *command]

    def start(self):
        """Starts, or goes on; what it prints is added to its log."""
        with self.log.open('a') as log:
            return subprocess.Popen(self._command, cwd=ROOT, stdout=log, stderr=log)

    def finish(self):
        """Goes on to the end; its exit code."""
        return self.start().wait()

    def finished_steps(self):
        """Steps of the checkpoints that are complete."""
        return sorted(int(x.name) for x in self.folder.glob('checkpoints/*') if x.name.isdigit())

    def result(self):
        """The final state and all metrics, as bytes."""
        _, arrays = load_latest(self.folder)
        content = b''.join(x.tobytes() for x in arrays)
        return content, (self.folder / 'metrics.jsonl').read_bytes()


def load_latest(folder):
    """Step and arrays of the latest checkpoint of a run on the digits."""
    import jax
    import numpy as np

    from mtdml_jax.config import read_config
    from mtdml_jax.evaluation.evaluate import load_checkpoint
    from mtdml_jax.models import make_network

    config = read_config(folder)
    config.eval.checkpoint = 'latest'
    state, _ = load_checkpoint(make_network(config.model, 10), config, folder)
    return int(state.step), [np.asarray(x) for x in jax.tree.leaves(state)]


def wait_for(process, condition, seconds=120):
    """Waits until something is so, or the process has ended; whether it is so."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.001)
    return False


def kill_anywhen(run, rng, seconds):
    """SIGKILL at a random moment of a run that would take so long."""
    process = run.start()
    time.sleep(rng.uniform(0, seconds))
    process.kill()
    process.wait()
    return f'at steps {run.finished_steps()}'


def kill_while_saving(run, rng, _seconds):
    """SIGKILL while a checkpoint, chosen at random, is being written."""
    process, after = run.start(), rng.randrange(2, SETTINGS['train.num_steps'] - 6, 4)

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
    """SIGTERM at a random moment after the first checkpoint."""
    process = run.start()
    wait_for(process, run.finished_steps)
    time.sleep(rng.uniform(0, seconds / 4))
    process.terminate()
    code = process.wait()
    assert code in (0, STOPPED), f'exit code {code}'
    return f'exit code {code} at steps {run.finished_steps()}'


def cut_off_newest(run, rng, _seconds):
    """After a kill, the end of a file of the newest checkpoint is missing."""
    process = run.start()
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
    """A disk that becomes full, and then larger."""
    size = rng.randrange(1000, 3000)
    run.folder.mkdir()
    subprocess.check_call(['mount', '-t', 'tmpfs', '-o', f'size={size}k', 'tmpfs', run.folder])
    code = run.finish()
    steps = run.finished_steps()
    subprocess.check_call(['mount', '-o', 'remount,size=100m', run.folder])
    assert code in (0, UNWRITABLE), f'exit code {code}'
    return f'{size} kB: exit code {code} at steps {steps}'


def try_fault(fault, run, rng, seconds, expected):
    """Whether a run with the fault, started again, ends as if nothing had been; prints what happened."""
    steps, said = [], ''
    try:
        said = fault(run, rng, seconds)
        steps = run.finished_steps()
        code = run.finish()
        assert code == 0, f'exit code {code} of the second start'
        assert run.result() == expected, 'another result'
        survived = True
    except (AssertionError, OSError, ValueError) as error:
        said, survived = f'{said} FAILED: {error}', False
    print(f'{fault.__name__}: {said}; then steps {steps}', flush=True)
    if fault is fill_disk:
        subprocess.call(['umount', run.folder])
    if survived:
        shutil.rmtree(run.folder)
        run.log.unlink()
    return survived


def main():
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--kills', type=int, default=50, help='half of them while saving')
    parser.add_argument('--others', type=int, default=10, help='of each other fault')
    parser.add_argument('--folder', type=Path, default=Path('/tmp/mtdml_jax_faults'))
    parser.add_argument('--seed', type=int, default=0)
    arguments = parser.parse_args()
    folder, rng = arguments.folder.absolute(), random.Random(arguments.seed)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    undisturbed = Run(folder / 'undisturbed', folder / 'prepared')
    undisturbed.finish()  # Prepares the data, and fills the cache of compiled programs.
    shutil.rmtree(undisturbed.folder)
    start = time.monotonic()
    code = undisturbed.finish()
    seconds = time.monotonic() - start
    if code:
        sys.exit(f'the undisturbed run ended with exit code {code}: {undisturbed.log}')
    expected = undisturbed.result()
    print(f'undisturbed: {seconds:.0f} s', flush=True)
    faults = [kill_anywhen, kill_while_saving] * (arguments.kills // 2)
    faults += [terminate, cut_off_newest, fill_disk] * arguments.others
    survived, tried = collections.Counter(), collections.Counter(x.__name__ for x in faults)
    for number, fault in enumerate(faults):
        run = Run(folder / f'{number}-{fault.__name__}', folder / 'prepared')
        survived[fault.__name__] += try_fault(fault, run, rng, seconds, expected)
    print('| fault | runs | ended with the same bits |\n|---|---|---|')
    for name, count in tried.items():
        print(f'| {name.replace("_", " ")} | {count} | {survived[name]} |')
    return int(survived != tried)


if __name__ == '__main__':
    sys.exit(main())
