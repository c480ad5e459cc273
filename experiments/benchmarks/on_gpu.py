"""Measures everything that only a GPU can answer. on_gpu.md fits it into fifteen minutes.

    python experiments/benchmarks/on_gpu.py run --output FOLDER
        [--parts check loss step feed quickstart fer2013 study]
    python experiments/benchmarks/on_gpu.py pack --data FOLDER
    python experiments/benchmarks/on_gpu.py unpack FOLDER

`run` runs each part in a new process with a time limit, and continues after a part that fails. FOLDER
gets logs, rows as JSON, and tables in summary.md. --small runs every part on a CPU, two at a time.
`pack` needs a network. It writes to build/carry/ the packages that a GPU machine without a network lacks,
and FER2013 of FOLDER as records, as parts of an archive. `unpack` checks the parts in FOLDER on the GPU
machine, and extracts FOLDER/site for PYTHONPATH, FOLDER/data for --data and FOLDER/prepared for
--prepared. It needs Python 3.12 or newer.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

# Parts import the harness and JAX themselves, because `unpack` runs before all packages are there.

ROOT = Path(__file__).absolute().parents[2]
CARRY = ROOT / 'build' / 'carry'
# Part -> seconds that it may take.
LIMITS = {'check': 90, 'loss': 120, 'step': 120, 'feed': 60}
LIMITS |= {'quickstart': 90, 'fer2013': 240, 'study': 240}
KEPT = {'.csv', '.html', '.json', '.jsonl', '.log', '.md', '.png'}
# Flags of XLA for the check of equal bits, each after a name.
DETERMINISM = {
    'as it is': '',
    'nondeterministic operations excluded': '--xla_gpu_exclude_nondeterministic_ops=true',
    'deterministic operations': '--xla_gpu_deterministic_ops=true',
}
# This case of `feed` is the recipe for FER2013 on GPUs.
RECIPE = '48 px from memory, batch 128'
# These tests need neither 8 devices nor several processes. The first group needs no TensorFlow.
TESTS = 'multi_threshold loss_options mining slicing distances thresholds exchange'
TESTS_WITH_DATA = """
models/test_network.py models/test_resnet.py training/test_step.py training/test_state.py
training/test_checkpoints.py
"""
# Settings for a small run of the real command on images that need no drawing.
TINY = """
data.name=digits model.backbone=resnet10 model.width_factor=0.0625 data.image_size=16 train.num_steps=4
train.checkpoint_every=4 train.log_every=2 eval.gallery_size=500 eval.split=test[:20%]
"""
LARGE = """
model.backbone=resnet50 model.stem=imagenet model.width_factor=1.0 data.image_size=224 data.channels=3
model.dtype=bfloat16
"""
# With --small, compilation takes most of the time, and parts share compiled programs.
CHEAP = {'XLA_FLAGS': '--xla_backend_optimization_level=0', 'OMP_NUM_THREADS': '1'}
CHEAP |= {'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.1'}
WHOLE = 'all.tar.xz'
# 64 MiB may travel at once, together with the repository.
PART_BYTES = 50_000_000
PYTHON = '3.12'
TAGS = 'manylinux_2_28_x86_64 manylinux_2_27_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64 any'
# The GPU machine has jax, flax, optax, orbax, chex, scikit-learn, pytest, and what they need. TensorFlow
# works without keras.
PACKAGES = """
array_record astunparse dm-tree docstring_parser gast google-pasta googleapis-common-protos immutabledict
importlib_resources ml_collections promise protobuf pytorch-metric-learning simple-parsing tensorboardX
tensorflow-cpu tensorflow-datasets tensorflow-metadata termcolor toml
"""
# Only compilers read these files of TensorFlow.
UNUSED = ('tensorflow/include', 'tensorflow/xla_aot_runtime_src', 'bin')


def install(site: Path) -> None:
    """Installs the packages into a folder for the Python of the GPU machine."""
    command = [sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--no-compile']
    command += ['--only-binary=:all:', '--no-binary=promise', f'--python-version={PYTHON}']
    command += ['--implementation=cp', *(f'--platform={tag}' for tag in TAGS.split())]
    subprocess.run([*command, f'--target={site}', *PACKAGES.split()], check=True)
    for name in UNUSED:
        shutil.rmtree(site / name, ignore_errors=True)
    # Names of internal functions are a quarter of the largest file.
    for library in (site / 'tensorflow').glob('libtensorflow_*.so*'):
        subprocess.run(['strip', '--strip-unneeded', library], check=True)


def prepare_faces(source: Path, data: Path, prepared: Path) -> None:
    """Writes FER2013 as records to `prepared`, and to `data` a file of zeros in place of its source.

    The package recognises prepared data by name, size and time of the source, and does not read it.
    """
    data.mkdir()
    (path,) = source.glob('fer2013.csv*')
    copy = data / path.name
    shutil.copyfile(path, copy)
    whole_second = int(path.stat().st_mtime)  # An archive keeps no fractions of seconds.
    os.utime(copy, (whole_second, whole_second))
    command = [sys.executable, '-m', 'mtdml_jax', 'prepare', '--config=configs/fer2013.py']
    command += [f'--config.data.dir={data}', f'--config.data.prepared_dir={prepared}']
    subprocess.run(command, cwd=ROOT, check=True)
    with copy.open('wb') as file:
        file.truncate(path.stat().st_size)
    os.utime(copy, (whole_second, whole_second))


def pack(work: Path, folder: Path) -> None:
    """Writes an archive of `work` in parts, and their checksums."""
    with tarfile.open(folder / WHOLE, 'w:xz') as file:
        file.add(work, '')
    commands = f'split -b {PART_BYTES} -d -a 1 {WHOLE} part- && rm {WHOLE}'
    commands += ' && sha256sum part-* > SHA256SUMS && ls -l'
    subprocess.run(commands, shell=True, cwd=folder, check=True)


def unpack(folder: Path) -> int:
    """Joins and extracts the parts; returns the exit code, which is not 0 if a part is not intact."""
    commands = f'sha256sum --check --quiet SHA256SUMS && cat part-* > {WHOLE}'
    done = subprocess.run(commands, shell=True, cwd=folder, check=False)
    if done.returncode == 0:
        with tarfile.open(folder / WHOLE) as file:
            file.extractall(folder, filter='fully_trusted')
        (folder / WHOLE).unlink()
    return done.returncode


def archive(output: Path, path: Path) -> None:
    """Packs tables, logs, curves and reports, but neither weights nor images."""

    def keep(found):
        suffix, in_study = Path(found.name).suffix, found.name.startswith('runs/')
        # A study has many runs, each with a report.
        is_kept = suffix in KEPT and found.size < 4_000_000 and not (in_study and suffix == '.html')
        return found if found.isdir() or is_kept else None

    partial_path = path.with_suffix('.partial')
    with tarfile.open(partial_path, 'w:gz') as file:
        file.add(output, '', filter=keep)
    partial_path.replace(path)


class Part:
    """What a part has measured, in FOLDER/PART.json after every row."""

    def __init__(self, name, options):
        from harness import describe_machine

        self.path, self.options = options.output / f'{name}.json', options
        self.seconds, self.start = options.limits[name], time.time()
        machine = describe_machine() | ({'commit': options.commit} if options.commit else {})
        self.content = {'machine': machine, 'rows': []}
        folders = {'dir': options.data, 'prepared_dir': options.prepared}
        self.places = [f'--config.data.{key}={value}' for key, value in folders.items() if value]

    def add(self, what, **row):
        """Adds a row of a kind; rows of threads come one by one."""
        self.content['rows'].append({'what': what, **row})
        self.path.write_text(json.dumps(self.content, indent=1), encoding='utf-8')
        print(what, row, flush=True)


def settings(text):
    """Arguments for settings such as 'seed=0', separated by spaces."""
    return [f'--config.{setting}' for setting in text.split()]


def check(part):
    """Runs the tests, compares the loss with float64, and compares the bits of equal seeds."""
    names = list(DETERMINISM)[: 1 if part.options.small else None]
    tasks = [check_tests, check_precision, *(partial(check_bits, name=name) for name in names)]
    with ThreadPoolExecutor(len(tasks)) as pool:
        for future in [pool.submit(task, part) for task in tasks]:
            future.result()


def check_tests(part):
    """Runs the tests of the method on this device, with products in full precision.

    A GPU rounds float32 products to TF32 (10 bits) by default, which the tolerances of the tests do not
    allow for. Mining asks for full precision itself.
    """
    files = [f'loss/test_{name}.py' for name in TESTS.split()]
    files += TESTS_WITH_DATA.split() if importlib.util.find_spec('tensorflow') else []
    files = ['loss/test_thresholds.py'] if part.options.small else files
    # Other versions of packages may warn.
    command = ['-m', 'pytest', '-q', '-o', 'filterwarnings=default']
    command += ['-n', '0' if part.options.small else '8']
    command += ['-k', 'not devices and not processes and not replicas']
    from harness import run_python

    lines = []
    with contextlib.suppress(RuntimeError):
        variables = {'XLA_FLAGS': '', 'JAX_DEFAULT_MATMUL_PRECISION': 'highest'}
        lines.extend(run_python([*command, *(f'tests/{x}' for x in files)], **variables))
    result = lines[-1].strip('= \n') if lines else 'nothing was printed'
    part.add('tests on the device', files=len(files), result=result)


def check_precision(part):
    """Compares loss, gradient and mined rows in float32 on the device with float64 on the CPU."""
    import benchmark_loss

    for size in (64,) if part.options.small else (1024, 4096):
        row = benchmark_loss.compare_with_float64(size)
        part.add('float32 on the device against float64 on the CPU', **row)


def check_bits(part, name):
    """Compares the weights of two runs of one seed, and of one that continues from a checkpoint."""
    from benchmark_training import digest_of_steps
    from harness import in_new_process

    # A space in front would make XLA take the flags for the name of a file.
    flags = {'XLA_FLAGS': f'{DETERMINISM[name]} {os.environ.get("XLA_FLAGS", "")}'.strip()}
    folder = part.options.output / f'bits-{list(DETERMINISM).index(name)}'
    first, second, resumed = (
        in_new_process(digest_of_steps, folder / workdir, part.options.small, **flags)
        for workdir in ('first', 'second', 'first')
    )
    part.add(
        'same seed, same bits', XLA_FLAGS=name, again=first == second, resumed=first == resumed
    )


def loss(part):
    """Measures time and memory of the loss, and mining by the size of a tile."""
    import benchmark_loss
    from harness import in_new_process

    for size in (64,) if part.options.small else (4096, 65536):
        for row in benchmark_loss.time_tiles(
            size, (10,) if part.options.small else (20, 22, 24, 26, 28)
        ):
            part.add('mining by tile', **row)
    # Each size has a new process, so that a failure costs no other size its rows.
    for size in (64,) if part.options.small else (1024, 4096, 16384, 65536):
        try:
            rows, _ = in_new_process(benchmark_loss.compare, size, benchmark_loss.contestants(), 3)
        except RuntimeError as error:
            part.add('loss, failed', batch=size, error=str(error))
            continue
        benchmark_loss.save(part.options.output, rows, 3)
        for row in rows:
            part.add('loss', **row)


def step(part):
    """Measures the training step beside PyTorch's."""
    networks = ['tiny'] if part.options.small else ['resnet18', 'resnet50']
    from harness import run_python

    command = ['experiments/benchmarks/benchmark_training.py', '--gpu', '--networks', *networks]
    # Each row is added at once, because a long compilation may reach the limit of the part.
    for line in run_python([*command, f'--seconds={part.seconds - 5}']):
        if line.startswith('{'):
            part.add('step', **json.loads(line))


def feed(part):
    """Measures whether training waits for its data."""
    from benchmark_files import write_files
    from benchmark_pipeline import measure
    from harness import in_new_process

    faces, gpu = part.options.output / 'jpeg', settings('model.dtype=bfloat16')
    here = [f'--config.data.{key}={faces}' for key in ('dir', 'prepared_dir')]
    cases = {
        RECIPE: ('fer2013_gpu', [*gpu, *part.places]),
        '48 px from memory, batch 512': (
            'fer2013_gpu',
            [*gpu, *settings('data.batch_size=512'), *part.places],
        ),
        '224 px JPEG, batch 128': ('folder', [*settings(LARGE), *here]),
    }
    if part.options.small:
        cases = {'digits': ('quickstart', [*settings(TINY), *part.places])}
    elif not faces.exists():
        write_files(faces / 'train', 1400)
    amounts = (1, 10, 3) if part.options.small else (3, 150, 150)
    for name, (config, overrides) in cases.items():
        found = in_new_process(measure, config, overrides, *amounts)
        part.add('images per second', case=name, **found)


def train(part, name, arguments):
    """Runs the real command; adds its time, its evaluation and its validation runs."""
    from harness import run_python

    workdir, start = part.options.output / f'run-{name}', time.perf_counter()
    command = ['-m', 'mtdml_jax', 'train', f'--workdir={workdir}', *arguments]
    for _ in run_python([*command, *(settings(TINY) if part.options.small else []), *part.places]):
        pass
    row = {'run': name, 'seconds': time.perf_counter() - start}
    evaluation = json.loads((workdir / 'evaluation.json').read_text(encoding='utf-8'))
    row |= {'steps': evaluation['run']['steps'], 'of it training': evaluation['run']['seconds']}
    scores = {key: 100 * x['accuracy'] for key, x in evaluation['classifiers'].items()}
    part.add('runs', **row, **scores)
    for line in (workdir / 'metrics.jsonl').read_text(encoding='utf-8').splitlines():
        found = json.loads(line)
        if 'validation/softmax_accuracy' in found:
            accuracy = 100 * found['validation/softmax_accuracy']
            part.add('curve', run=name, step=found['step'], softmax=accuracy)


def quickstart(part):
    """Runs the README's first command."""
    train(part, 'quickstart', ['--config=configs/quickstart.py'])


def fer2013(part, start_and_end=70, every=3350, most=67_000):
    """Runs the recipe for GPUs with as many steps as the limit allows by the rate of `feed`."""
    config = 'quickstart' if part.options.small else 'fer2013_gpu'
    arguments = [f'--config=configs/{config}.py', '--config.model.dtype=bfloat16']
    steps, path = part.options.steps, part.options.output / 'feed.json'
    rows = json.loads(path.read_text(encoding='utf-8'))['rows'] if path.exists() else []
    for row in rows:
        if row['case'] == RECIPE and not steps:
            steps = int((part.seconds - start_and_end) * row['training'] / 128)
            steps = max(1, min(most, steps) // every) * every
    train(part, 'fer2013', arguments + ([f'--config.train.num_steps={steps}'] if steps else []))


def study(part):
    """Compares one threshold with many, several runs at a time, until the time is over."""
    import gpu_studies
    from harness import read_rows

    studies = gpu_studies.STUDIES[: 1 if part.options.small else None]
    share, output = (part.seconds - 15) / len(studies), part.options.output
    for number, what in enumerate(studies, start=1):
        arguments = [f'--output={output / "study"}', f'--runs={output / "runs"}', *part.places]
        arguments += [f'--jobs={part.options.jobs}', f'--until={part.start + number * share}']
        if part.options.small:
            what = what._replace(cells=what.cells[:1], seeds=[0])
            arguments += [*settings(TINY), '--config.data.train_split=train']
        gpu_studies.run_study(what, arguments)
        for row in read_rows(output / 'study' / 'results' / f'{what.name}.csv'):
            keys = ('cell', 'seed', 'softmax_accuracy', 'knn_accuracy', 'map_at_r')
            part.add(what.name, **{key: row.get(key, '') for key in keys})


PARTS = {part.__name__: part for part in (check, loss, step, feed, quickstart, fer2013, study)}


def summarize(output, endings):
    """Markdown: how each part ended, and a table for each kind of rows."""
    from harness import table

    lines = table(('part', 'end'), endings.items())
    for name in endings:
        path = output / f'{name}.json'
        if not path.exists():
            continue
        found = json.loads(path.read_text(encoding='utf-8'))
        lines += ['', f'## {name}', '', ', '.join(f'{k} {v}' for k, v in found['machine'].items())]
        for kind in dict.fromkeys(row['what'] for row in found['rows']):
            rows = [row for row in found['rows'] if row['what'] == kind]
            keys = [
                key for key in dict.fromkeys(key for row in rows for key in row) if key != 'what'
            ]
            cells = [[row.get(key, '') for key in keys] for row in rows]
            lines += ['', f'### {kind}', '', *table(keys, cells)]
    return '\n'.join(lines) + '\n'


def measure(name, options):
    """Runs a part in this process."""
    PARTS[name](Part(name, options))


def run_part(name, options):
    """Runs a part in a new process; returns how it ended and after how many seconds."""
    from harness import run_limited

    start, log = time.monotonic(), options.output / f'{name}.log'
    end = run_limited(measure, (name, options), seconds=options.limits[name], log=log)
    return f'{end} ({time.monotonic() - start:.0f} s)'


def run_parts(options):
    """Runs the parts; returns 1 if one of them fails or reaches its limit."""
    options.output = options.output.absolute()
    options.output.mkdir(parents=True, exist_ok=True)
    options.limits = LIMITS | {k: float(v) for k, v in (x.split('=') for x in options.limits)}
    # Several processes share the GPU; by default JAX would take most of its memory at once.
    os.environ['XLA_PYTHON_CLIENT_PREALLOCATE'] = 'false'
    if options.small:
        os.environ |= CHEAP | {'JAX_COMPILATION_CACHE_DIR': str(options.output / 'compiled')}
    endings = {}
    # Parts that measure run alone.
    with ThreadPoolExecutor(2 if options.small else 1) as pool:
        ends = pool.map(partial(run_part, options=options), options.parts)
        for name, end in zip(options.parts, ends, strict=True):
            endings[name] = end
            print(f'{name}: {end}', flush=True)
            summary = summarize(options.output, endings)
            (options.output / 'summary.md').write_text(summary, encoding='utf-8')
            if options.archive:
                archive(options.output, options.archive)
    print(summary)
    return int(not all(end.startswith('done') for end in endings.values()))


def main():
    """Runs, packs or unpacks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    tasks = parser.add_subparsers(dest='task', required=True)
    task = tasks.add_parser('pack')
    task.add_argument('--data', type=Path, required=True, help='folder of fer2013.csv or .csv.gz')
    tasks.add_parser('unpack').add_argument('folder', type=Path, help='folder of the parts')
    task = tasks.add_parser('run')
    task.add_argument('--output', type=Path, required=True)
    task.add_argument('--parts', nargs='+', choices=PARTS, default=[*PARTS], metavar='PART')
    task.add_argument('--limits', nargs='*', default=[], metavar='PART=SECONDS')
    task.add_argument('--archive', type=Path, help='a tar.gz of the results, after each part')
    task.add_argument('--small', action='store_true')
    task.add_argument('--data', help='config.data.dir')
    task.add_argument('--prepared', help='config.data.prepared_dir')
    task.add_argument('--commit', help='commit of the code, where there is no repository')
    task.add_argument('--steps', type=int, help='steps of the recipe for FER2013')
    task.add_argument('--jobs', type=int, default=1, help='runs of the study at a time')
    options = parser.parse_args()
    if options.task == 'run':
        return run_parts(options)
    if options.task == 'unpack':
        return unpack(options.folder)
    shutil.rmtree(CARRY, ignore_errors=True)
    CARRY.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=CARRY.parent) as name:
        install(Path(name) / 'site')
        prepare_faces(options.data.absolute(), Path(name) / 'data', Path(name) / 'prepared')
        pack(Path(name), CARRY)
    return 0


if __name__ == '__main__':
    sys.exit(main())
