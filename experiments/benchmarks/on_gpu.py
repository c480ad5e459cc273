"""Measures everything that only a GPU can answer. on_gpu.md fits it into fifteen minutes.

    python experiments/benchmarks/on_gpu.py --output FOLDER [--parts check loss step feed ...]

Runs each part in a new process with a time limit, and continues after a part that fails. FOLDER gets a
log and a JSON file with rows for each part, and tables in summary.md. --small runs every part on a CPU,
two at a time. carry.sh packs what a machine without a network lacks.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import benchmark_files
import benchmark_loss
import benchmark_pipeline
import benchmark_training
from harness import in_new_process, run_limited, run_python, table
from record import describe_machine, describe_software, read_rows
from studies import STUDIES
from study import run_study

from mtdml_jax.host.files import write_whole

# Part -> seconds that it may take.
LIMITS = {'check': 90, 'loss': 120, 'step': 120, 'feed': 60, 'quickstart': 90, 'fer2013': 240}
LIMITS['study'] = 240
LOCK = threading.Lock()
KEPT = {'.csv', '.html', '.json', '.jsonl', '.log', '.md', '.png'}
# Name -> flags of XLA for the check of equal bits.
DETERMINISM = {
    'as it is': '',
    'nondeterministic operations excluded': '--xla_gpu_exclude_nondeterministic_ops=true',
    'deterministic operations': '--xla_gpu_deterministic_ops=true',
}
# This case of `feed` is the recipe for FER2013 on GPUs.
RECIPE, BATCH_512 = '48 px from memory, batch 128', '--config.data.batch_size=512'
# These tests need neither 8 devices nor several processes. The first group needs no TensorFlow.
TESTS = 'multi_threshold loss_options mining slicing distances thresholds exchange'
TESTS_WITH_DATA = 'models/test_network models/test_resnet'
TESTS_WITH_DATA += ' training/test_step training/test_state training/test_checkpoints'
TINY = """
data.name=digits model.backbone=resnet10 model.width_factor=0.0625 data.image_size=16 train.num_steps=4
train.checkpoint_every=4 train.log_every=2 eval.gallery_size=500 eval.split=test[:20%]"""
LARGE = """model.backbone=resnet50 model.stem=imagenet model.width_factor=1.0 data.image_size=224
data.channels=3 model.dtype=bfloat16"""
# With --small, compilation takes most of the time.
CHEAP = {'XLA_FLAGS': '--xla_backend_optimization_level=0', 'OMP_NUM_THREADS': '1'}
CHEAP['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.1'


def archive(output, path):
    """Packs tables, logs, curves and reports, but no weights, images, or reports of the study's runs."""
    kept = ' -o '.join(f"-name '*{suffix}'" for suffix in KEPT)
    find = f"find . \\( {kept} \\) -size -4000k -not -path './runs/*.html'"
    command = f'{find} | tar -czf {path}.partial -T - && mv {path}.partial {path}'
    subprocess.run(command, shell=True, cwd=output, check=True)


class Part:
    """What a part has measured, in FOLDER/PART.json after every row."""

    def __init__(self, name, options):
        self.path, self.options = options.output / f'{name}.json', options
        self.output, self.small = options.output, options.small
        self.seconds, self.start = options.limits[name], time.time()
        machine = {'machine': describe_machine(), **describe_software()}
        machine['commit'] = options.commit or machine['commit']
        self.content = {'machine': machine, 'rows': []}
        folders = {'dir': options.data, 'prepared_dir': options.prepared}
        self.places = [f'--config.data.{key}={value}' for key, value in folders.items() if value]

    def add(self, what, **row):
        """Adds a row of a kind; threads may call it."""
        with LOCK:
            self.content['rows'].append({'what': what, **row})
            write_whole(self.path, json.dumps(self.content, indent=1))
            print(what, row, flush=True)


def settings(text):
    """Arguments for settings such as 'seed=0', separated by spaces."""
    return [f'--config.{setting}' for setting in text.split()]


def check(part):
    """Runs the tests, compares the loss with float64, and compares the bits of equal seeds."""
    names = list(DETERMINISM)[: 1 if part.small else None]
    tasks = [check_tests, check_precision, *(partial(check_bits, name=name) for name in names)]
    with ThreadPoolExecutor(len(tasks)) as pool:
        for future in [pool.submit(task, part) for task in tasks]:
            future.result()


def check_tests(part):
    """Runs the tests of the method on this device, with products in full precision."""
    # By default a GPU rounds float32 products to TF32 (10 bits), more than the tests tolerate.
    files = [f'loss/test_{name}' for name in TESTS.split()]
    files += TESTS_WITH_DATA.split() if importlib.util.find_spec('tensorflow') else []
    files = ['loss/test_thresholds'] if part.small else files
    command = ['-m', 'pytest', '-q', '-o', 'filterwarnings=default', '-n', 0 if part.small else 8]
    command += ['-k', 'not devices and not processes and not replicas']
    lines = []
    with contextlib.suppress(RuntimeError):
        variables = {'XLA_FLAGS': '', 'JAX_DEFAULT_MATMUL_PRECISION': 'highest'}
        lines.extend(run_python([*command, *(f'tests/{x}.py' for x in files)], **variables))
    result = lines[-1].strip('= \n') if lines else 'nothing was printed'
    part.add('tests on the device', files=len(files), result=result)


def check_precision(part):
    """Compares loss, gradient and mined rows in float32 on the device with float64 on the CPU."""
    what = 'float32 on the device against float64 on the CPU'
    for size in (64,) if part.small else (1024, 4096):
        part.add(what, **benchmark_loss.compare_with_float64(size))


def check_bits(part, name):
    """Compares the weights of two runs of one seed, and of one that continues from a checkpoint."""
    # A space in front would make XLA take the flags for the name of a file.
    flags = {'XLA_FLAGS': f'{DETERMINISM[name]} {os.environ.get("XLA_FLAGS", "")}'.strip()}
    folder = part.output / f'bits-{list(DETERMINISM).index(name)}'
    first, second, resumed = (
        in_new_process(benchmark_training.digest_of_steps, folder / workdir, part.small, **flags)
        for workdir in ('first', 'second', 'first')
    )
    found = {'again': first == second, 'resumed': first == resumed}
    part.add('same seed, same bits', XLA_FLAGS=name, **found)


def loss(part):
    """Measures mining by the size of a tile, and the loss, each batch size in a new process."""
    for size in (64,) if part.small else (4096, 65536):
        for row in benchmark_loss.time_tiles(size, (10,) if part.small else (20, 22, 24, 26, 28)):
            part.add('mining by tile', **row)
    for size in (64,) if part.small else (1024, 4096, 16384, 65536):
        try:
            rows, _ = in_new_process(benchmark_loss.compare, size, benchmark_loss.contestants(), 3)
        except RuntimeError as error:
            part.add('loss, failed', batch=size, error=str(error))
            continue
        benchmark_loss.save(part.output, rows, 3)
        for row in rows:
            part.add('loss', **row)


def step(part):
    """Measures the training step beside PyTorch's."""
    deadline = part.start + part.seconds - 5
    for row in benchmark_training.compare_on_gpu(part.small, deadline):
        part.add('step', **row)


def feed(part):
    """Measures whether training waits for its data."""
    faces, gpu = part.output / 'jpeg', settings('model.dtype=bfloat16')
    here = [f'--config.data.{key}={faces}' for key in ('dir', 'prepared_dir')]
    cases = {
        RECIPE: ('fer2013_gpu', [*gpu, *part.places]),
        '48 px from memory, batch 512': ('fer2013_gpu', [*gpu, BATCH_512, *part.places]),
        '224 px JPEG, batch 128': ('folder', [*settings(LARGE), *here]),
    }
    if part.small:
        cases = {'digits': ('quickstart', [*settings(TINY), *part.places])}
    elif not faces.exists():
        benchmark_files.write_files(faces / 'train', 1400)
    amounts = (1, 10, 3) if part.small else (3, 150, 150)
    for name, case in cases.items():
        found = in_new_process(benchmark_pipeline.measure, *case, *amounts)
        part.add('images per second', case=name, **found)


def train(part, name, arguments):
    """Runs the real command; adds its time, its evaluation and its validation runs."""
    workdir, start = part.output / f'run-{name}', time.perf_counter()
    command = ['-m', 'mtdml_jax', 'train', f'--workdir={workdir}', *arguments]
    list(run_python([*command, *(settings(TINY) if part.small else []), *part.places]))
    row = {'run': name, 'seconds': time.perf_counter() - start}
    evaluation = json.loads((workdir / 'evaluation.json').read_text(encoding='utf-8'))
    row |= {'steps': evaluation['run']['steps'], 'of it training': evaluation['run']['seconds']}
    scores = {key: 100 * x['accuracy'] for key, x in evaluation['classifiers'].items()}
    part.add('runs', **row, **scores)
    for line in (workdir / 'metrics.jsonl').read_text(encoding='utf-8').splitlines():
        found = json.loads(line)
        if 'validation/softmax_accuracy' in found:
            found['softmax'] = 100 * found['validation/softmax_accuracy']
            part.add('curve', run=name, **{key: found[key] for key in ('step', 'softmax')})


def quickstart(part):
    """Runs the README's first command."""
    train(part, 'quickstart', ['--config=configs/quickstart.py'])


def fer2013(part, start_and_end=70, every=3350, most=67_000):
    """Runs the recipe for GPUs with as many steps as the limit allows by the rate of `feed`."""
    config = f'--config={"quickstart" if part.small else "fer2013_gpu"}'
    arguments = [config, '--config.model.dtype=bfloat16']
    steps, path = part.options.steps, part.output / 'feed.json'
    rows = json.loads(path.read_text(encoding='utf-8'))['rows'] if path.exists() else []
    for row in rows:
        if row['case'] == RECIPE and not steps:
            steps = int((part.seconds - start_and_end) * row['training'] / 128)
            steps = max(1, min(most, steps) // every) * every
    train(part, 'fer2013', arguments + ([f'--config.train.num_steps={steps}'] if steps else []))


def study(part):
    """Compares one threshold with many, several runs at a time, until the time is over."""
    studies = [STUDIES[name] for name in ('gpu_posed', 'gpu_faces')[: 1 if part.small else None]]
    share, output = (part.seconds - 15) / len(studies), part.output
    for number, what in enumerate(studies, start=1):
        arguments = [f'--output={output / "study"}', f'--runs={output / "runs"}', *part.places]
        arguments += [f'--jobs={part.options.jobs}', f'--until={part.start + number * share}']
        if part.small:
            what = what._replace(cells=what.cells[:1], seeds=[0])
            arguments += [*settings(TINY), '--config.data.train_split=train']
        run_study(what, arguments)
        for row in read_rows(output / 'study' / 'results' / f'{what.name}.csv'):
            keys = ('cell', 'seed', 'softmax_accuracy', 'knn_accuracy', 'map_at_r')
            part.add(what.name, **{key: row.get(key, '') for key in keys})


PARTS = {part.__name__: part for part in (check, loss, step, feed, quickstart, fer2013, study)}


def summarize(output, endings):
    """Markdown: how each part ended, and a table for each kind of rows."""
    lines = table(('part', 'end'), endings.items())
    for name in endings:
        path = output / f'{name}.json'
        if not path.exists():
            continue
        found = json.loads(path.read_text(encoding='utf-8'))
        lines += ['', f'## {name}', '', ', '.join(f'{k} {v}' for k, v in found['machine'].items())]
        for kind in dict.fromkeys(row['what'] for row in found['rows']):
            rows = [row for row in found['rows'] if row['what'] == kind]
            keys = dict.fromkeys(key for row in rows for key in row if key != 'what')
            cells = ([row.get(key, '') for key in keys] for row in rows)
            lines += ['', f'### {kind}', '', *table([*keys], cells)]
    return '\n'.join(lines) + '\n'


def run_part(name, options):
    """Runs a part in this process."""
    PARTS[name](Part(name, options))


def main():
    """Runs the parts; returns 1 if one of them fails or reaches its limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--output', type=Path, required=True)
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=[*PARTS], metavar='PART')
    parser.add_argument('--limits', nargs='*', default=[], metavar='PART=SECONDS')
    parser.add_argument('--archive', type=Path, help='a tar.gz of the results, after each part')
    parser.add_argument('--small', action='store_true')
    parser.add_argument('--data', help='config.data.dir')
    parser.add_argument('--prepared', help='config.data.prepared_dir')
    parser.add_argument('--commit', help='commit of the code, where there is no repository')
    parser.add_argument('--steps', type=int, help='steps of the recipe for FER2013')
    parser.add_argument('--jobs', type=int, default=1, help='runs of the study at a time')
    options = parser.parse_args()
    options.output = options.output.absolute()
    options.output.mkdir(parents=True, exist_ok=True)
    options.limits = LIMITS | {k: float(v) for k, v in (x.split('=') for x in options.limits)}
    # Several processes share the GPU; by default JAX would take most of its memory at once.
    os.environ['XLA_PYTHON_CLIENT_PREALLOCATE'] = 'false'
    if options.small:
        os.environ |= CHEAP | {'JAX_COMPILATION_CACHE_DIR': str(options.output / 'compiled')}
    endings, workers = {}, 2 if options.small else 1  # Parts that measure run alone.

    def run(name):
        start, limit = time.monotonic(), {'seconds': options.limits[name]}
        end = run_limited(run_part, (name, options), log=options.output / f'{name}.log', **limit)
        return f'{end} ({time.monotonic() - start:.0f} s)'

    with ThreadPoolExecutor(workers) as pool:
        ends = pool.map(run, options.parts)
        for name, end in zip(options.parts, ends, strict=True):
            endings[name] = end
            print(f'{name}: {end}', flush=True)
            summary = summarize(options.output, endings)
            write_whole(options.output / 'summary.md', summary)
            if options.archive:
                archive(options.output, options.archive.absolute())
    print(summary)
    return int(not all(end.startswith('done') for end in endings.values()))


if __name__ == '__main__':
    sys.exit(main())
