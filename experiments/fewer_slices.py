"""What is left of a model with fewer slices: size, time and accuracy.

    python experiments/fewer_slices.py --workdir=RUN [--config.key=value ...]

For each number K of slices, those that the validation part likes best (`export --slices=K`). Writes
results/fewer_slices.csv and prints the table. Times are medians of `Model.predict` over rounds in which
all models take turns. Accuracy is measured on the split of the run's evaluation; where that is the
validation part, it is of the faces by which the slices were chosen.
"""

import argparse
import csv
import sys
import tempfile
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parents[1]))

import numpy as np
from benchmark_loss import time_in_turns

import mtdml_jax
from mtdml_jax.config import apply_overrides, read_config
from mtdml_jax.evaluation.export import shrink
from mtdml_jax.inference.model_file import read_model, write_model

RESULTS = Path(__file__).parent / 'results' / 'fewer_slices.csv'
COUNTS, ROUNDS = (1, 64), 30
CLASSIFIERS = ('softmax', 'centroid', 'knn')
HEADER = (
    'num_slices',
    'slices',
    'megabytes',
    'ms_1',
    'ms_64',
    *CLASSIFIERS,
    'softmax_low',
    'softmax_high',
)


def main():
    """Prints the table, writes the csv."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--workdir', type=Path, required=True)
    arguments, overrides = parser.parse_known_args()
    config = apply_overrides(read_config(arguments.workdir), overrides)
    whole = read_model(arguments.workdir / 'model.safetensors')
    most = whole.settings.network.num_slices
    numbers = [2**i for i in range(most.bit_length()) if 2**i < most] + [most]
    models = {n: shrink(config, whole, slices=n) for n in numbers[:-1]} | {most: whole}
    with tempfile.TemporaryDirectory() as folder:
        paths = {n: Path(folder) / f'{n}.safetensors' for n in numbers}
        for n, data in models.items():
            write_model(paths[n], data)
        times = measure_times(paths, whole.settings.preprocessing)
        rows = [
            describe(n, models[n].settings, paths[n].stat().st_size, [x[n] for x in times])
            for n in numbers
        ]
    with RESULTS.open('w', newline='', encoding='utf-8') as file:
        csv.writer(file, lineterminator='\n').writerows([HEADER, *rows])
    for row in [HEADER, *rows]:
        print('| ' + ' | '.join(map(str, row)) + ' |')


def measure_times(paths, pixels):
    """Seconds by number of slices, for one face and for 64."""
    shape = (max(COUNTS), pixels.image_size, pixels.image_size, pixels.channels)
    faces = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    loaded = {n: mtdml_jax.load(path) for n, path in paths.items()}
    return [
        time_in_turns({n: partial(x.predict, faces[:count]) for n, x in loaded.items()}, ROUNDS)
        for count in COUNTS
    ]


def describe(number, settings, size, seconds):
    """A row."""
    scores = settings.measured['classifiers']
    shares = [scores[name]['accuracy'] for name in CLASSIFIERS] + scores['softmax']['accuracy_ci95']
    slices = ' '.join(map(str, settings.trained.get('slices', range(number))))
    return (
        number,
        slices,
        f'{size / 1e6:.2f}',
        *(f'{1e3 * x:.2f}' for x in seconds),
        *(f'{100 * x:.1f}' for x in shares),
    )


if __name__ == '__main__':
    main()
