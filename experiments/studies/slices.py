"""What has each slice of a trained embedding learned, and how many of them does it take?

    python experiments/studies/slices.py --workdir runs/fer2013 [--split validation]

Reads the checkpoint of a run and classifies a split by kNN on parts of its embedding: each slice alone,
class by class; the first k slices; the k best, chosen on one half of the split and measured on the
other; and a quarter of the embedding's size, as slices or as principal components of all. Writes
figures/slices.png and prints the tables. Accuracies of one run: differences below the interval of the
split's size say nothing.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parents[2]))

import numpy as np
from sklearn.decomposition import PCA
from study_figures import save

from mtdml_jax.config import read_config
from mtdml_jax.data.protocol import load_protocol_split
from mtdml_jax.loss.slicing import split_slices
from mtdml_jax.models import make_network
from mtdml_jax.reports.evaluate import load_checkpoint
from mtdml_jax.scoring.classify import accuracy_interval, fit_neighbors
from mtdml_jax.scoring.embed import make_embedder
from mtdml_jax.scoring.intervals import markdown_table
from mtdml_jax.training.step import make_thresholds

FIGURE = Path(__file__).parents[1] / 'figures' / 'slices.png'


def main():
    """Prints the tables and draws the figure."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--workdir', type=Path, required=True)
    parser.add_argument('--split', default='validation')
    parser.add_argument('--output', type=Path, default=FIGURE)
    arguments = parser.parse_args()
    config = read_config(arguments.workdir)
    gallery, queries, class_names = embed_run(config, arguments.workdir, arguments.split)
    slices = [
        np.asarray(split_slices(x.embeddings, config.model.num_slices)) for x in (gallery, queries)
    ]
    thresholds = np.asarray(make_thresholds(config, len(class_names)))

    def is_right(chosen):
        """Which queries kNN on some of the slices gets right, bool [N]."""
        known, asked = (x[:, chosen].reshape(len(x), -1) for x in slices)
        return classify(known, gallery.labels, asked, config.eval.num_neighbors) == queries.labels

    numbers = range(config.model.num_slices)
    alone = np.stack([is_right([s]) for s in numbers])
    by_class = np.stack(
        [alone[:, queries.labels == c].mean(axis=1) for c in range(len(class_names))]
    )
    counts = [s + 1 for s in numbers]
    first = [is_right([*range(k)]).mean() for k in counts]
    best = [best_of(alone, k, is_right) for k in counts]
    header = ('Slice', 'threshold', 'alone', *class_names, 'first k', 'best k')
    rows = [
        (
            s + 1,
            f'{thresholds[s]:.2f}',
            *map(percent, (alone[s].mean(), *by_class[:, s], first[s], best[s])),
        )
        for s in numbers
    ]
    print(markdown_table(header, rows))
    size = config.model.embedding_size // 4
    pca = PCA(size, random_state=0).fit(gallery.embeddings)
    cut = [pca.transform(x.embeddings) for x in (gallery, queries)]
    found = classify(cut[0], gallery.labels, cut[1], config.eval.num_neighbors)
    parts = {
        'first k': first,
        'best k': best,
        'a quarter, by PCA': [np.mean(found == queries.labels)],
    }
    interval = accuracy_interval(round(first[-1] * len(queries.labels)), len(queries.labels))
    low, high = map(percent, interval)
    print(f'{size} principal components: {percent(*parts["a quarter, by PCA"])} %')
    print(f'95 % interval of all slices, {len(queries.labels)} images: {low} to {high} %')
    draw(
        arguments.output, thresholds, dict(zip(class_names, by_class, strict=True)), parts, interval
    )


def embed_run(config, workdir, split):
    """(gallery, queries, class names) of the run's checkpoint."""
    parts = [load_protocol_split(config.data, name) for name in ('train', split)]
    class_names = parts[0].class_names
    network = make_network(config.model, len(class_names))
    state, _ = load_checkpoint(network, config, workdir)
    embed = make_embedder(network, config)
    return *(embed(state.eval_variables, part) for part in parts), class_names


def classify(known, labels, asked, num_neighbors):
    """kNN predictions, int [N]."""
    return fit_neighbors(known, labels, num_neighbors).predict(asked)


def best_of(alone, count, is_right):
    """Accuracy of the `count` best slices, chosen on one half of the queries, measured on the other."""
    measured = []
    for chosen_on in (slice(0, None, 2), slice(1, None, 2)):
        order = np.argsort(-alone[:, chosen_on].mean(axis=1), kind='stable')
        right = is_right(np.sort(order[:count]))
        measured.append(np.delete(right, np.arange(len(right))[chosen_on]).mean())
    return np.mean(measured)


def percent(share):
    """'61.2'."""
    return f'{100 * share:.1f}'


def draw(path, thresholds, classes, parts, interval):
    """Accuracy of each class by threshold, and by number of slices."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout='constrained')
    by_class, by_count = figure.subplots(1, 2)
    for name, accuracies in classes.items():
        by_class.plot(thresholds, 100 * accuracies, 'o-', ms=4, label=name)
    by_class.set_title('kNN accuracy (%) of each slice alone, by its threshold', loc='left')
    by_count.axhspan(
        *np.multiply(100, interval), color='#e4e8ed', label='95 % interval of all slices'
    )
    for name, accuracies in parts.items():
        counts = range(1, len(accuracies) + 1) if len(accuracies) > 1 else [len(thresholds) / 4]
        by_count.plot(counts, np.multiply(100, accuracies), 'o-', label=name)
    by_count.set_title('kNN accuracy (%) of k slices', loc='left')
    by_count.set_xlabel('k')
    save(figure, path)


if __name__ == '__main__':
    main()
