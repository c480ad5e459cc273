"""How fast are faces read from memory and from files, and how much memory does that take?

    python experiments/benchmarks/benchmark_files.py [--count 100000] [--folder DIR]

Draws `count` JPEG files of 224 px (once; about 12 kB each) in 7 class folders, prepares them for both
settings of `config.data.in_memory`, and prints for each, in a process of its own: seconds to prepare and
to load, images per second of the training pipeline (median of rounds), and the host memory above that of
the imports.
"""

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parents[2]))

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from mtdml_jax.config import load_config
from mtdml_jax.data import face_drawing
from mtdml_jax.data.pipeline import train_batches
from mtdml_jax.data.prepare import prepare
from mtdml_jax.data.protocol import load_protocol_split

SIDE, BATCH_SIZE, ROUNDS, BATCHES = 224, 63, 5, 40
CONFIG = Path(__file__).absolute().parents[2] / 'configs' / 'raf_db.py'


def main():
    """Writes the files, then measures each mode in its own process."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--count', type=int, default=100_000)
    parser.add_argument('--folder', type=Path, default=Path('/tmp/mtdml_jax_files'))
    parser.add_argument('--in-memory', choices=('True', 'False'), help='measure one mode only')
    arguments = parser.parse_args()
    if arguments.in_memory:
        print(json.dumps(measure(arguments.folder, arguments.in_memory)))
        return
    write_files(arguments.folder / 'faces', arguments.count)
    for in_memory in ('True', 'False'):
        command = [sys.executable, __file__, f'--folder={arguments.folder}']
        # The first process prepares, too; the second shows what a later start costs.
        for start in ('first start', 'second start'):
            found = subprocess.run(
                [*command, f'--in-memory={in_memory}'], stdout=subprocess.PIPE, check=True
            )
            print(f'in_memory={in_memory}, {start}: {found.stdout.decode().splitlines()[-1]}')


def write_files(folder: Path, count: int) -> None:
    """Drawn faces, enlarged and with noise, as JPEG in class folders; every 350 are the same again."""
    expressions = list(face_drawing.EXPRESSIONS)
    for expression in expressions:
        (folder / expression).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    faces = [face_drawing.draw_face(0, i, expressions[i % 7], 0) for i in range(70)]
    large = [tf.image.resize(face[..., None], (SIDE, SIDE)).numpy() for face in faces]
    noise = rng.normal(0, 6, (50, SIDE, SIDE, 3)).astype(np.float32)
    pairs = math.lcm(len(large), len(noise))
    files = [encode(large[i % len(large)] + noise[i % len(noise)]) for i in range(pairs)]
    for number in tqdm(range(count), desc='writing'):
        path = folder / expressions[number % 7] / f'{number:06d}.jpg'
        if not path.exists():
            path.write_bytes(files[number % pairs])


def encode(pixels) -> bytes:
    """A JPEG file."""
    return tf.io.encode_jpeg(np.clip(pixels, 0, 255).astype(np.uint8), quality=85).numpy()


def measure(folder: Path, in_memory: str) -> dict:
    """Times and memory of one mode."""
    values = {
        'data.name': 'folder',
        'data.dir': folder / 'faces',
        'data.prepared_dir': folder / 'prepared',
        'data.in_memory': in_memory,
        'data.validation_share': 0.0,
        'data.batch_size': BATCH_SIZE,
    }
    config = load_config(str(CONFIG), [f'--config.{key}={value}' for key, value in values.items()])
    before, start = memory(), time.perf_counter()
    prepare(config.data)
    prepared, preparing = time.perf_counter(), peak_memory()
    split = load_protocol_split(config.data, 'train')
    loaded = time.perf_counter()
    batches = train_batches(split, config)
    next(batches)
    rates = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        for _ in range(BATCHES):
            next(batches)
        rates.append(BATCHES * BATCH_SIZE / (time.perf_counter() - begin))
    return {
        'images': len(split.labels),
        'prepare_seconds': round(prepared - start, 1),
        'load_seconds': round(loaded - prepared, 1),
        'images_per_second': round(statistics.median(rates)),
        'memory_MB': round(memory() - before),
        'peak_memory_MB': round(peak_memory() - before),
        'peak_preparing_MB': round(preparing - before),
    }


def memory() -> float:
    """Resident memory of this process, in MB."""
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return pages * os.sysconf('SC_PAGE_SIZE') / 1e6


def peak_memory() -> float:
    """Its highest value so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


if __name__ == '__main__':
    main()
