"""The training step on a CPU beside the same network in PyTorch: images per second, and where time goes.

    python experiments/benchmark_training.py [--widths 16 32 64] [--rounds 3] [--profile]

ResNet-18 on grey faces of 48 px, batch 64, with 16, 32 and 64 channels in the first stage. Ours is the
whole step of configs/default.py: multi-threshold loss, softmax, clipping, AdamW. PyTorch's has softmax
and AdamW alone. Contestants take turns, each time in a process of its own, with malloc as it is and
with the huge pages that `python -m mtdml_jax` asks for; rates are medians over the rounds. PyTorch goes
into the environment beside the package; without it ours runs alone:

    pip install '.[train]' torch==2.13.0

--profile prints instead the milliseconds of our step by kind of operation.
"""

import argparse
import collections
import gzip
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from mtdml_jax.huge_pages import TUNABLES

# jax and torch are imported in the processes that measure them.

BATCH, SIDE, CLASSES, EMBEDDING = 64, 48, 7, 256
WARM_UP, TIMINGS, STEPS = 3, 8, 4
OURS = 'ours'
CONTESTANTS = (OURS, 'torch', 'torch, channels_last')


def prepare_ours(width):
    """(step, arguments): our compiled training step and its first state and batch."""
    from flax import jax_utils

    from mtdml_jax.config import load_config
    from mtdml_jax.training.loop import AXIS, make_training, split_over_devices

    overrides = (f'data.batch_size={BATCH}', f'model.width_factor={width / 64}')
    config = load_config('configs/default.py', [f'--config.{x}' for x in overrides])
    _, state, step = make_training(config, np.ones(CLASSES, int))
    images = np.random.default_rng(0).standard_normal((BATCH, SIDE, SIDE, 1), np.float32)
    labels, mask = np.arange(BATCH, dtype=np.int32) % CLASSES, np.ones(BATCH, bool)
    batch = split_over_devices({'image': images, 'label': labels, 'mask': mask})
    return step, (jax_utils.replicate(state, axis_name=AXIS), batch)


def make_ours(width):
    """A function that takes a number of our training steps."""
    import jax

    step, (state, batch) = prepare_ours(width)

    def run(steps):
        nonlocal state
        for _ in range(steps):
            state, _ = step(state, batch)
        jax.block_until_ready(state)

    return run


def make_torch(width, channels_last):
    """A function that takes a number of PyTorch's training steps."""
    import torch
    from torch import nn
    from torch_resnet import TorchResNet

    torch.set_num_threads(os.cpu_count())
    backbone = TorchResNet('resnet18', width=width, stem='small', channels=1)
    head = nn.Linear(backbone.num_features, EMBEDDING), nn.Linear(EMBEDDING, CLASSES, bias=False)
    network = nn.Sequential(backbone, *head)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = network.to(memory_format=layout)
    images = torch.randn(BATCH, 1, SIDE, SIDE).to(memory_format=layout)
    labels = torch.arange(BATCH) % CLASSES
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)

    def run(steps):
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images), labels).backward()
            optimizer.step()

    return run


def measure(name, width):
    """Images per second of a contestant in this process."""
    run = make_ours(width) if name == OURS else make_torch(width, 'channels_last' in name)
    run(WARM_UP)
    seconds = []
    for _ in range(TIMINGS):
        start = time.perf_counter()
        run(STEPS)
        seconds.append((time.perf_counter() - start) / STEPS)
    return BATCH / statistics.median(seconds)


def measure_alone(name, width, huge_pages):
    """`measure` in a new process, with or without huge pages."""
    environment = {k: v for k, v in os.environ.items() if k != 'GLIBC_TUNABLES'}
    environment |= {'GLIBC_TUNABLES': TUNABLES} if huge_pages else {}
    command = [sys.executable, __file__, '--measure', name, '--widths', str(width)]
    root = Path(__file__).parents[1]
    done = subprocess.run(
        command, env=environment, cwd=root, check=True, text=True, stdout=subprocess.PIPE
    )
    return float(done.stdout)


def compare(widths, rounds):
    """Prints a table of rates and their ratios to plain PyTorch."""
    import jax

    names = CONTESTANTS if importlib.util.find_spec('torch') else (OURS,)
    print(f'jax {jax.__version__}, medians of {rounds} rounds, images/s (ratio to plain torch)')
    print('| width | contestant | malloc as it is | with huge pages |\n|---|---|---|---|')
    for width in widths:
        rates = collections.defaultdict(list)
        for _ in range(rounds):
            for key in ((name, huge) for name in names for huge in (False, True)):
                rates[key].append(measure_alone(key[0], width, key[1]))
        medians = {key: statistics.median(values) for key, values in rates.items()}
        reference = medians.get(('torch', False), float('nan'))
        for name in names:
            cells = (medians[name, huge] for huge in (False, True))
            cells = ' | '.join(f'{rate:.0f} ({rate / reference:.2f})' for rate in cells)
            print(f'| {width} | {name} | {cells} |', flush=True)


def kind_of(line, body):
    """What an instruction of the compiled step belongs to; `body`: the computation that it calls."""
    origin = ' '.join(re.findall(r'op_name="([^"]*)"', line + body))
    if ' convolution(' in line + body:
        if 'transpose(' in origin:
            return 'convolutions, gradients of inputs'
        # The gradients of kernels lose their name when XLA rewrites them.
        return 'convolutions, forward' if 'jvp(' in origin else 'convolutions, gradients of kernels'
    if re.match(r'\s*(ROOT )?%(transpose|copy)', line):
        return 'layout changes for the gradients of kernels, copies'
    if 'backbone' in origin:
        return 'BatchNorm, ReLU, shortcuts'
    return 'the rest: losses, optimizer, metrics'


def profile(width):
    """Prints the milliseconds of our step by `kind_of`, on all cores together as XLA sees them."""
    import jax

    step, (state, batch) = prepare_ours(width)
    text = step.lower(state, batch).compile().as_text()
    computations = {part.split(' ', 1)[0]: part for part in text.split('\n\n')}
    kinds = {}
    for line in text.splitlines():
        found = re.match(r'\s*(?:ROOT )?%([\w.\-]+) = ', line)
        if found:
            called = re.search(r'calls=(%[\w.\-]+)', line)
            kinds[found[1]] = kind_of(line, computations.get(called[1], '') if called else '')
    for _ in range(WARM_UP):
        state, _ = step(state, batch)
    jax.block_until_ready(state)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(STEPS):
                state, _ = step(state, batch)
            jax.block_until_ready(state)
        (path,) = Path(folder).rglob('*.trace.json.gz')
        events = json.loads(gzip.decompress(path.read_bytes()))['traceEvents']
    milliseconds = collections.Counter()
    for event in events:
        operation = event.get('args', {}).get('hlo_op')
        if operation in kinds:
            milliseconds[kinds[operation]] += event['dur'] / 1e3 / STEPS
    print(f'jax {jax.__version__}, width {width}')
    for kind, total in milliseconds.most_common():
        print(f'{total:8.2f} ms  {total / milliseconds.total():4.0%}  {kind}')


def main():
    """Prints the table, or the profile."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--widths', type=int, nargs='+', default=[16, 32, 64])
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--profile', action='store_true')
    parser.add_argument('--measure', choices=CONTESTANTS, help='print the rate of one alone')
    arguments = parser.parse_args()
    if arguments.measure:
        print(measure(arguments.measure, arguments.widths[0]))
    elif arguments.profile:
        for width in arguments.widths:
            profile(width)
    else:
        compare(arguments.widths, arguments.rounds)


if __name__ == '__main__':
    main()
