"""The parts of on_gpu.py, each a command: python gpu_parts.py PART --output FOLDER."""

import argparse
import csv
import hashlib
import importlib.metadata
import json
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parents[2]))
sys.path.insert(0, str(Path(__file__).absolute().parents[1]))

import numpy as np
from record import ROOT, describe_software
from studies import CROSS_ENTROPY, Cell, Study, one_threshold
from study import run_study

from mtdml_jax import threshold_range

# JAX and TensorFlow are imported where a part needs them: the machine may lack the latter.

BENCHMARKS = 'experiments/benchmarks'
PARTS = f'{BENCHMARKS}/gpu_parts.py'
WIDTH, SLICES, CLASSES = 512, 8, 7
# Flags of XLA -> what they are for.
DETERMINISM = {
    'as it is': '',
    'nondeterministic operations excluded': '--xla_gpu_exclude_nondeterministic_ops=true',
    'deterministic operations': '--xla_gpu_deterministic_ops=true',
}
# The case of `feed` that is the recipe for FER2013 on GPUs.
RECIPE = '48 px from memory, batch 128'
# Those that need neither 8 devices nor several processes.
TESTS = tuple(
    f'loss/test_{name}.py'
    for name in (
        'multi_threshold',
        'loss_options',
        'mining',
        'slicing',
        'distances',
        'thresholds',
        'exchange',
    )
)
TESTS_WITH_DATA = (
    'models/test_network.py',
    'models/test_resnet.py',
    'training/test_step.py',
    'training/test_state.py',
    'training/test_checkpoints.py',
)
SEVERAL_DEVICES = ('devices', 'processes', 'replicas')


class Results:
    """What a part has measured, in FOLDER/PART.json after every row."""

    def __init__(self, path, commit):
        self.path = path
        self.content = {'machine': describe_machine(commit), 'rows': []}
        self.lock = threading.Lock()

    def add(self, what, **row):
        """Adds a row of a kind."""
        with self.lock:
            self.content['rows'].append({'what': what, **row})
            partial = self.path.with_suffix('.partial')
            partial.write_text(json.dumps(self.content, indent=1), encoding='utf-8')
            partial.replace(self.path)
            print(what, row, flush=True)


def describe_machine(commit):
    """Commit, device, driver and versions."""
    query = ['nvidia-smi', '--query-gpu=name,driver_version', '--format=csv,noheader']
    try:
        gpu = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        gpu = 'none'
    found = {**describe_software(), 'gpu and driver': gpu, 'cores': os.cpu_count()}
    for name in ('jaxlib', 'torch', 'tensorflow-cpu'):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = 'none'
    return found | ({'commit': commit} if commit else {})


def run(command, *, flags='', each=None, **environment):
    """Runs a command of Python in the project's folder; its printed text, also into the log.

    Args:
      command: arguments of Python.
      flags: put in front of XLA_FLAGS.
      each: called with each line as it comes.
      environment: variables added to the environment.
    """
    variables = os.environ | environment
    if flags:
        # Not a space in front: XLA would take it for the name of a file.
        variables['XLA_FLAGS'] = f'{flags} {os.environ.get("XLA_FLAGS", "")}'
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = []
    for line in process.stdout:  # Into the log at once: the part may be stopped at its limit.
        print(line, end='', flush=True)
        lines.append(line)
        if each is not None:
            each(line)
    if process.wait():
        code, last = process.returncode, lines[-1].strip() if lines else ''
        raise RuntimeError(f'exit code {code} of {" ".join(map(str, command))}: {last}')
    return ''.join(lines)


def at_once(*tasks):
    """Runs functions in threads of their own; raises the first of their errors at the end."""
    errors = []

    def attempt(task):
        try:
            task()
        except Exception as error:
            print(f'{type(error).__name__}: {error}', flush=True)
            errors.append(error)

    threads = [threading.Thread(target=attempt, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def check(results, options):
    """Is it right? The tests, the loss against float64, and the same bits for the same seed."""
    at_once(
        lambda: check_tests(results, options),
        lambda: check_precision(results, options),
        lambda: check_bits(results, options),
    )


def check_tests(results, options):
    """The tests of the method on this device, with products in full precision.

    Float32 products on a GPU are rounded to TF32 (10 bits) unless asked otherwise, which no tolerance of
    a test allows for; mining asks by itself.
    """
    import importlib.util

    names = TESTS + TESTS_WITH_DATA if importlib.util.find_spec('tensorflow') else TESTS
    names = ('loss/test_thresholds.py',) if options.small else names
    files = [f'tests/{name}' for name in names]
    without = ' and '.join(f'not {word}' for word in SEVERAL_DEVICES)
    flags = {'XLA_FLAGS': '', 'JAX_DEFAULT_MATMUL_PRECISION': 'highest'}
    workers = '0' if options.small else '8'
    # What other versions of packages warn of is no failure.
    command = ['-m', 'pytest', '-q', '-o', 'filterwarnings=default', '-n', workers]
    command += ['-k', without, *files]
    try:
        printed = run(command, **flags)
    except RuntimeError as error:
        printed = str(error)
    last = printed.strip().splitlines()[-1].strip('= ')
    results.add('tests on the device', files=len(files), result=last)


def check_precision(results, options):
    """Loss, gradient and mined rows in float32 on the device against float64 on the CPU."""
    for rows in (64,) if options.small else (1024, 4096):
        path = options.output / f'exact-{rows}.npz'
        exact = [PARTS, 'exact', f'--output={path}', f'--rows={rows}']
        run(exact, JAX_PLATFORMS='cpu', JAX_ENABLE_X64='1')
        compare_with_exact(results, rows, dict(np.load(path)))
        path.unlink()


def make_batch(rows, dtype=np.float32):
    """Slices of unit length, side by side [rows, WIDTH], labels, thresholds; everywhere the same."""
    generator = np.random.default_rng(0)
    slices = generator.standard_normal((rows, SLICES, WIDTH // SLICES)).astype(np.float32)
    embeddings = slices.reshape(rows, WIDTH).astype(dtype)
    thresholds = (1.5275 * (np.arange(SLICES) + 0.5) / SLICES).astype(dtype)
    return embeddings, np.arange(rows, dtype=np.int32) % CLASSES, thresholds


def judge(embeddings, labels, thresholds):
    """(loss, gradient, mined triplets) by the package, in the precision of the inputs."""
    import jax

    import mtdml_jax

    loss = jax.jit(jax.value_and_grad(mtdml_jax.multi_threshold_loss, has_aux=True))
    (value, _), gradient = loss(embeddings, labels, thresholds)
    slices = mtdml_jax.split_slices(embeddings, SLICES)
    return value, gradient, jax.jit(mtdml_jax.mine_batch_hard)(slices, labels)


def write_exact(options):
    """The file that `compare_with_exact` reads; for a process with float64 on the CPU."""
    loss, gradient, triplets = judge(*make_batch(options.rows, np.float64))
    rows = {'positive': triplets.positive, 'negative': triplets.negative}
    np.savez(options.output, loss=loss, gradient=gradient, **rows)


def compare_with_exact(results, rows, exact):
    """Adds the rows of `check_precision`."""
    embeddings, labels, thresholds = make_batch(rows)
    loss, gradient, triplets = judge(embeddings, labels, thresholds)
    difference = np.linalg.norm(gradient - exact['gradient'])
    slices = embeddings.astype(np.float64).reshape(rows, SLICES, -1)
    slices /= np.linalg.norm(slices, axis=-1, keepdims=True)
    row = {
        'rows': rows,
        'loss': abs(float(loss) / float(exact['loss']) - 1),
        'gradient': difference / np.linalg.norm(exact['gradient']),
    }
    for name in ('positive', 'negative'):
        found, best = np.asarray(getattr(triplets, name)), exact[name]
        places = np.argwhere(found != best)
        gaps = [
            abs(np.linalg.norm(slices[a, s] - slices[found[s, a], s]) - right)
            for s, a in places
            for right in [np.linalg.norm(slices[a, s] - slices[best[s, a], s])]
        ]
        row |= {f'other {name}s': len(places), f'{name}s farther off by': max(gaps, default=0.0)}
    results.add('float32 on the device against float64 on the CPU', **row)


def check_bits(results, options):
    """Two runs of one seed, and one that goes on from a checkpoint: are their weights the same bits?"""
    at_once(
        *(
            lambda flag=flag, name=name: compare_bits(results, options, name, flag)
            for name, flag in list(DETERMINISM.items())[: 1 if options.small else None]
        )
    )


def compare_bits(results, options, name, flag):
    """Adds a row: under a flag, are runs of one seed equal?"""
    folder = options.output / f'bits-{list(DETERMINISM).index(name)}'

    def weights_of(workdir, *more):
        command = [PARTS, 'steps', f'--output={folder / workdir}', *more]
        command += ['--small'] if options.small else []
        return run(command, flags=flag).split()[-1]

    found = {}
    at_once(
        lambda: found.update(first=weights_of('first')),
        lambda: found.update(second=weights_of('second')),
    )
    found['resumed'] = weights_of('first', '--resume')
    results.add(
        'same seed, same bits',
        XLA_FLAGS=name,
        again=found['first'] == found['second'],
        resumed=found['first'] == found['resumed'],
    )


def take_steps(options):
    """Trains some steps on random images, with a checkpoint half way; prints a digest of the weights."""
    import jax
    from flax import jax_utils

    from mtdml_jax.config import load_config
    from mtdml_jax.training import checkpoints
    from mtdml_jax.training.step import AXIS, make_training, on_host, split_over_devices

    batch, side, steps = (14, 16, 4) if options.small else (126, 48, 30)
    width = 1 / 16 if options.small else 1.0
    overrides = [f'data.image_size={side}', f'model.width_factor={width}', 'model.stem=cifar']
    overrides += ['model.backbone=resnet10'] if options.small else []
    config = load_config('configs/default.py', [f'--config.{x}' for x in overrides])
    _, state, step = make_training(config, np.ones(CLASSES, int))
    manager = checkpoints.open_checkpoints(options.output, config.train)
    if options.resume:
        state, _ = checkpoints.restore(manager, manager.latest_step(), state)
    first = int(state.step)
    state = jax_utils.replicate(jax.device_get(state), axis_name=AXIS)
    with manager:
        for number in range(first, steps):
            generator = np.random.default_rng((7, number))
            images = generator.standard_normal((batch, side, side, 1), np.float32)
            labels = np.arange(batch, dtype=np.int32) % CLASSES
            found = {'image': images, 'label': labels, 'mask': np.ones(batch, bool)}
            state, _ = step(state, split_over_devices(found))
            if number + 1 == steps // 2:
                host = on_host(state)
                checkpoints.save(manager, host, None, {})
    leaves = jax.tree.leaves(on_host(state))
    print(hashlib.sha256(b''.join(x.tobytes() for x in leaves)).hexdigest())


def compare_tiles(results, options):
    """Mining by the size of a tile: large ones take fewer launches, small ones stay in a cache."""
    import jax

    import mtdml_jax

    for rows in (64,) if options.small else (4096, 65536):
        embeddings, labels, _ = make_batch(rows)
        slices = jax.device_put(mtdml_jax.split_slices(embeddings, SLICES))
        for power in (10,) if options.small else (20, 22, 24, 26, 28):
            if 2**power > rows**2:
                break
            tile = 2**power // rows
            mine = jax.jit(partial(mtdml_jax.mine_batch_hard, tile=tile))
            seconds = []
            for _ in range(4):
                start = time.perf_counter()
                jax.block_until_ready(mine(slices, labels))
                seconds.append(time.perf_counter() - start)
            middle = 1e3 * statistics.median(seconds[1:])  # The first compiles.
            results.add('mining by tile', rows=rows, distances=f'2^{power}', ms=middle)


def loss(results, options):
    """How fast is the loss, how much memory does it take, and what is the best tile?"""
    compare_tiles(results, options)
    command = [f'{BENCHMARKS}/benchmark_loss.py', '--rounds=3', '--large=0']
    command += [f'--output={options.output}', '--sizes']
    # Each in a process of its own: one that lacks memory, or time, costs no other its rows.
    for size in (64,) if options.small else (1024, 4096, 16384, 65536):
        try:
            run([*command, size])
        except RuntimeError as error:
            results.add('loss, failed', batch=size, error=str(error))
            continue
        with (options.output / 'benchmark_loss.csv').open(newline='') as file:
            for row in csv.DictReader(file):
                name = row.pop('contestant')
                results.add('loss', contestant=name, **{k: float(v) for k, v in row.items()})


def step(results, options):
    """How fast is the training step, beside PyTorch's?"""
    networks = ['tiny'] if options.small else ['resnet18', 'resnet50']
    command = [f'{BENCHMARKS}/benchmark_training.py', '--gpu', '--networks', *networks]

    def add(line):
        if line.startswith('{'):
            results.add('step', **json.loads(line))

    # At once: who compiles for longer than there is time costs no other its row.
    run([*command, f'--seconds={options.seconds - 5}'], each=add)


def feed(results, options):
    """Does training wait for its data?"""
    gpu = ['--config=configs/fer2013_gpu.py', '--config.model.dtype=bfloat16']
    large = ['--config=configs/folder.py', '--config.model.backbone=resnet50']
    large += ['--config.model.stem=imagenet', '--config.model.width_factor=1.0']
    large += ['--config.data.image_size=224', '--config.data.channels=3']
    large += ['--config.model.dtype=bfloat16']
    faces = options.output / 'jpeg'
    cases = {
        RECIPE: [*gpu, *places(options)],
        '48 px from memory, batch 512': [*gpu, '--config.data.batch_size=512', *places(options)],
        '224 px JPEG, batch 128': [
            *large,
            f'--config.data.dir={faces}',
            f'--config.data.prepared_dir={faces}',
        ],
    }
    if options.small:
        cases = {'digits': ['--config=configs/quickstart.py', *TINY, *places(options)]}
    else:
        write_jpeg_files(faces)
    amount = ['--rounds=1', '--batches=10', '--steps=3']
    amount = amount if options.small else ['--rounds=3', '--batches=150', '--steps=150']
    for name, arguments in cases.items():
        printed = run([f'{BENCHMARKS}/benchmark_pipeline.py', *amount, *arguments])
        found = re.findall(r'^(\w[\w ]*?) +([\d.]+)(?:%| images|$)', printed, re.MULTILINE)
        results.add('images per second', case=name, **{k: float(v) for k, v in found})


# Settings that make a run of the real command small, on images that need no drawing.
TINY = [
    f'--config.{x}'
    for x in (
        'data.name=digits',
        'model.backbone=resnet10',
        'model.width_factor=0.0625',
        'data.image_size=16',
        'train.num_steps=4',
        'train.checkpoint_every=4',
        'train.log_every=2',
        'eval.gallery_size=500',
        'eval.split=test[:20%]',
    )
]


def places(options):
    """Where the data is."""
    folders = {'dir': options.data, 'prepared_dir': options.prepared}
    return [f'--config.data.{key}={value}' for key, value in folders.items() if value]


def write_jpeg_files(folder):
    """Drawn faces of 224 px, once."""
    from benchmark_files import write_files

    if not folder.exists():
        write_files(folder / 'train', 1400)


def train(results, options, name, arguments):
    """The real command: its time, its evaluation, and its looks at the validation split."""
    workdir = options.output / f'run-{name}'
    start = time.perf_counter()
    command = ['-m', 'mtdml_jax', 'train', f'--workdir={workdir}', *arguments]
    run([*command, *(TINY if options.small else []), *places(options)])
    seconds = time.perf_counter() - start
    evaluation = json.loads((workdir / 'evaluation.json').read_text(encoding='utf-8'))
    scores = {key: 100 * x['accuracy'] for key, x in evaluation['classifiers'].items()}
    trained = evaluation['run']['seconds']
    row = {'steps': evaluation['run']['steps'], 'seconds': seconds, 'of it training': trained}
    results.add('runs', run=name, **row, **scores)
    for line in (workdir / 'metrics.jsonl').read_text(encoding='utf-8').splitlines():
        found = json.loads(line)
        if 'validation/softmax_accuracy' in found:
            accuracy = 100 * found['validation/softmax_accuracy']
            results.add('curve', run=name, step=found['step'], softmax=accuracy)


def quickstart(results, options):
    """The README's first command."""
    train(results, options, 'quickstart', ['--config=configs/quickstart.py'])


def affordable_steps(options, start_and_end=70, every=3350, most=67_000):
    """Steps of the recipe that fit into the part at the rate that `feed` has found; 0: not known."""
    path = options.output / 'feed.json'
    rows = json.loads(path.read_text(encoding='utf-8'))['rows'] if path.exists() else []
    rates = [row['training'] for row in rows if row['case'] == RECIPE]
    if not rates:
        return 0
    steps = (options.seconds - start_and_end) * rates[0] / 128
    return max(1, min(most, int(steps)) // every) * every


def fer2013(results, options):
    """The recipe for GPUs, cut to the time at hand."""
    config = 'quickstart' if options.small else 'fer2013_gpu'
    arguments = [f'--config=configs/{config}.py', '--config.model.dtype=bfloat16']
    steps = options.steps or affordable_steps(options)
    arguments += [f'--config.train.num_steps={steps}'] if steps else []
    train(results, options, 'fer2013', arguments)


# A third of FER2013, full width.
FULL_WIDTH = {
    'data.train_split': 'train[:33%]',
    'eval.split': 'train[33%:]',
    'eval.gallery_size': 9474,
    'eval.flip': False,
    'model.dtype': 'bfloat16',
    'train.num_steps': 1500,
    'train.log_every': 100,
    'train.checkpoint_every': 1500,
    'train.ema_decay': 0.99,
}
# The metric term alone, on clean labels.
POSED = {
    'loss.softmax_weight': 0.0,
    'model.embedding_norm': 'batch',
    'model.width_factor': 1.0,
    'model.dtype': 'bfloat16',
    'data.batch_size': 63,
    'train.num_steps': 2000,
    'train.checkpoint_every': 2000,
    'train.log_every': 100,
    'train.best_metric': 'knn_accuracy',
}


def draw(rows, path):
    """Accuracy of every cell."""
    from study_figures import draw_cells

    draw_cells(rows, path)


def make_studies():
    """The studies of the paper's claim: on noisy labels with all terms, and on clean ones alone."""
    _, high = threshold_range(CLASSES, 32)
    faces = {
        'cross-entropy': CROSS_ENTROPY,
        **{f'single-{t}': one_threshold(t) for t in (0.1, 0.5, 1.0)},
        'slices-8': {},
        'slices-8-all': {'loss.mining': 'all', 'loss.metric_weight': 0.3},
    }
    posed = {
        'slices-8': {},
        **{f'single-{x}': one_threshold(round(x * high, 3)) for x in (0.2, 0.5, 0.9)},
    }
    return {
        'posed': Study(
            name='gpu_posed',
            config='configs/quickstart.py',
            cells=[Cell(name, {**POSED, **x}) for name, x in posed.items()],
            seeds=range(5),
            reference='slices-8',
            draw=draw,
            converged=0.9,
        ),
        'faces': Study(
            name='gpu_faces',
            config='configs/fer2013_gpu.py',
            cells=[Cell(name, {**FULL_WIDTH, **x}) for name, x in faces.items()],
            seeds=range(5),
            reference='cross-entropy',
            draw=draw,
        ),
    }


def study(results, options):
    """One threshold against many, several runs at a time; stops starting runs when time is over."""
    studies = make_studies()
    if options.small:
        del studies['faces']
    share = (options.seconds - 15) / len(studies)
    for number, (name, what) in enumerate(studies.items(), start=1):
        arguments = [f'--output={options.output / "study"}', f'--runs={options.output / "runs"}']
        arguments += [f'--jobs={options.jobs}', f'--until={options.start + number * share}']
        arguments += places(options)
        if options.small:
            what = what._replace(config='configs/quickstart.py', cells=what.cells[:1], seeds=[0])
            arguments += [*TINY, '--config.data.train_split=train']
        run_study(what, arguments)
        path = options.output / 'study' / 'results' / f'{what.name}.csv'
        with path.open(newline='') as file:
            for row in csv.DictReader(file):
                keys = ('cell', 'seed', 'softmax_accuracy', 'knn_accuracy', 'map_at_r')
                results.add(name, **{key: row.get(key, '') for key in keys})


def main():
    """Runs a part."""
    parts = (check, loss, step, feed, quickstart, fer2013, study)
    commands = {'exact': write_exact, 'steps': take_steps}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('part', choices=[*(part.__name__ for part in parts), *commands])
    parser.add_argument('--output', type=Path, required=True)
    parser.add_argument('--seconds', type=float, default=300)
    parser.add_argument('--small', action='store_true')
    parser.add_argument('--data', help='config.data.dir')
    parser.add_argument('--prepared', help='config.data.prepared_dir')
    parser.add_argument('--commit', help='where there is no repository to tell')
    parser.add_argument('--steps', type=int, help='of the recipe for FER2013')
    parser.add_argument('--jobs', type=int, default=1, help='runs of the study at a time')
    parser.add_argument('--rows', type=int, help=argparse.SUPPRESS)
    parser.add_argument('--resume', action='store_true', help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.start = time.time()
    if options.part in commands:
        commands[options.part](options)
        return
    results = Results(options.output / f'{options.part}.json', options.commit)
    {part.__name__: part for part in parts}[options.part](results, options)


if __name__ == '__main__':
    main()
