"""One model in three runtimes: size of the file, time for a face, and what they differ by.

    python experiments/benchmarks/runtimes.py --model models/fer2013.safetensors [--rounds 30]

Contestants are `mtdml_jax.load` and `predict`, ONNX Runtime, and `jax.export` (StableHLO), the last two
on files written here first. All get faces as uint8 arrays of the model's side, and give NumPy arrays.
Times for one face are median and 95th percentile of a loop, as in use, for turns leave spinning threads;
those for many are medians over rounds in which all take turns in one process. Rows go to
results/runtimes.csv. It runs in an environment of its own:

    pip install '.[onnx]'
"""

import argparse
import csv
import os
import sys
import tempfile
import time
import zipfile
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parents[2]))

import jax
import numpy as np
import onnxruntime
from benchmark_loss import foreign_cpu_seconds, time_in_turns, timed
from jax import export

import mtdml_jax
from mtdml_jax.inference.runtimes import COMPUTATION, write_onnx, write_stablehlo
from mtdml_jax.models.model_file import read_model

MANY, LOOP, THREADS = 64, 300, 2
OUTPUTS = ('embeddings', 'probabilities', 'slice_probabilities')
RESULTS = Path(__file__).parents[1] / 'results' / 'runtimes.csv'
HEADER = ('runtime', 'megabytes', 'ms_1', 'ms_1_p95', f'ms_{MANY}', 'largest_difference')


def open_package(path):
    """Images -> outputs by name, by this package."""
    model = mtdml_jax.load(path)
    return lambda images: model.predict(images)._asdict()


def open_onnx(path):
    """The same, by ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(names, {'images': images}), strict=True))


def open_stablehlo(path):
    """The same, by JAX alone."""
    computation = zipfile.ZipFile(path).read(COMPUTATION)
    call = jax.jit(export.deserialize(bytearray(computation)).call)
    return lambda images: jax.device_get(call(images))


def prepare(path, folder):
    """Name of each contestant -> (its file, function from images to outputs by name)."""
    data = read_model(path)
    onnx, stablehlo = folder / 'model.onnx', folder / 'model.zip'
    write_onnx(data, onnx)
    write_stablehlo(data, stablehlo)
    return {
        'mtdml_jax': (path, open_package(path)),
        'ONNX Runtime': (onnx, open_onnx(onnx)),
        'StableHLO, jax.export': (stablehlo, open_stablehlo(stablehlo)),
    }


def draw_faces(path):
    """Random images of the model's side, as many as the largest batch."""
    pixels = read_model(path).settings.preprocessing
    shape = (MANY, pixels.image_size, pixels.image_size, pixels.channels)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def compare(contestants, faces, rounds):
    """Rows of the table; the first contestant is what the others differ from."""
    seconds = time_in_turns(
        {name: partial(run, faces) for name, (_, run) in contestants.items()}, rounds
    )
    outputs = {name: run(faces) for name, (_, run) in contestants.items()}
    expected = next(iter(outputs.values()))
    return [
        (
            name,
            path.stat().st_size / 1e6,
            *one_at_a_time(partial(run, faces[:1])),
            1e3 * seconds[name],
            max(
                np.max(np.abs(expected[x] - outputs[name][x]))
                for x in OUTPUTS
                if x in outputs[name]
            ),
        )
        for name, (path, run) in contestants.items()
    ]


def one_at_a_time(call):
    """Median and 95th percentile of milliseconds, in a loop."""
    seconds = [timed(call) for _ in range(LOOP)]
    return 1e3 * np.percentile(seconds, [50, 95])


def main():
    """Prints the table, writes the csv."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', type=Path, required=True, help='a model file (.safetensors)')
    parser.add_argument('--rounds', type=int, default=30)
    arguments = parser.parse_args()
    start, foreign = time.perf_counter(), foreign_cpu_seconds()
    faces = draw_faces(arguments.model)
    with tempfile.TemporaryDirectory() as folder:
        rows = compare(prepare(arguments.model, Path(folder)), faces, arguments.rounds)
    print('| ' + ' | '.join(HEADER) + ' |')
    print('|---' * len(HEADER) + '|')
    for name, megabytes, *milliseconds, difference in rows:
        times = ' | '.join(f'{x:.1f}' for x in milliseconds)
        print(f'| {name} | {megabytes:.2f} | {times} | {difference:.0e} |')
    with RESULTS.open('w', newline='') as file:
        csv.writer(file).writerows([HEADER, *rows])
    share = (foreign_cpu_seconds() - foreign) / (time.perf_counter() - start) / os.cpu_count()
    print(f'jax {jax.__version__}, onnxruntime {onnxruntime.__version__}, {arguments.model.name}.')
    print(f'Other processes took {share:.1%} of the cores meanwhile.')


if __name__ == '__main__':
    main()
