"""Takes a run's model into models/, with its config, its evaluation, and the tables of its card.

    python experiments/model_card.py [--workdir=RUN] [--again RUN ...]

`--again` takes the evaluations of runs of other seeds too, and nothing else of them. The tables stand
between two marks in models/README.md and are written anew, from the files in models/.
"""

import argparse
import json
import re
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parents[1]))

from mtdml_jax.models.model_file import read_model, write_model
from mtdml_jax.scoring.classify import accuracy_interval

MODELS = Path(__file__).absolute().parents[1] / 'models'
LICENSE = (
    'Trained on FER2013 (Goodfellow et al. 2013), faces collected from the web: for non-commercial '
    'research only.'
)
MARKS = '<!-- measured -->\n', '<!-- end of measured -->\n'


def main():
    """Writes the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--workdir', type=Path)
    parser.add_argument('--again', type=Path, nargs='+', default=())
    arguments = parser.parse_args()
    if arguments.workdir:
        take(arguments.workdir)
    for folder in arguments.again:
        seed = read(folder / 'config.json')['seed']
        shutil.copy(folder / 'evaluation.json', MODELS / f'fer2013.seed_{seed}.json')
    evaluation = read(MODELS / 'fer2013.evaluation.json')
    others = [read(path) for path in sorted(MODELS.glob('fer2013.seed_*.json'))]
    card = MODELS / 'README.md'
    before, rest = card.read_text(encoding='utf-8').split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    tables = f'{accuracies(evaluation, others)}\n{classes(evaluation)}\n{origin(evaluation)}'
    card.write_text(before + MARKS[0] + tables + MARKS[1] + after, encoding='utf-8')


def take(folder):
    """Copies a run's model, with the data's licence in it, its config and its evaluation."""
    data = read_model(folder / 'model.safetensors')
    data = data._replace(settings=data.settings._replace(license=LICENSE))
    write_model(MODELS / 'fer2013.safetensors', data)
    for name in ('config', 'evaluation'):
        shutil.copy(folder / f'{name}.json', MODELS / f'fer2013.{name}.json')


def read(path):
    """An evaluation."""
    return json.loads(path.read_text(encoding='utf-8'))


def accuracies(evaluation, others):
    """A row for each classifier; what runs of other seeds found stands beside."""
    titles = ('Classifier', 'accuracy', '95 % interval', *('another seed' for _ in others))
    rows = [f'| {" | ".join(titles)} |', '|---' * len(titles) + '|']
    for name, scores in evaluation['classifiers'].items():
        low, high = scores['accuracy_ci95']
        row = [name, percent(scores['accuracy']), f'{percent(low)} to {percent(high)}']
        row += [percent(other['classifiers'][name]['accuracy']) for other in others]
        rows.append(f'| {" | ".join(row)} |')
    return '\n'.join(rows) + '\n'


def classes(evaluation):
    """A row for each class: how many of its faces the softmax finds, and what it takes others for."""
    rows = [
        '| Expression | faces | found | 95 % interval | most often taken for |',
        '|---|---|---|---|---|',
    ]
    names = evaluation['class_names']
    confusion = evaluation['classifiers']['softmax']['confusion_matrix']
    for name, counts in zip(names, confusion, strict=True):
        total, correct = sum(counts), counts[names.index(name)]
        low, high = accuracy_interval(correct, total)
        wrong, most = max(
            (count, other) for count, other in zip(counts, names, strict=True) if other != name
        )
        rows.append(
            f'| {name} | {total} | {percent(correct / total)} | {percent(low)} to {percent(high)} '
            f'| {most} ({percent(wrong / total)}) |'
        )
    return '\n'.join(rows) + '\n'


def origin(evaluation):
    """How the run came about."""
    run = evaluation['run']
    command = re.sub(
        r'--(workdir|config\.data\.dir|config\.data\.prepared_dir)=\S+ ?', '', run['command']
    )
    facts = {
        'commit': run['commit'],
        'jax': run['jax'],
        'on': run['device'],
        'minutes': f'{run["seconds"] / 60:.0f}',
        'command': f'`{command}`',
    }
    rows = (f'| {name} | {fact} |' for name, fact in facts.items())
    return '\n'.join(['| Trained | |', '|---|---|', *rows]) + '\n'


def percent(share):
    """As in '66.8'."""
    return f'{100 * share:.1f}'


if __name__ == '__main__':
    main()
