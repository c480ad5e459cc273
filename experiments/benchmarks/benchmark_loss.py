"""Time and memory of loss and gradient beside pytorch-metric-learning, plain JAX and a bare product.

    python experiments/benchmarks/benchmark_loss.py [--sizes 128 1024] [--rounds 9]
        [--output FOLDER]

Prints tables, adds rows to results/loss.csv and draws figures/benchmark_loss.png. Times are medians
over rounds in which all contestants take turns in one process. Memory is the peak of a separate process
above its memory before the call (for jax: after compilation). ms_alone is the median of the first 3
calls in that process, which checks that contestants do not slow each other down. The script needs Linux
and an idle machine; other work slows torch most. Where JAX finds a GPU, all contestants run on it.
Memory is then that of the GPU: for ours what the compiled program takes, for PyTorch the most that its
allocator has handed out. PyTorch needs a separate environment; without it that contestant is left out:

    pip install '.[train]' torch==2.13.0 pytorch-metric-learning==2.9.0
"""

import ctypes
import importlib.util
import math
import os
import resource
import statistics
import sys
from functools import partial
from pathlib import Path

import numpy as np
from harness import (
    in_new_process,
    kilobytes,
    make_parser,
    memory,
    other_processes,
    table,
    time_in_turns,
    timed,
)
from record import record
from study_figures import save as save_figure

# Each contestant imports jax or torch itself, so that a process measures the memory of one of them.

CLASSES, WIDTH, SLICES = 7, 512, 8
SIZES = [128, 256, 512, 1024, 2048, 4096]
OURS, PLAIN, PEER = 'ours', 'ours, not dual', 'pytorch-metric-learning'


def make_inputs(rows, width, slices):
    """Normal embeddings [rows, width], labels [rows], thresholds [slices] over the valid range."""
    generator = np.random.default_rng(0)
    embeddings = generator.standard_normal((rows, width), np.float32)
    thresholds = math.sqrt(2 * CLASSES / (CLASSES - 1)) * (np.arange(slices) + 0.5) / slices
    return embeddings, np.arange(rows) % CLASSES, thresholds.astype(np.float32)


def compile_jax(function, *inputs):
    """Compiles a function; returns a call that waits for its result."""
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
    """The straightforward loss: a vmapped B x B distance matrix, differentiated as a whole."""
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

    Like mining it asks for float32, because a GPU would otherwise round to TF32.
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


def measure(name, *shape):
    """Seconds and peak memory (MB) of one contestant, in a process without other contestants."""
    limit = int(0.9 * 1024 * kilobytes('/proc/meminfo', 'MemAvailable'))
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))  # The call fails rather than swaps.
    CONTESTANTS[name](*make_inputs(16, *shape[1:]))()  # Loads what is loaded lazily.
    call = CONTESTANTS[name](*make_inputs(*shape))
    ctypes.CDLL(None).malloc_trim(0)
    before = memory()
    Path('/proc/self/clear_refs').write_text('5')  # Resets the peak.
    seconds = statistics.median(timed(call) for _ in range(3))
    return seconds, memory('VmHWM') - before


def measure_alone(name, *shape):
    """Calls `measure` in a new process; returns NaNs if it fails, usually for lack of memory."""
    try:
        return in_new_process(measure, name, *shape)
    except (MemoryError, RuntimeError) as error:
        print(f'{name} failed at {shape}: {error}', file=sys.stderr)
        return math.nan, math.nan


def measure_on_gpu(name, call):
    """Returns (NaN, peak of the GPU's memory in MB) for a call that was compiled."""
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
    """Relative differences between our loss and gradient and those of each contestant."""
    (loss, _), gradient = calls[PLAIN]()
    found = {}
    for name in calls.keys() - {OURS, PLAIN, *PRODUCTS}:
        (other_loss, _), other = calls[name]()
        difference = np.linalg.norm(np.asarray(other) - gradient) / np.linalg.norm(gradient)
        found[name] = max(abs(float(other_loss) / float(loss) - 1), float(difference))
    return found


def prepare_all(names, shape):
    """Calls by contestant, each called once, without those that fail, usually for lack of memory."""
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


def compare(size, names, rounds):
    """Returns rows of the table for one batch size, and the `differences`."""
    shape = (size, WIDTH, SLICES)
    calls = prepare_all(names, shape)
    found = differences(calls)
    seconds = time_in_turns(calls, rounds)
    product = min(seconds[name] for name in PRODUCTS if name in calls)
    rows = []
    for name, call in calls.items():
        on_gpu = is_on_gpu()
        alone, peak = measure_on_gpu(name, call) if on_gpu else measure_alone(name, *shape)
        row = {'batch': size, 'contestant': name, 'ms': 1e3 * seconds[name]}
        row |= {'ratio_to_ours': seconds[name] / seconds[OURS]}
        row |= {'ratio_to_product': seconds[name] / product, 'peak_mb': peak}
        row |= {'ms_alone': 1e3 * alone, 'tflops': 2e-12 * size**2 * WIDTH / seconds[name]}
        rows.append(row)
    print('\n'.join(table(rows[0], [row.values() for row in rows])), flush=True)
    return rows, found


def save(output, rows, rounds):
    """Adds time and memory to results/loss.csv, a row for each measure."""
    ours = {row['batch']: row for row in rows if row['contestant'] == OURS}
    for measure, key in (('ms', 'ms'), ('peak MB', 'peak_mb')):
        for row in rows:
            new = {'batch': row['batch'], 'slices': SLICES, 'contestant': row['contestant']}
            new |= {'measure': measure, 'value': f'{row[key]:.4g}'}
            ratio = row[key] / ours[row['batch']][key]
            new['multiple_of_ours'] = '' if row['contestant'] == OURS else f'{ratio:.3g}'
            record(output, 'loss', {**new, 'rounds': rounds})


def contestants():
    """The names of the contestants that are installed."""
    if all(map(importlib.util.find_spec, ('torch', 'pytorch_metric_learning'))):
        return list(CONTESTANTS)
    print(f'{PEER} is not installed and left out (see the top of this file)')
    return [name for name in CONTESTANTS if name != PEER]


def time_tiles(size, powers):
    """Times mining by the size of a tile. Large tiles need fewer launches, small ones fit a cache."""
    import jax

    import mtdml_jax

    embeddings, labels, _ = make_inputs(size, WIDTH, SLICES)
    slices = jax.device_put(mtdml_jax.split_slices(embeddings, SLICES))
    for power in (power for power in powers if 2**power <= size**2):
        mine = jax.jit(partial(mtdml_jax.mine_batch_hard, tile=2**power // size))
        jax.block_until_ready(mine(slices, labels))  # The first call compiles.
        call = partial(lambda mine: jax.block_until_ready(mine(slices, labels)), mine)
        milliseconds = 1e3 * statistics.median(timed(call) for _ in range(3))
        yield {'rows': size, 'distances': f'2^{power}', 'ms': milliseconds}


def compute(size, dtype):
    """Loss, gradient, mined positives and negatives on normal unit slices, as NumPy arrays."""
    import jax

    import mtdml_jax

    embeddings, labels, thresholds = make_inputs(size, WIDTH, SLICES)
    embeddings, thresholds = embeddings.astype(dtype), thresholds.astype(dtype)
    loss = jax.jit(jax.value_and_grad(mtdml_jax.multi_threshold_loss, has_aux=True))
    (value, _), gradient = loss(embeddings, labels, thresholds)
    slices = mtdml_jax.split_slices(embeddings, SLICES)
    triplets = jax.jit(mtdml_jax.mine_batch_hard)(slices, labels)
    return jax.device_get((value, gradient, triplets.positive, triplets.negative))


def compare_with_float64(size):
    """Compares loss, gradient and mined rows in float32 on this device with float64 on the CPU."""
    exact = in_new_process(compute, size, 'float64', JAX_PLATFORMS='cpu', JAX_ENABLE_X64='1')
    found = compute(size, 'float32')
    difference = np.linalg.norm(found[1] - exact[1]) / np.linalg.norm(exact[1])
    row = {'rows': size, 'loss': abs(float(found[0]) / float(exact[0]) - 1)}
    row['gradient'] = float(difference)
    slices = make_inputs(size, WIDTH, SLICES)[0].astype(np.float64).reshape(size, SLICES, -1)
    slices /= np.linalg.norm(slices, axis=-1, keepdims=True)
    for name, ours, best in zip(('positive', 'negative'), found[2:], exact[2:], strict=True):
        places = np.argwhere(ours != best)
        gaps = [
            abs(
                np.subtract(
                    *(np.linalg.norm(slices[a, s] - slices[x[s, a], s]) for x in (ours, best))
                )
            )
            for s, a in places
        ]
        row |= {
            f'other {name}s': len(places),
            f'{name}s farther off by': float(max(gaps, default=0.0)),
        }
    return row


def draw(rows, path):
    """Draws time and memory against the batch size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.6), layout='constrained')
    titles = {'ms': 'Time (ms)', 'peak_mb': 'Peak memory (MB)'}
    sizes = sorted({row['batch'] for row in rows})
    for axes, (key, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        for name, colour in zip(CONTESTANTS, COLOURS, strict=True):
            points = [(row['batch'], row[key]) for row in rows if row['contestant'] == name]
            if points:
                style = {'color': colour, 'lw': 1.8, 'ms': 4, 'label': name}
                axes.loglog(*zip(*points, strict=True), 'o-', **style)
        axes.set_xticks(sizes, map(str, sizes))
        axes.minorticks_off()
        axes.set_title(title, loc='left')
        axes.set_xlabel(f'Batch size, embeddings of {SLICES} x {WIDTH // SLICES}')
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figure(figure, path)


def main():
    """Prints the tables, adds the rows and draws the figure."""
    parser = make_parser(__doc__, rounds=9)
    parser.add_argument('--sizes', type=int, nargs='+', default=SIZES)
    options = parser.parse_args()
    names = contestants()
    with other_processes():
        results = [compare(size, names, options.rounds) for size in sorted(options.sizes)]
        rows = [row for some, _ in results for row in some]
        for name in dict.fromkeys(name for _, found in results for name in found):
            worst = max(found.get(name, 0.0) for _, found in results)
            print(
                f'Loss and gradient of {name} differ from ours, not dual, by at most {worst:.0e}.'
            )
        save(options.output, rows, options.rounds)
        draw(rows, options.output / 'figures' / 'benchmark_loss.png')


if __name__ == '__main__':
    main()
