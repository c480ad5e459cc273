"""Loss and gradient: time and memory beside pytorch-metric-learning, plain JAX and a bare product.

    python experiments/benchmarks/benchmark_loss.py [--sizes 128 1024] [--rounds 9] [--large 0]
        [--output FOLDER]

Prints tables and writes benchmark_loss.png and .csv. Times are medians over rounds in which all
contestants take turns in one process. Memory is the peak of a process of its own above what it held
before the call (jax: after compiling); "ms, alone" is the median of the first 3 calls there, a check
that the contestants do not hinder each other. Linux only, on an idle machine: other work slows torch
most. Where JAX finds a GPU all run on it, and memory is the GPU's: of ours what the compiled program
takes, of PyTorch what its allocator has handed out at most. The peers go into an environment of their
own, and without them that contestant is left out:

    pip install '.[train]' torch==2.13.0 pytorch-metric-learning==2.9.0
"""

import argparse
import csv
import ctypes
import importlib.util
import math
import multiprocessing
import os
import resource
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parents[2]))

import numpy as np

# jax and torch are imported where a contestant needs them: a process measures the memory of one.

CLASSES, WIDTH, SLICES, LARGE_SLICES = 7, 512, 8, 16
SIZES = [128, 256, 512, 1024, 2048, 4096]
MEASUREMENT_SECONDS = 0.05
HEADER = (
    'batch',
    'contestant',
    'ms',
    'ratio_to_ours',
    'ratio_to_product',
    'peak_mb',
    'ms_alone',
    'tflops',
)
OURS, PLAIN, PEER = 'ours, dual', 'ours, not dual', 'pytorch-metric-learning'


def make_inputs(rows, width, slices):
    """Normal embeddings [rows, width], labels [rows], thresholds [slices] over the valid range."""
    generator = np.random.default_rng(0)
    embeddings = generator.standard_normal((rows, width), np.float32)
    thresholds = math.sqrt(2 * CLASSES / (CLASSES - 1)) * (np.arange(slices) + 0.5) / slices
    return embeddings, np.arange(rows) % CLASSES, thresholds.astype(np.float32)


def compile_jax(function, *inputs):
    """A call of the jitted function that returns when the result is there; nothing runs yet."""
    import jax

    inputs = jax.device_put(inputs)
    compiled = jax.jit(function).lower(*inputs).compile()

    def call():
        return jax.block_until_ready(compiled(*inputs))

    call.compiled = compiled
    return call


def prepare_ours(embeddings, labels, thresholds, dual=True):
    """The loss of this package."""
    import jax

    import mtdml_jax

    loss = partial(mtdml_jax.multi_threshold_loss, dual=dual)
    return compile_jax(jax.value_and_grad(loss, has_aux=True), embeddings, labels, thresholds)


def prepare_naive(embeddings, labels, thresholds):
    """What one writes first: a B x B distance matrix a slice, differentiated through, vmapped."""
    import jax
    import jax.numpy as jnp

    def slice_loss(x, threshold, labels):
        x = x / jnp.linalg.norm(x, axis=-1, keepdims=True)
        distances = jnp.sqrt(jnp.maximum(2.0 - 2.0 * x @ x.T, 1e-12))
        same = labels[:, None] == labels
        positive = jnp.argmax(jnp.where(same & ~jnp.eye(len(x), dtype=bool), distances, -1), axis=1)
        negative = jnp.argmin(jnp.where(same, jnp.inf, distances), axis=1)
        d_ap = jnp.take_along_axis(distances, positive[:, None], axis=1)
        d_an = jnp.take_along_axis(distances, negative[:, None], axis=1)
        return jnp.mean(jax.nn.relu(d_ap - d_an + threshold))

    def loss(x, labels, thresholds):
        slices = x.reshape(len(x), len(thresholds), -1)
        return jnp.mean(jax.vmap(slice_loss, (1, 0, None))(slices, thresholds, labels)), None

    return compile_jax(jax.value_and_grad(loss, has_aux=True), embeddings, labels, thresholds)


def prepare_peer(embeddings, labels, thresholds):
    """pytorch-metric-learning, slice by slice."""
    import torch
    from pytorch_metric_learning import distances, losses, miners, reducers

    torch.set_num_threads(os.cpu_count())
    device = 'cuda' if is_on_gpu() else 'cpu'
    x = torch.tensor(embeddings, requires_grad=True, device=device)
    labels, distance = torch.tensor(labels, device=device), distances.LpDistance()
    miner = miners.BatchHardMiner(distance=distance)
    reducer = reducers.MeanReducer()
    criteria = [
        losses.TripletMarginLoss(margin=float(threshold), distance=distance, reducer=reducer)
        for threshold in thresholds
    ]

    def call():
        x.grad = None
        slices = zip(criteria, x.split(x.shape[1] // len(criteria), dim=1), strict=True)
        loss = sum(c(part, labels, miner(part, labels)) for c, part in slices) / len(criteria)
        loss.backward()
        return (loss.item(), None), x.grad.cpu()

    return call


def prepare_product(embeddings, labels, thresholds, sliced=True):
    """The matrix product alone: S products of B x B, or one with as many multiplications.

    In float32, as mining takes it: a GPU would round to TF32 unasked.
    """
    import jax.numpy as jnp

    x = embeddings.reshape(len(embeddings), len(thresholds) if sliced else 1, -1)
    return compile_jax(lambda a: jnp.einsum('asd,gsd->sag', a, a, precision='highest'), x)


CONTESTANTS = {
    OURS: prepare_ours,
    PLAIN: partial(prepare_ours, dual=False),
    'naive vmapped JAX': prepare_naive,
    PEER: prepare_peer,
    'product of slices': prepare_product,
    'product of rows': partial(prepare_product, sliced=False),
}
COLOURS = ('#0072b2', '#56b4e9', '#009e73', '#d55e00', '#8a8a8a', '#4d4d4d')
PRODUCTS = ('product of slices', 'product of rows')


def is_on_gpu():
    """Whether JAX computes on a GPU."""
    import jax

    return jax.default_backend() == 'gpu'


def timed(call, repeats=1):
    """Seconds a call."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def time_in_turns(calls, rounds):
    """Median seconds of each call over rounds in which all take turns."""
    repeats = {name: math.ceil(MEASUREMENT_SECONDS / timed(call)) for name, call in calls.items()}
    seconds = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            call()  # The threads of the contestant before may still be spinning.
            seconds[name].append(timed(call, repeats[name]))
    return {name: statistics.median(values) for name, values in seconds.items()}


def kilobytes(path, key):
    """A value of a status file of Linux."""
    lines = Path(path).read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def foreign_cpu_seconds():
    """CPU time that all processes but this one and its children have used since the start."""
    ticks = [int(x) for x in Path('/proc/stat').read_text().splitlines()[0].split()[1:9]]
    busy = sum(ticks) - sum(ticks[3:5])  # without idle and waiting for disks
    return busy / os.sysconf('SC_CLK_TCK') - sum(os.times()[:4])


def measure(name, *shape):
    """Seconds and peak memory (MB) of one contestant; for a process of its own."""
    limit = int(0.9 * 1024 * kilobytes('/proc/meminfo', 'MemAvailable'))
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))  # Fail rather than swap.
    CONTESTANTS[name](*make_inputs(16, *shape[1:]))()  # Loads what is loaded lazily.
    call = CONTESTANTS[name](*make_inputs(*shape))
    ctypes.CDLL(None).malloc_trim(0)
    before = kilobytes('/proc/self/status', 'VmRSS')
    Path('/proc/self/clear_refs').write_text('5')  # Resets the peak.
    seconds = statistics.median(timed(call) for _ in range(3))
    return seconds, (kilobytes('/proc/self/status', 'VmHWM') - before) * 1024 / 1e6


def measure_alone(name, *shape):
    """`measure` in a new process; NaN where it fails, as a rule for want of memory."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn')) as pool:
        try:
            return pool.submit(measure, name, *shape).result()
        except (MemoryError, RuntimeError) as error:
            print(f'{name} failed at {shape}: {error}', file=sys.stderr)
            return math.nan, math.nan


def measure_on_gpu(name, call):
    """(NaN, peak of the GPU's memory in MB) of a call that is ready."""
    if name == PEER:
        import torch

        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return math.nan, (torch.cuda.max_memory_allocated() - before) / 1e6
    memory = call.compiled.memory_analysis()
    return math.nan, (memory.temp_size_in_bytes + memory.output_size_in_bytes) / 1e6


def differences(calls):
    """Relative differences of the losses and gradients that should equal ours, by contestant."""
    (loss, _), gradient = calls[PLAIN]()
    found = {}
    for name in calls.keys() - {OURS, PLAIN, *PRODUCTS}:
        (other_loss, _), other = calls[name]()
        difference = np.linalg.norm(np.asarray(other) - gradient) / np.linalg.norm(gradient)
        found[name] = max(abs(float(other_loss) / float(loss) - 1), float(difference))
    return found


def prepare_all(names, shape):
    """Calls by contestant, each called once; without those that fail, as a rule for want of memory."""
    calls = {}
    for name in names:
        try:
            call = CONTESTANTS[name](*make_inputs(*shape))
            call()
        except (MemoryError, RuntimeError) as error:
            print(f'{name} failed at {shape}: {str(error)[:200]}', file=sys.stderr)
        else:
            calls[name] = call
    return calls


def compare(rows, names, rounds):
    """Prints the lines of the table for one batch size; returns them and the `differences`."""
    shape = (rows, WIDTH, SLICES)
    calls = prepare_all(names, shape)
    found = differences(calls)
    seconds = time_in_turns(calls, rounds)
    product = min(seconds[name] for name in PRODUCTS if name in calls)
    lines = []
    for name, call in calls.items():
        ratios = (seconds[name] / seconds[OURS], seconds[name] / product)
        alone, megabytes = (
            measure_on_gpu(name, call) if is_on_gpu() else measure_alone(name, *shape)
        )
        rate = 2e-12 * rows**2 * WIDTH / seconds[name]
        line = (rows, name, 1e3 * seconds[name], *ratios, megabytes, 1e3 * alone, rate)
        print(
            '| {} | {} | {:.3f} | {:.2f} | {:.2f} | {:.1f} | {:.1f} | {:.2f} |'.format(*line),
            flush=True,
        )
        lines.append(line)
    return lines, found


def label_ends(axes, ends):
    """Writes each name beside the end of its line, moved up where two would overlap."""
    place = -math.inf
    for x, y, name, colour in sorted(ends, key=lambda end: end[1]):
        height = axes.transAxes.inverted().transform(axes.transData.transform((x, y)))[1]
        place = max(height, place + 0.055)
        arrow = {'arrowstyle': '-', 'color': colour, 'lw': 0.6}
        style = {'color': colour, 'va': 'center', 'arrowprops': arrow}
        axes.annotate(name, (x, y), (1.03, place), textcoords='axes fraction', **style)


def draw(lines, path):
    """Time and memory against the batch size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.6), layout='constrained')
    panels = zip(figure.subplots(1, 2), ((2, 'Time (ms)'), (5, 'Peak memory (MB)')), strict=True)
    sizes = sorted({line[0] for line in lines})
    for axes, (column, title) in panels:
        ends = []
        for name, colour in zip(CONTESTANTS, COLOURS, strict=True):
            points = [(line[0], line[column]) for line in lines if line[1] == name]
            if points:
                axes.loglog(*zip(*points, strict=True), 'o-', color=colour, lw=1.8, ms=4)
                ends.append((*points[-1], name, colour))
        axes.set_xticks(sizes, map(str, sizes))
        axes.minorticks_off()
        axes.set_title(title, loc='left')
        axes.set_xlabel(f'Batch size, embeddings of {SLICES} x {WIDTH // SLICES}')
        axes.spines[['top', 'right']].set_visible(False)
        axes.grid(color='#e4e8ed')
        label_ends(axes, ends)
    figure.savefig(path, dpi=100)


def report_shapes(rows, large, rounds):
    """Prints what many slices cost against one, and a batch beyond the others' reach."""
    calls = {s: prepare_ours(*make_inputs(rows, WIDTH, s)) for s in (1, LARGE_SLICES)}
    one, many = (1e3 * seconds for seconds in time_in_turns(calls, rounds).values())
    print(f'{OURS}, {rows} x {WIDTH}: 1 slice {one:.1f} ms, ', end='')
    print(f'{LARGE_SLICES} slices {many:.1f} ms, ratio {many / one:.2f}')
    if large and not is_on_gpu():
        seconds, megabytes = measure_alone(OURS, large, WIDTH, LARGE_SLICES)
        print(f'{OURS}, {large} x {WIDTH}: {LARGE_SLICES} slices {seconds:.2f} s, ', end='')
        print(f'peak memory {megabytes:.0f} MB')


def main():
    """Prints the tables, writes the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--sizes', type=int, nargs='+', default=SIZES)
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--large', type=int, default=32768, help='last case, 0: none')
    parser.add_argument('--output', type=Path, default=Path(__file__).parents[1] / 'figures')
    arguments = parser.parse_args()
    names, start, foreign = list(CONTESTANTS), time.perf_counter(), foreign_cpu_seconds()
    if not all(map(importlib.util.find_spec, ('torch', 'pytorch_metric_learning'))):
        print(f'{PEER} is not installed and left out (see the top of this file)')
        names.remove(PEER)
    titles = ('batch', 'contestant', 'ms', '/ ours, dual', '/ faster product', 'peak MB')
    print('|', ' | '.join([*titles, 'ms, alone', 'TFLOP/s of products']), '|')
    print('|---' * 8 + '|')
    results = [compare(rows, names, arguments.rounds) for rows in sorted(arguments.sizes)]
    lines = [line for some, _ in results for line in some]
    for name in dict.fromkeys(name for _, found in results for name in found):
        worst = max(found.get(name, 0.0) for _, found in results)
        print(f'Loss and gradient of {name} differ from ours, not dual, by at most {worst:.0e}.')
    arguments.output.mkdir(parents=True, exist_ok=True)
    with (arguments.output / 'benchmark_loss.csv').open('w', newline='') as file:
        csv.writer(file).writerows([HEADER, *lines])
    draw(lines, arguments.output / 'benchmark_loss.png')
    report_shapes(max(arguments.sizes), arguments.large, arguments.rounds)
    share = (foreign_cpu_seconds() - foreign) / (time.perf_counter() - start) / os.cpu_count()
    print(f'Other processes took {share:.1%} of the cores meanwhile.')


if __name__ == '__main__':
    main()
