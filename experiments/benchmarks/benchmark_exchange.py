"""What crosses devices in the global loss: slices swapped (all-to-all) or all rows gathered?

    python experiments/benchmarks/benchmark_exchange.py [--batch 4096] [--size 512] [--slices 8]
        [--devices 8]

Compiles loss and gradient for forced CPU devices with both exchanges of `mtdml_jax/loss/exchange.py` and
prints, per device: the bytes that its collectives receive, by operation, as read from the compiled
program; the work and the bytes of `compiled.cost_analysis()`; and the milliseconds of a step (all
devices share the cores: they say which is not slower here, not what a network costs).
"""

import argparse
import collections
import math
import re
import statistics
import time
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from mtdml_jax import multi_threshold_loss
from mtdml_jax.loss import exchange

ROUNDS = 7
COLLECTIVE = re.compile(r' = (.*?) (all-gather|all-to-all|reduce-scatter|all-reduce)(?:-start)?\(')


def received_bytes(program: str, num_devices: int) -> dict[str, float]:
    """Bytes that one device receives in each kind of collective, by ring algorithms."""
    of_result = {
        'all-gather': (num_devices - 1) / num_devices,
        'all-to-all': (num_devices - 1) / num_devices,
        'reduce-scatter': num_devices - 1,
        'all-reduce': 2 * (num_devices - 1) / num_devices,
    }
    received = collections.Counter()
    for shapes, kind in COLLECTIVE.findall(program):
        for dtype, sizes in re.findall(r'(f32|s32|pred)\[([\d,]*)\]', shapes):
            entries = math.prod(int(size) for size in sizes.split(',') if size)
            received[kind] += of_result[kind] * entries * (1 if dtype == 'pred' else 4)
    return dict(received)


def compile_step(arguments, batch):
    """The compiled loss and gradient over all devices."""
    thresholds = jnp.linspace(0.1, 1.4, arguments.slices)

    def step(embeddings, labels):
        loss = partial(multi_threshold_loss, thresholds=thresholds, axis_name='batch')
        (loss, _), gradient = jax.value_and_grad(loss, has_aux=True)(embeddings, labels)
        return loss, gradient

    mesh = jax.sharding.Mesh(jax.devices(), 'batch')
    specs = {'in_specs': jax.P('batch'), 'out_specs': (jax.P(), jax.P('batch'))}
    return jax.jit(jax.shard_map(step, mesh=mesh, **specs)).lower(*batch).compile()


def report(name, compiled, batch, num_devices):
    """Prints one exchange's figures."""
    received = received_bytes(compiled.as_text(), num_devices)
    cost = compiled.cost_analysis()
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*batch))
        times.append(1e3 * (time.perf_counter() - start))
    parts = ', '.join(f'{kind} {size / 1e6:.2f}' for kind, size in sorted(received.items()))
    print(
        f'{name:20s} receives {sum(received.values()) / 1e6:7.2f} MB a device ({parts}); '
        f'cost analysis {cost["flops"] / 1e9:.2f} GFLOP, {cost["bytes accessed"] / 1e6:.0f} MB; '
        f'{statistics.median(times):.0f} ms'
    )


def main():
    """Prints one line for each exchange."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (('batch', 4096), ('size', 512), ('slices', 8), ('devices', 8)):
        parser.add_argument(f'--{name}', type=int, default=default)
    arguments = parser.parse_args()
    jax.config.update('jax_num_cpu_devices', arguments.devices)
    rng = np.random.default_rng(0)
    mesh = jax.sharding.Mesh(jax.devices(), 'batch')
    rows = jax.sharding.NamedSharding(mesh, jax.P('batch'))
    embeddings = rng.normal(size=(arguments.batch, arguments.size)).astype(np.float32)
    labels = rng.integers(7, size=arguments.batch).astype(np.int32)
    batch = jax.device_put((embeddings, labels), rows)
    for name, swaps in (('slices swapped', True), ('all rows gathered', False)):
        with mock.patch.object(exchange, 'swaps_slices', lambda *_, swaps=swaps: swaps):
            compiled = compile_step(arguments, batch)
        report(name, compiled, batch, arguments.devices)


if __name__ == '__main__':
    main()
