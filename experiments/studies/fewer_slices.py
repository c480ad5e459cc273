"""What is left of a model with fewer slices: size, time and accuracy.

    python experiments/studies/fewer_slices.py --workdir=RUN [--config.key=value ...]

For each number K of slices, those that the validation part likes best (`export --slices=K`). Writes
results/fewer_slices.csv and prints the table. Times are medians of `Model.predict` over rounds in which
all models take turns. Accuracy is measured on the split of the run's evaluation, on slices of the whole
model's embeddings, which are the smaller model's; where that split is the validation part, it is of the
faces by which the slices were chosen.
"""

import argparse
import csv
import sys
import tempfile
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parents[2]))
sys.path.insert(0, str(Path(__file__).absolute().parents[1] / 'benchmarks'))

import numpy as np
from benchmark_loss import time_in_turns

import mtdml_jax
from mtdml_jax.config import apply_overrides, read_config
from mtdml_jax.data.pipeline import eval_batches
from mtdml_jax.data.protocol import load_protocol_split
from mtdml_jax.inference.model import Model
from mtdml_jax.loss.slicing import merge_slices
from mtdml_jax.models.choose_slices import choose_slices, take_slices
from mtdml_jax.models.model_file import read_model, write_model
from mtdml_jax.scoring.classify import classify_and_score
from mtdml_jax.scoring.embed import EmbeddedSplit

RESULTS = Path(__file__).parents[1] / 'results' / 'fewer_slices.csv'
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
    measured, most = whole.settings.measured['split'], whole.settings.network.num_slices
    seen = {x: look_at(whole, x, config) for x in {'train', 'validation', measured}}
    judges = seen['validation']
    numbers = [2**i for i in range(most.bit_length()) if 2**i < most] + [most]
    kept = {n: choose_slices(judges.logits, judges.labels, n) for n in numbers}
    with tempfile.TemporaryDirectory() as folder:
        paths = {n: Path(folder) / f'{n}.safetensors' for n in numbers}
        for n, path in paths.items():
            write_model(path, take_slices(whole, kept[n]))
        times = measure_times(paths, whole.settings.preprocessing)
        megabytes = {n: path.stat().st_size / 1e6 for n, path in paths.items()}
    rows = []
    for n, slices in kept.items():
        scores = score(seen['train'], seen[measured], slices, config)
        rows.append(describe(slices, megabytes[n], [x[n] for x in times], scores))
    with RESULTS.open('w', newline='', encoding='utf-8') as file:
        csv.writer(file, lineterminator='\n').writerows([HEADER, *rows])
    for row in [HEADER, *rows]:
        print('| ' + ' | '.join(map(str, row)) + ' |')


def look_at(whole, name, config):
    """Slices [N, S, D], logits [N, S, C] and labels [N] of a split, as the whole model sees it."""
    part, model = load_protocol_split(config.data, name), Model(whole)
    slices, logits = [], []
    for batch in eval_batches(part, config.data, config.eval.batch_size):
        found = model.look(batch['image'], config.eval.batch_size)()
        for values, found_values in zip((slices, logits), found, strict=True):
            values.append(found_values[batch['mask']])
    return EmbeddedSplit(np.concatenate(slices), np.concatenate(logits), part.labels)


def score(gallery, queries, slices, config):
    """Scores of each classifier, by these slices alone."""
    gallery, queries = (
        EmbeddedSplit(
            np.asarray(merge_slices(x.embeddings[:, slices])),
            x.logits[:, slices].mean(axis=1),
            x.labels,
        )
        for x in (gallery, queries)
    )
    num_neighbors = config.eval.num_neighbors
    return classify_and_score(
        gallery, queries, queries.logits.shape[1], num_neighbors=num_neighbors, seed=config.seed
    )[1]


def measure_times(paths, pixels):
    """Seconds by number of slices, for one face and for 64."""
    shape = (max(COUNTS), pixels.image_size, pixels.image_size, pixels.channels)
    faces = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    loaded = {n: mtdml_jax.load(path) for n, path in paths.items()}
    return [
        time_in_turns({n: partial(x.predict, faces[:count]) for n, x in loaded.items()}, ROUNDS)
        for count in COUNTS
    ]


def describe(slices, megabytes, seconds, scores):
    """A row."""
    shares = [scores[name]['accuracy'] for name in CLASSIFIERS] + scores['softmax']['accuracy_ci95']
    return (
        len(slices),
        ' '.join(map(str, slices)),
        f'{megabytes:.2f}',
        *(f'{1e3 * x:.2f}' for x in seconds),
        *(f'{100 * x:.1f}' for x in shares),
    )


if __name__ == '__main__':
    main()
