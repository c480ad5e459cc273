"""Compares one model in three runtimes: size of the file, time for a face, and differences.

    python experiments/benchmarks/runtimes.py --model models/fer2013.safetensors [--rounds 30]

The contestants are `mtdml_jax.load` with `predict`, ONNX Runtime, and `jax.export` (StableHLO). The
script first writes the files of the last two. All contestants get faces as uint8 arrays of the model's
size and return NumPy arrays. Times for one face are median and 95th percentile of a loop, because turns
would leave spinning threads. Times for many faces are medians over rounds in which all take turns in one
process. Adds rows to results/runtimes.csv. The script needs a separate environment:

    pip install '.[onnx]'
"""

import tempfile
import zipfile
from functools import partial
from pathlib import Path

import jax
import numpy as np
import onnxruntime
from harness import make_parser, other_processes, table, time_in_turns, timed
from jax import export
from record import record

import mtdml_jax
from mtdml_jax.inference.runtimes import COMPUTATION, write_onnx, write_stablehlo
from mtdml_jax.models.model_file import read_model

MANY, LOOP, THREADS = 64, 300, 2
OUTPUTS = ('embeddings', 'probabilities', 'slice_probabilities')


def open_package(path):
    """Returns a function that maps images to outputs by name, by this package."""
    model = mtdml_jax.load(path)
    return lambda images: model.predict(images)._asdict()


def open_onnx(path):
    """Returns the same function by ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(names, {'images': images}), strict=True))


def open_stablehlo(path):
    """Returns the same function by JAX without this package."""
    computation = zipfile.ZipFile(path).read(COMPUTATION)
    call = jax.jit(export.deserialize(bytearray(computation)).call)
    return lambda images: jax.device_get(call(images))


def prepare(path, folder):
    """Maps the name of each contestant to (its file, its function from images to outputs)."""
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
    """Returns random images of the model's size, as many as the largest batch."""
    pixels = read_model(path).settings.preprocessing
    shape = (MANY, pixels.image_size, pixels.image_size, pixels.channels)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def compare(contestants, faces, rounds):
    """Returns the rows of the table; differences are those to the first contestant."""
    calls = {name: partial(run, faces) for name, (_, run) in contestants.items()}
    seconds = time_in_turns(calls, rounds)
    outputs = {name: call() for name, call in calls.items()}
    expected, rows = next(iter(outputs.values())), []
    for name, (path, run) in contestants.items():
        loop = [timed(partial(run, faces[:1])) for _ in range(LOOP)]
        middle, high = 1e3 * np.percentile(loop, [50, 95])
        names = [x for x in OUTPUTS if x in outputs[name]]
        row = {'runtime': name, 'megabytes': path.stat().st_size / 1e6}
        row |= {'ms_1': middle, 'ms_1_p95': high, f'ms_{MANY}': 1e3 * seconds[name]}
        difference = max(np.max(np.abs(expected[x] - outputs[name][x])) for x in names)
        rows.append(row | {'largest_difference': float(difference)})
    return rows


def main():
    """Prints the table and adds the rows."""
    parser = make_parser(__doc__, rounds=30)
    parser.add_argument('--model', type=Path, required=True, help='a model file (.safetensors)')
    options = parser.parse_args()
    faces = draw_faces(options.model)
    with other_processes(), tempfile.TemporaryDirectory() as folder:
        rows = compare(prepare(options.model, Path(folder)), faces, options.rounds)
    print('\n'.join(table(rows[0], [row.values() for row in rows])))
    print(f'onnxruntime {onnxruntime.__version__}, {options.model.name}')
    for row in rows:
        record(options.output, 'runtimes', row)


if __name__ == '__main__':
    main()
