"""The training step beside the same network in PyTorch: images per second, and where time goes.

    python experiments/benchmarks/benchmark_training.py [--widths 16 32 64] [--rounds 9]
    python experiments/benchmarks/benchmark_training.py --backbone ir50 --side 112 --batch 8 --widths 64

On a CPU: by default ResNet-18 on grey faces of 48 px, batch 64, with 16, 32 and 64 channels in the first
stage. Other backbones get colour images. Contestants take turns, each in a process of its own, with
malloc as it is and with the huge pages that `python -m mtdml_jax` asks for. Rates are medians over the
rounds, and ratios medians of those in each round. Adds rows to results/training_step.csv. On a GPU, for
on_gpu.py: ResNet-18 without reduction in the stem at 48 px and ResNet-50 at 224 px, in float32 (products
in TF32) and in bfloat16 (PyTorch: autocast, channels_last, with and without torch.compile), over batch
sizes, with the memory of the device. Our step is the whole step of configs/default.py: multi-threshold
loss, softmax, clipping, AdamW. PyTorch's step has softmax and AdamW alone. PyTorch is installed beside
the package; without it the script measures our step alone:

    pip install '.[train]' torch==2.13.0
"""

import contextlib
import functools
import hashlib
import importlib.util
import itertools
import math
import os
import statistics
import sys
import time
from functools import partial
from typing import NamedTuple

import numpy as np
from harness import (
    ROOT,
    make_parser,
    new_process,
    rows_of_process,
    table,
    timed,
)
from record import record

from mtdml_jax.host.system import TUNABLES

# The processes that measure import jax or torch.
sys.path.append(str(ROOT / 'tests' / 'environments'))

CLASSES, EMBEDDING = 7, 256
WARM_UP, TIMINGS = 3, 8
STEPS = {'cpu': 4, 'gpu': 20}
OURS = 'ours'
CONTESTANTS = (OURS, 'PyTorch', 'PyTorch, channels_last')
MALLOC = {'as it is': '', 'huge pages': TUNABLES}
REPRODUCIBLE = '--xla_gpu_exclude_nondeterministic_ops=true'
GPU_CONTESTANTS = (
    'ours, bfloat16',
    'torch, bfloat16, channels_last',
    'ours, float32',
    'torch, float32, channels_last',
    'torch, bfloat16, channels_last, compiled',
    'ours, bfloat16, reproducible',
)


class Network(NamedTuple):
    """A ResNet with `width` channels in its first stage, for images of `side` pixels."""

    backbone: str = 'resnet18'
    width: int = 64
    stem: str = 'small'
    side: int = 48
    channels: int = 1


# Name -> network, batch sizes.
GPU_NETWORKS = {
    'resnet18': (Network(stem='cifar'), (128, 512, 1024)),
    'resnet50': (Network('resnet50', 64, 'imagenet', 224, 3), (128, 512)),
    'tiny': (Network(width=4, side=16), (8,)),  # Tests the script on a CPU.
}


def make_config(network, batch, dtype='float32', *, micro_batch=0):
    """The config of our training step."""
    from mtdml_jax.config import load_config

    overrides = {
        'data.batch_size': batch,
        'data.micro_batch': micro_batch,
        'data.image_size': network.side,
        'data.channels': network.channels,
        'model.backbone': network.backbone,
        'model.stem': network.stem,
        'model.width_factor': network.width / 64,
        'model.dtype': dtype,
    }
    path = str(ROOT / 'configs' / 'default.py')
    return load_config(path, [f'--config.{key}={value}' for key, value in overrides.items()])


def prepare_ours(network, batch, dtype='float32', *, micro_batch=0):
    """(step, arguments): our compiled training step and its first state and batch."""
    import jax

    from mtdml_jax.training.devices import make_mapping
    from mtdml_jax.training.setup import make_training

    config = make_config(network, batch, dtype, micro_batch=micro_batch)
    _, state, step = make_training(config, np.ones(CLASSES, int))
    shape = (batch, network.side, network.side, network.channels)
    images = np.random.default_rng(0).standard_normal(shape, np.float32)
    labels, mask = np.arange(batch, dtype=np.int32) % CLASSES, np.ones(batch, bool)
    mapping = make_mapping(config.train.mapping)
    batch = mapping.split({'image': images, 'label': labels, 'mask': mask})
    # The batch stays on the devices, so that no step waits for it.
    return step, (mapping.replicate(state), jax.pmap(lambda x: x)(batch))


def make_ours(network, batch, dtype='float32', *, micro_batch=0):
    """(function that takes a number of our training steps, function that returns XLA's memory plan)."""
    import jax

    step, (state, batch) = prepare_ours(network, batch, dtype, micro_batch=micro_batch)

    def run(steps):
        nonlocal state
        for _ in range(steps):
            state, _ = step(state, batch)
        jax.block_until_ready(state)

    def planned():
        return step.lower(state, batch).compile().memory_analysis().temp_size_in_bytes

    return run, planned


def make_torch(network, batch, *, dtype, channels_last, compiled):
    """A function that takes a number of PyTorch's training steps, on a GPU if there is one."""
    import torch
    from torch import nn
    from torch_ir import TorchIR
    from torch_resnet import TorchResNet

    torch.set_num_threads(os.cpu_count())
    torch.backends.cudnn.benchmark = torch.backends.cuda.matmul.allow_tf32 = True
    on_gpu = torch.cuda.is_available()
    device = torch.device('cuda' if on_gpu else 'cpu')
    settings = {'width': network.width, 'stem': network.stem, 'channels': network.channels}
    is_ir = network.backbone == 'ir50'
    backbone = TorchIR() if is_ir else TorchResNet(network.backbone, **settings)
    head = nn.Linear(backbone.num_features, EMBEDDING), nn.Linear(EMBEDDING, CLASSES, bias=False)
    model = nn.Sequential(backbone, *head)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = model.to(device, memory_format=layout)
    images = torch.randn(batch, network.channels, network.side, network.side, device=device)
    images = images.to(memory_format=layout)
    labels = torch.arange(batch, device=device) % CLASSES
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=on_gpu)
    forward = torch.compile(model) if compiled else model

    def run(steps):
        for _ in range(steps):
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=dtype == 'bfloat16'):
                loss = nn.functional.cross_entropy(forward(images), labels)
            loss.backward()
            optimizer.step()
        if on_gpu:
            torch.cuda.synchronize()

    return run


def make_run(name, network, batch):
    """The contestant's function that takes a number of steps."""
    dtype = 'bfloat16' if 'bfloat16' in name else 'float32'
    if name.startswith(OURS):
        return make_ours(network, batch, dtype)[0]
    options = {'channels_last': 'channels_last' in name, 'compiled': 'compiled' in name}
    return make_torch(network, batch, dtype=dtype, **options)


@functools.cache
def warm_run(name, network, batch):
    """The same function, once in this process and after some steps."""
    run = make_run(name, network, batch)
    run(WARM_UP)
    return run


def measure(name, network, batch, device='cpu', timings=1):
    """Images per second of a contestant in this process."""
    run, steps = warm_run(name, network, batch), STEPS[device]
    run(1)  # What others did meanwhile has emptied the caches.
    return batch * steps / statistics.median(timed(partial(run, steps)) for _ in range(timings))


def peak_memory(name):
    """The peak of the GPU memory that this process has used, in bytes."""
    if name.startswith(OURS):
        import jax

        stats = jax.local_devices()[0].memory_stats()  # None on a CPU.
        return stats['peak_bytes_in_use'] if stats else math.nan
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else math.nan


def measure_on_gpu(name, key, queue):
    """Puts a row for each batch size, smallest first, into a queue."""
    network, batches = GPU_NETWORKS[key]
    for batch in batches:
        start = time.perf_counter()
        row = {'batch': batch, 'images_per_second': measure(name, network, batch, 'gpu', TIMINGS)}
        queue.put(
            row | {'gigabytes': peak_memory(name) / 1e9, 'seconds': time.perf_counter() - start}
        )
        warm_run.cache_clear()  # The next batch size finds the memory free.


def compare_on_gpu(small, deadline):
    """Yields a row for each contestant, network and batch size, until the deadline (time.time())."""
    has_torch = importlib.util.find_spec('torch')
    names = [name for name in GPU_CONTESTANTS if has_torch or name.startswith(OURS)]
    keys = ('tiny',) if small else ('resnet18', 'resnet50')
    for name, key in itertools.product(names, keys):
        flags = f'{REPRODUCIBLE * ("reproducible" in name)} {os.environ.get("XLA_FLAGS", "")}'
        what = {'network': key, 'contestant': name}
        rows = rows_of_process(
            measure_on_gpu, name, key, deadline=deadline, XLA_FLAGS=flags.strip()
        )
        yield from (what | row for row in rows)


def compare(network, options):
    """Prints a table of rates and their ratios to plain PyTorch, and adds the rows."""
    names = CONTESTANTS if importlib.util.find_spec('torch') else (OURS,)
    keys, lines = [*itertools.product(names, MALLOC)], []
    with contextlib.ExitStack() as stack:
        starts = {key: new_process(GLIBC_TUNABLES=MALLOC[key[1]]) for key in keys}
        calls = {key: stack.enter_context(start) for key, start in starts.items()}

        def turn():
            return {
                key: call(measure, key[0], network, options.batch) for key, call in calls.items()
            }

        turn()  # Compiles.
        rounds = [turn() for _ in range(options.rounds)]
    for key in keys:
        ratios = [rates[key] / rates.get(('PyTorch', 'as it is'), math.nan) for rates in rounds]
        what = {'channels': network.width, 'contestant': key[0], 'malloc': key[1]}
        what['images_per_second'] = round(statistics.median(rates[key] for rates in rounds))
        what['ratio_to_pytorch'] = round(statistics.median(ratios), 2)
        what |= {name: getattr(network, name) for name in ('backbone', 'stem', 'side')}
        lines.append(what | {'batch': options.batch, 'rounds': options.rounds})
        record(options.output, 'training_step', lines[-1])
    print('\n'.join(table(lines[0], [line.values() for line in lines])))


def digest_of_steps(folder, small):
    """Trains 30 steps on random images with a checkpoint half way; returns a digest of the weights.

    A second call with the same folder continues from the checkpoint.
    """
    import jax

    from mtdml_jax.config import load_config
    from mtdml_jax.training import checkpoints
    from mtdml_jax.training.devices import make_mapping
    from mtdml_jax.training.setup import make_training

    batch, side, steps, width = (14, 16, 4, 0.0625) if small else (126, 48, 30, 1.0)
    overrides = [f'data.image_size={side}', 'model.stem=cifar', f'model.width_factor={width}']
    overrides += ['model.backbone=resnet10'] if small else []
    config = load_config('default', [f'--config.{x}' for x in overrides])
    _, state, step = make_training(config, np.ones(CLASSES, int))
    mapping = make_mapping(config.train.mapping)
    with checkpoints.open_checkpoints(folder, config.train) as manager:
        if manager.latest_step() is not None:
            state, _ = checkpoints.restore(manager, manager.latest_step(), state)
        first, state = int(state.step), mapping.replicate(state)
        for number in range(first, steps):
            generator = np.random.default_rng((7, number))
            images = generator.standard_normal((batch, side, side, 1), np.float32)
            labels = np.arange(batch, dtype=np.int32) % CLASSES
            found = {'image': images, 'label': labels, 'mask': np.ones(batch, bool)}
            state, _ = step(state, mapping.split(found))
            if number + 1 == steps // 2:
                checkpoints.save(manager, mapping.on_host(state), None, {})
    leaves = jax.tree.leaves(mapping.on_host(state))
    return hashlib.sha256(b''.join(x.tobytes() for x in leaves)).hexdigest()


def main():
    """Prints the tables and adds their rows."""
    parser = make_parser(__doc__, rounds=9)
    parser.add_argument('--widths', type=int, nargs='+', default=[16, 32, 64])
    parser.add_argument('--backbone', default='resnet18', choices=('resnet18', 'resnet50', 'ir50'))
    parser.add_argument('--stem', default='small', choices=('small', 'cifar', 'imagenet'))
    parser.add_argument('--side', type=int, default=48, help='pixels')
    parser.add_argument('--batch', type=int, default=64)
    options = parser.parse_args()
    if options.backbone == 'ir50' and (options.widths, options.stem) != ([64], 'small'):
        parser.error('ir50 has --widths 64 and --stem small: the network of PyTorch has no others')
    channels = 1 if options.backbone == 'resnet18' else 3
    for width in options.widths:
        compare(Network(options.backbone, width, options.stem, options.side, channels), options)


if __name__ == '__main__':
    main()
