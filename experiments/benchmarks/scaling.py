"""What does a training step cost on 1 to 256 devices, and where does it stop to pay?

    python experiments/benchmarks/scaling.py

Traces the training step for forced CPU devices, each number of them in a process of its own, and counts
for one: the work of convolutions and of products, the bytes that reductions over distances read, and
what collectives receive by ring algorithms; loops are counted as often as they run. The compiled program
tells the memory (of a CPU's plan) and the number of collectives, for 1, 8 and 64 devices. From these,
published speeds and the assumptions in `MACHINES` come times; nothing here was run on an accelerator.

Weak scaling: the images of a device stay the same, so the global batch grows, and all of it is mined. In
the last case it is the batch that stays: the loss alone, of 4,096 embeddings on all devices together.
Writes results/scaling.csv.
"""

import argparse
import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

EXPERIMENTS = Path(__file__).absolute().parents[1]
sys.path.insert(0, str(EXPERIMENTS.parent))

CASES = {
    'ResNet-18, 48 px': ('fer2013_gpu', 128),
    'ResNet-18, 48 px, statistics of a device': ('fer2013_gpu', 128, 'model.batch_norm=device'),
    'ResNet-18, 48 px, 512 images a device': ('fer2013_gpu', 512),
    'ResNet-18, 48 px, 16 slices': ('fer2013_gpu', 128, 'model.num_slices=16'),
    'ResNet-18, 48 px, embedding of 2048': ('fer2013_gpu', 128, 'model.embedding_size=2048'),
    'ResNet-50, 224 px': ('raf_db', 64, 'model.backbone=resnet50', 'data.channels=3'),
}
LOSS, LOSS_BATCH, LOSS_SLICES = 'Loss alone, 4,096 embeddings of 512', 4096, 8
DEVICES = (1, 2, 4, 8, 16, 32, 64, 256)
COMPILED = (1, 8, 64)
# XLA combines small ones: 160 traced are 47 in the compiled step, on 8 devices and on 64.
COMBINED = 47 / 160
COLLECTIVES = ('psum', 'all_gather', 'all_to_all', 'reduce_scatter')


class Machine(NamedTuple):
    """Published speeds of one device, and what is assumed of them.

    Attributes:
      flops: products of the backbone in bfloat16, FLOP/s.
      exact_flops: products of float32 at precision 'highest', FLOP/s.
      memory: bytes/s.
      links: bytes/s that a device receives, by the number of devices that share such links.
      latency: seconds of a small collective (assumed).
      share: of `flops` that convolutions of this size reach (assumed).
    """

    flops: float
    exact_flops: float
    memory: float
    links: dict[int, float]
    latency: float
    share: float


MACHINES = {
    # cloud.google.com/tpu/docs/v5e: 197 TFLOP/s in bfloat16, 819 GB/s, 400 GB/s between chips both ways
    # together. 'highest' takes six products of bfloat16.
    'TPU v5e': Machine(197e12, 197e12 / 6, 819e9, {256: 200e9}, 10e-6, 0.4),
    # nvidia.com/en-us/data-center/h100 (SXM): 989 TFLOP/s in bfloat16 without sparsity, 67 in float32,
    # 3.35 TB/s, NVLink 900 GB/s both ways together; beyond 8 an InfiniBand of 400 Gb/s for each.
    'H100': Machine(989e12, 67e12, 3.35e12, {8: 450e9, 256: 50e9}, 20e-6, 0.4),
}


def main():
    """Writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--devices', type=int, help='print the rows of this number of devices')
    devices = parser.parse_args().devices
    if devices:
        for case in (*CASES, LOSS):
            print(json.dumps(cost(case, devices)), flush=True)
        return
    rows = []
    for devices in DEVICES:
        environment = os.environ | {'JAX_NUM_CPU_DEVICES': str(devices), 'JAX_PLATFORMS': 'cpu'}
        command = [sys.executable, __file__, f'--devices={devices}']
        found = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        rows += [json.loads(line) for line in found.stdout.splitlines()]
        print(found.stdout, end='', flush=True)
    with (EXPERIMENTS / 'results' / 'scaling.csv').open('w', newline='') as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator='\n')
        writer.writeheader()
        for row in rows:
            (first,) = (x for x in rows if x['case'] == row['case'] and x['devices'] == 1)
            for name in MACHINES:
                row[f'{name}_efficiency'] = round(first[f'{name}_ms'] / row[f'{name}_ms'], 3)
            writer.writerow(row)


def cost(case, devices):
    """A row: what a device does in a step."""
    import jax

    step, arguments, batch = loss_alone(devices) if case == LOSS else training(case, devices)
    row = {'case': case, 'devices': devices, 'global_batch': batch}
    row |= count(jax.make_jaxpr(step)(*arguments).jaxpr, devices)
    row |= {'collectives': '', 'megabytes_of_memory': ''}
    if devices in COMPILED and case == next(iter(CASES)):
        compiled = step.lower(*arguments).compile()
        text = compiled.as_text()
        row['collectives'] = sum(
            text.count(f' {kind.replace("_", "-")}(') for kind in ('all_reduce', *COLLECTIVES[1:])
        )
        row['megabytes_of_memory'] = round(compiled.memory_analysis().temp_size_in_bytes / 1e6)
    for machine in MACHINES:
        row[f'{machine}_ms'] = round(1e3 * seconds(MACHINES[machine], row), 4)
    return row | {f'{machine}_efficiency': '' for machine in MACHINES}


def loss_alone(devices):
    """Gradient of the loss, shapes of what it takes, and the global batch."""
    import jax
    import numpy as np

    from mtdml_jax import multi_threshold_loss

    thresholds = np.linspace(0.1, 1.4, LOSS_SLICES)

    def loss(embeddings, labels):
        return multi_threshold_loss(embeddings, labels, thresholds, axis_name='batch')[0]

    rows = LOSS_BATCH // devices
    shapes = (
        jax.ShapeDtypeStruct((devices, rows, 512), np.float32),
        jax.ShapeDtypeStruct((devices, rows), np.int32),
    )
    return jax.pmap(jax.grad(loss), axis_name='batch'), shapes, LOSS_BATCH


def training(case, devices):
    """A training step, shapes of what it takes, and the global batch."""
    import jax
    import numpy as np

    from mtdml_jax.config import load_config
    from mtdml_jax.training.step import make_training

    name, images, *settings = CASES[case]
    settings = [f'--config.{setting}' for setting in settings]
    config = load_config(name, [*settings, f'--config.data.batch_size={images * devices}'])
    _, state, step = make_training(config, np.full(7, 100), read_pretrained=False)
    side, channels = config.data.image_size, config.data.channels
    batch = {
        'image': np.zeros((images, side, side, channels), np.float32),
        'label': np.zeros(images, np.int32),
        'mask': np.zeros(images, bool),
    }
    on_all = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((devices, *x.shape), x.dtype), (state, batch)
    )
    return step, on_all, images * devices


def seconds(machine, row):
    """Of a step, one thing after another: nothing overlaps."""
    links = next(x for most, x in machine.links.items() if row['devices'] <= most)
    return (
        1e9 * row['gigaflop_of_convolutions'] / (machine.flops * machine.share)
        + 1e9 * row['gigaflop_of_products'] / machine.exact_flops
        + 1e6 * row['megabytes_reduced'] / machine.memory
        + 1e6 * row['megabytes_received'] / links
        + row['traced_collectives'] * COMBINED * machine.latency
    )


def count(jaxpr, devices):
    """Work and bytes of a device in a traced step, by name."""
    found = dict.fromkeys(('convolutions', 'products', 'reduced', 'received', 'collectives'), 0.0)
    _add(jaxpr, found, 1, devices)
    return {
        'gigaflop_of_convolutions': round(found['convolutions'] / 1e9, 3),
        'gigaflop_of_products': round(found['products'] / 1e9, 3),
        'megabytes_reduced': round(found['reduced'] / 1e6, 3),
        'megabytes_received': round(found['received'] / 1e6, 3),
        'traced_collectives': int(found['collectives']),
    }


def _add(jaxpr, found, times, devices):
    for equation in jaxpr.eqns:
        kind = equation.primitive.name
        if kind == 'conv_general_dilated':
            found['convolutions'] += times * _work_of_convolution(equation)
        elif kind == 'dot_general':
            found['products'] += times * _work_of_product(equation)
        elif kind == 'reduce_max' and equation.params['axes'] == (1,):
            # Of distances, in blocks of gallery rows, by anchors.
            found['reduced'] += times * _bytes(equation.invars)
        elif kind.removesuffix('_invariant') in COLLECTIVES and devices > 1:
            found['collectives'] += times
            found['received'] += times * _received(kind, equation, devices)
        inner = times * equation.params['length'] if kind == 'scan' else times
        parts = list(_inner(equation.params.values()))
        # Mining has a branch for each kind of device, the last for all but CPUs.
        for part in parts[-1:] if kind == 'cond' else parts:
            _add(part, found, inner, devices)


def _inner(values):
    """The jaxprs among an equation's parameters."""
    for value in values:
        for x in value if isinstance(value, (list, tuple)) else (value,):
            x = getattr(x, 'jaxpr', x)
            if hasattr(x, 'eqns'):
                yield x


def _work_of_convolution(equation):
    kernel, numbers = equation.invars[1].aval.shape, equation.params['dimension_numbers']
    per_entry = math.prod(kernel) / kernel[numbers.rhs_spec[0]]
    # Rows that dilation puts between those of the input are zeros.
    zeros = math.prod(equation.params['lhs_dilation'])
    return 2 * math.prod(equation.outvars[0].aval.shape) * per_entry / zeros


def _work_of_product(equation):
    (contracted, _), _ = equation.params['dimension_numbers']
    shape = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[i] for i in contracted)


def _received(kind, equation, devices):
    """Bytes by ring algorithms."""
    share = (devices - 1) / devices
    if kind.startswith('psum'):
        return 2 * share * _bytes(equation.outvars)
    if kind.startswith('reduce_scatter'):
        return devices * share * _bytes(equation.outvars)
    return share * _bytes(equation.outvars)


def _bytes(variables):
    return sum(math.prod(x.aval.shape) * x.aval.dtype.itemsize for x in variables)


if __name__ == '__main__':
    main()
