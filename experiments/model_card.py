"""Takes a run's model into models/, with its config and evaluation, and writes the tables of the card.

    python experiments/model_card.py [--name=NAME --workdir=RUN --dtype=bfloat16] [--again RUN ...]

Weights that are not float32 are measured again on the run's data. `--again` takes only the evaluations
of runs of other seeds. In models/README.md the tables stand under `<!-- measured: NAME -->`, and under
`all` a row for each model. They are written anew from the files in models/.
"""

import argparse
import json
import re
import shutil
import sys
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).absolute().parents[1]))

from mtdml_jax.__main__ import main as mtdml
from mtdml_jax.models.model_file import DTYPES, read_model
from mtdml_jax.scoring.classify import accuracy_interval
from mtdml_jax.scoring.intervals import markdown_table

MODELS = Path(__file__).absolute().parents[1] / 'models'
MARKED = re.compile(r'(<!-- measured: (\S+) -->\n).*?(<!-- end of measured -->)', re.DOTALL)
FER2013 = (
    'FER2013 (Goodfellow et al. 2013), faces collected from the web: for non-commercial research'
)
DLIB = (
    "dlib's dlib_face_recognition_resnet_model_v1.dat by Davis King (public domain, CC0), trained on "
    'about three million faces: face scrub, VGG, whose licence was for research, and faces from the web'
)
LICENSES = {
    'fer2013': f'Trained on {FER2013} only.',
    'fer2013_pretrained': f'Started from {DLIB}. Then trained on {FER2013} only.',
}


def main():
    """Writes the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--name', choices=LICENSES, default='fer2013')
    parser.add_argument('--workdir', type=Path)
    parser.add_argument('--dtype', choices=DTYPES, default='float32')
    parser.add_argument('--again', type=Path, nargs='+', default=())
    arguments = parser.parse_args()
    if arguments.workdir:
        take(arguments.workdir, arguments.name, arguments.dtype)
    for folder in arguments.again:
        seed = read(folder / 'config.json')['seed']
        shutil.copy(folder / 'evaluation.json', MODELS / f'{arguments.name}.seed_{seed}.json')
    card = MODELS / 'README.md'
    card.write_text(filled(card.read_text(encoding='utf-8')), encoding='utf-8')


def take(folder, name, dtype):
    """Writes a run's model, with the licences of its data in it, its config and its evaluation."""
    options = {'workdir': folder, 'out': MODELS / f'{name}.safetensors', 'license': LICENSES[name]}
    if mtdml(['export', f'--dtype={dtype}', *(f'--{key}={x}' for key, x in options.items())]):
        sys.exit(1)
    for kind in ('config', 'evaluation'):
        shutil.copy(folder / f'{kind}.json', MODELS / f'{name}.{kind}.json')


def read(path):
    """An evaluation."""
    return json.loads(path.read_text(encoding='utf-8'))


def filled(card):
    """The text of the card with its tables made from the files in models/."""
    return MARKED.sub(lambda found: f'{found[1]}{tables(found[2])}\n{found[3]}', card)


def tables(name):
    """The tables of a model, or of all."""
    if name == 'all':
        return side_by_side()
    settings = read_model(MODELS / f'{name}.safetensors').settings
    scores = settings.measured['classifiers']
    others = [read(path)['classifiers'] for path in sorted(MODELS.glob(f'{name}.seed_*.json'))]
    found = accuracies(scores, others), classes(settings.class_names, scores['softmax'])
    return '\n\n'.join([*found, origin(read(MODELS / f'{name}.evaluation.json')['run'])])


def side_by_side():
    """A row for each model: its accuracy by softmax, its size, and what its file says of licences."""
    rows = []
    for path in sorted(MODELS.glob('*.safetensors')):
        data = read_model(path)
        scores = data.settings.measured['classifiers']['softmax']
        count = sum(x.size for x in jax.tree.leaves(data.variables['params']))
        size = f'{path.stat().st_size / 1e6:.1f}', f'{count:,}'
        accuracy = percent(scores['accuracy']), span(scores['accuracy_ci95'])
        rows.append((f'`{path.stem}`', *accuracy, *size, data.settings.license))
    titles = ('Model', 'accuracy', '95 % interval', 'MB', 'parameters', 'Licence and origin')
    return markdown_table(titles, rows)


def accuracies(scores, others):
    """A row for each classifier; what runs of other seeds found stands beside."""
    rows = []
    for name, found in scores.items():
        again = (percent(other[name]['accuracy']) for other in others)
        rows.append((name, percent(found['accuracy']), span(found['accuracy_ci95']), *again))
    titles = ('Classifier', 'accuracy', '95 % interval', *('another seed' for _ in others))
    return markdown_table(titles, rows)


def classes(names, scores):
    """A row for each class: how many of its faces the softmax finds, and what it takes others for."""
    rows = []
    for i, (name, counts) in enumerate(zip(names, scores['confusion_matrix'], strict=True)):
        total = sum(counts)
        wrong, most = max((count, names[j]) for j, count in enumerate(counts) if j != i)
        found = percent(counts[i] / total), span(accuracy_interval(counts[i], total))
        rows.append((name, total, *found, f'{most} ({percent(wrong / total)})'))
    titles = ('Expression', 'faces', 'found', '95 % interval', 'most often taken for')
    return markdown_table(titles, rows)


def origin(run):
    """How the run came about."""
    command = re.sub(r'--(workdir|config\.data\.(prepared_)?dir)=\S+ ?', '', run['command'])
    rows = [('commit', run['commit']), ('jax', run['jax']), ('on', run['device'])]
    rows += [('minutes', f'{run["seconds"] / 60:.0f}'), ('command', f'`{command}`')]
    return markdown_table(('Trained', ''), rows)


def percent(share):
    """As in '66.8'."""
    return f'{100 * share:.1f}'


def span(interval):
    """As in '65.3 to 68.3'."""
    return ' to '.join(map(percent, interval))


if __name__ == '__main__':
    main()
