"""How fast are faces read from memory and from files, and how much memory does that take?

    python experiments/benchmarks/benchmark_files.py [--count 100000] [--folder DIR]

Draws `count` JPEG files of 224 px (once; about 12 kB each) in 7 class folders. Prepares them for both
settings of `config.data.in_memory`. Prints for each, in a new process: seconds to prepare and to load,
images per second of the training pipeline (median of rounds), and the host memory above that of the
imports. The second start shows what a later start costs. Adds rows to results/files.csv.
"""

import collections
import itertools
import math
import statistics
import time
from functools import partial
from pathlib import Path

from harness import ROOT, in_new_process, make_parser, memory, timed
from record import record

SIDE, BATCH_SIZE, ROUNDS, BATCHES = 224, 63, 5, 40


def write_files(folder, count):
    """Writes drawn faces, enlarged and with noise, as JPEG in class folders. File 350 repeats file 0."""
    import numpy as np
    import tensorflow as tf
    from tqdm import tqdm

    from mtdml_jax.data import face_drawing

    expressions = list(face_drawing.EXPRESSIONS)
    for expression in expressions:
        (folder / expression).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    faces = [face_drawing.draw_face(0, i, expressions[i % 7], 0) for i in range(70)]
    large = [tf.image.resize(face[..., None], (SIDE, SIDE)).numpy() for face in faces]
    noise = rng.normal(0, 6, (50, SIDE, SIDE, 3)).astype(np.float32)
    pairs = math.lcm(len(large), len(noise))

    def encode(pixels):
        return tf.io.encode_jpeg(np.clip(pixels, 0, 255).astype(np.uint8), quality=85).numpy()

    files = [encode(large[i % len(large)] + noise[i % len(noise)]) for i in range(pairs)]
    for number in tqdm(range(count), desc='writing'):
        path = folder / expressions[number % 7] / f'{number:06d}.jpg'
        if not path.exists():
            path.write_bytes(files[number % pairs])


def measure(folder, in_memory):
    """Returns times and memory of one mode in this process."""
    import tensorflow  # noqa: F401

    from mtdml_jax.config import load_config
    from mtdml_jax.data.pipeline import train_batches
    from mtdml_jax.data.prepare import prepare
    from mtdml_jax.data.protocol import load_protocol_split

    values = {'name': 'folder', 'dir': folder / 'faces', 'prepared_dir': folder / 'prepared'}
    values |= {'in_memory': in_memory, 'validation_share': 0.0, 'batch_size': BATCH_SIZE}
    path = str(ROOT / 'configs' / 'raf_db.py')
    config = load_config(path, [f'--config.data.{key}={value}' for key, value in values.items()])
    before, start = memory(), time.perf_counter()
    prepare(config.data)
    prepared, preparing = time.perf_counter(), memory('VmHWM')
    split = load_protocol_split(config.data, 'train')
    loaded = time.perf_counter()
    batches = train_batches(split, config)
    next(batches)

    def read():
        collections.deque(itertools.islice(batches, BATCHES), maxlen=0)

    rates = [BATCHES * BATCH_SIZE / timed(read) for _ in range(ROUNDS)]
    row = {'prepare_s': round(prepared - start, 1), 'load_s': round(loaded - prepared, 1)}
    row |= {'images_per_second': round(statistics.median(rates))}
    row |= {'megabytes': round(memory('VmHWM') - before), 'files': len(split.labels)}
    return row, {'at the end': memory() - before, 'preparing, at most': preparing - before}


def main():
    """Writes the files, then measures each mode twice in new processes."""
    parser = make_parser(__doc__)
    parser.add_argument('--count', type=int, default=100_000)
    parser.add_argument('--folder', type=Path, default=Path('/tmp/mtdml_jax_files'))
    options = parser.parse_args()
    write_files(options.folder / 'faces', options.count)
    for in_memory, start in itertools.product((True, False), ('first', 'second')):
        row, megabytes = in_new_process(partial(measure, options.folder, in_memory))
        print(f'in_memory={in_memory}, {start} start: {row}, MB {megabytes}')
        record(options.output, 'files', {'in_memory': in_memory, 'start': start, **row})


if __name__ == '__main__':
    main()
