"""What does a training step cost on 1 to 256 devices, and where do more devices stop to pay?

    python experiments/benchmarks/scaling.py

Traces the training step for forced CPU devices, each number of devices in a new process. Counts for one
device the work of convolutions and products, and the bytes that collectives receive by ring algorithms.
Loops are counted as often as they run. The bytes of the distances that mining reads follow from the
shapes: two readings of the device's share of all distances in float32. The compiled program gives the
memory (as planned for a CPU) and the number of collectives for 1, 8 and 64 devices. Published speeds and
the assumptions in `MACHINES` give times from these counts. Nothing was run on an accelerator.

With weak scaling the number of images a device stays the same, so the global batch grows, and all of it
is mined. In the last case the batch stays the same: the loss alone, of 4,096 embeddings on all devices
together. Replaces results/scaling.csv.
"""

import csv
import math
from typing import NamedTuple

from harness import in_new_process, make_parser

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
# Mining reads all distances once for the farthest positives and once for the nearest negatives.
READINGS = 2
# XLA combines small collectives: 160 traced ones are 47 in the compiled step, on 8 devices and on 64.
COMBINED = 47 / 160
COLLECTIVES = ('psum', 'all_gather', 'all_to_all', 'reduce_scatter')


class Machine(NamedTuple):
    """Published speeds of one device, and assumptions about it.

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
    # cloud.google.com/tpu/docs/v5e: 197 TFLOP/s in bfloat16, 819 GB/s, 400 GB/s between chips, both ways
    # together. Precision 'highest' takes six products in bfloat16.
    'TPU v5e': Machine(197e12, 197e12 / 6, 819e9, {256: 200e9}, 10e-6, 0.4),
    # nvidia.com/en-us/data-center/h100 (SXM): 989 TFLOP/s in bfloat16 without sparsity, 67 in float32,
    # 3.35 TB/s, NVLink 900 GB/s, both ways together. Beyond 8 devices each has InfiniBand of 400 Gb/s.
    'H100': Machine(989e12, 67e12, 3.35e12, {8: 450e9, 256: 50e9}, 20e-6, 0.4),
}


def main():
    """Prints the rows and writes the table."""
    parser = make_parser(__doc__)
    parser.add_argument('--devices', type=int, nargs='+', default=DEVICES)
    options = parser.parse_args()
    rows = []
    for devices in options.devices:
        forced = {'JAX_NUM_CPU_DEVICES': str(devices), 'JAX_PLATFORMS': 'cpu'}
        rows += in_new_process(costs, devices, **forced)
    path = options.output / 'results' / 'scaling.csv'
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('w', newline='') as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator='\n')
        writer.writeheader()
        for row in rows:
            (first,) = (
                x for x in rows if (x['case'], x['devices']) == (row['case'], rows[0]['devices'])
            )
            for name in MACHINES:
                row[f'{name}_efficiency'] = round(first[f'{name}_ms'] / row[f'{name}_ms'], 3)
            writer.writerow(row)


def costs(devices):
    """Prints and returns the rows of all cases for a number of devices."""
    found = []
    for case in (*CASES, LOSS):
        found.append(cost(case, devices))
        print(found[-1], flush=True)
    return found


def cost(case, devices):
    """Returns a row: what one device does in a step."""
    import jax

    step, shapes, (rows, slices) = loss_alone(devices) if case == LOSS else training(case, devices)
    row = {'case': case, 'devices': devices, 'global_batch': rows}
    row |= count(jax.make_jaxpr(step)(*shapes).jaxpr, devices)
    row['megabytes_reduced'] = round(READINGS * 4 * slices * rows**2 / devices / 1e6, 3)
    row |= {'megabytes_received': row.pop('megabytes_received')}
    row |= {'traced_collectives': row.pop('traced_collectives')}
    row |= {'collectives': '', 'megabytes_of_memory': ''}
    if devices in COMPILED and case == next(iter(CASES)):
        compiled = step.lower(*shapes).compile()
        text = compiled.as_text()
        row['collectives'] = sum(
            text.count(f' {kind.replace("_", "-")}(') for kind in ('all_reduce', *COLLECTIVES[1:])
        )
        row['megabytes_of_memory'] = round(compiled.memory_analysis().temp_size_in_bytes / 1e6)
    for machine in MACHINES:
        row[f'{machine}_ms'] = round(1e3 * seconds(MACHINES[machine], row), 4)
    return row | {f'{machine}_efficiency': '' for machine in MACHINES}


def loss_alone(num_devices, devices=None):
    """Gradient of the loss, shapes of its arguments, and (global batch, number of slices).

    Args:
      num_devices: number of devices.
      devices: the devices themselves, which may be abstract; None for all.
    """
    import jax
    import numpy as np

    from mtdml_jax import multi_threshold_loss

    thresholds = np.linspace(0.1, 1.4, LOSS_SLICES)

    def loss(embeddings, labels):
        return multi_threshold_loss(embeddings, labels, thresholds, axis_name='batch')[0]

    rows = LOSS_BATCH // num_devices
    shapes = (
        jax.ShapeDtypeStruct((num_devices, rows, 512), np.float32),
        jax.ShapeDtypeStruct((num_devices, rows), np.int32),
    )
    step = jax.pmap(jax.grad(loss), axis_name='batch', devices=devices)
    return step, shapes, (LOSS_BATCH, LOSS_SLICES)


def training(case, num_devices, devices=None):
    """A training step, shapes of its arguments, and (global batch, number of slices).

    Args:
      case: one of `CASES`.
      num_devices: see `loss_alone`.
      devices: see `loss_alone`.
    """
    import jax
    import numpy as np

    from mtdml_jax.config import load_config
    from mtdml_jax.training.devices import make_mapping
    from mtdml_jax.training.setup import make_training

    name, images, *settings = CASES[case]
    rows = images * num_devices
    settings = [f'--config.{setting}' for setting in (*settings, f'data.batch_size={rows}')]
    config = load_config(name, settings)
    _, state, step = make_training(config, np.full(7, 100), devices=devices)
    side, channels = config.data.image_size, config.data.channels
    batch = {
        'image': jax.ShapeDtypeStruct((rows, side, side, channels), np.float32),
        'label': jax.ShapeDtypeStruct((rows,), np.int32),
        'mask': jax.ShapeDtypeStruct((rows,), bool),
    }
    shapes = make_mapping(config.train.mapping, devices).shapes(state, batch)
    return step, shapes, (rows, config.model.num_slices)


def seconds(machine, row):
    """Returns the seconds of a step in which nothing overlaps."""
    links = next(x for most, x in machine.links.items() if row['devices'] <= most)
    return (
        1e9 * row['gigaflop_of_convolutions'] / (machine.flops * machine.share)
        + 1e9 * row['gigaflop_of_products'] / machine.exact_flops
        + 1e6 * row['megabytes_reduced'] / machine.memory
        + 1e6 * row['megabytes_received'] / links
        + row['traced_collectives'] * COMBINED * machine.latency
    )


def count(jaxpr, devices):
    """Returns work and bytes of a device in a traced step, by name, as they stand in the table."""
    found = work(jaxpr, devices)
    return {
        'gigaflop_of_convolutions': round(found['convolutions'] / 1e9, 3),
        'gigaflop_of_products': round(found['products'] / 1e9, 3),
        'megabytes_received': round(found['received'] / 1e6, 3),
        'traced_collectives': int(found['collectives']),
    }


def work(jaxpr, devices):
    """Returns FLOP of convolutions and of products, bytes received and collectives, by name."""
    found = dict.fromkeys(('convolutions', 'products', 'received', 'collectives'), 0.0)
    _add(jaxpr, found, 1, devices)
    return found


def _add(jaxpr, found, times, devices):
    for equation in jaxpr.eqns:
        kind = equation.primitive.name
        if kind == 'conv_general_dilated':
            found['convolutions'] += times * _work_of_convolution(equation)
        elif kind == 'dot_general':
            found['products'] += times * _work_of_product(equation)
        elif kind.removesuffix('_invariant') in COLLECTIVES and devices > 1:
            found['collectives'] += times
            found['received'] += times * _received(kind, equation, devices)
        inner = times * equation.params['length'] if kind == 'scan' else times
        parts = list(_inner(equation.params.values()))
        # Mining has a branch for each kind of device. The last one is for all devices except CPUs.
        for part in parts[-1:] if kind == 'cond' else parts:
            _add(part, found, inner, devices)


def _inner(values):
    """Yields the jaxprs among the parameters of an equation."""
    for value in values:
        for x in value if isinstance(value, (list, tuple)) else (value,):
            x = getattr(x, 'jaxpr', x)
            if hasattr(x, 'eqns'):
                yield x


def _work_of_convolution(equation):
    kernel, numbers = equation.invars[1].aval.shape, equation.params['dimension_numbers']
    per_entry = math.prod(kernel) / kernel[numbers.rhs_spec[0]]
    # Dilation adds rows of zeros between the rows of the input.
    zeros = math.prod(equation.params['lhs_dilation'])
    return 2 * math.prod(equation.outvars[0].aval.shape) * per_entry / zeros


def _work_of_product(equation):
    (contracted, _), _ = equation.params['dimension_numbers']
    shape = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[i] for i in contracted)


def _received(kind, equation, devices):
    """Returns the bytes that a collective receives by a ring algorithm."""
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
