"""Writes the tables of docs/results/, each from a csv file in experiments/results/.

    make results

A page has its table between `<!-- table: NAME -->` and `<!-- end of table -->`. `TABLES` says how to
make it. A second run changes nothing, and `tests/experiments/test_results.py` compares the pages with
the files.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parents[1]))

import re

from record import read_rows
from study_tables import SCORES, in_per_cent, paired_differences, scores_by_cell

from mtdml_jax.scoring.intervals import markdown_table

EXPERIMENTS = Path(__file__).absolute().parent
PAGES = EXPERIMENTS.parent / 'docs' / 'results'
MARKED = re.compile(r'(<!-- table: (\S+) -->\n).*?(<!-- end of table -->)', re.DOTALL)


class Field(str):
    """The text of a field in a csv file."""

    def __format__(self, spec: str) -> str:
        """Returns the text as it stands, or formats it as a number if there is a format."""
        return format(float(self), spec) if spec else str(self)


def rows_of(name: str, **wanted: str) -> list[dict[str, Field]]:
    """Returns the rows of a file of results whose columns have these values."""
    rows = read_rows(EXPERIMENTS / 'results' / f'{name}.csv')
    return [
        {column: Field(value) for column, value in row.items()}
        for row in rows
        if all(row[column] == value for column, value in wanted.items())
    ]


def titled(text: str) -> dict[str, str]:
    """Reads 'Title: content | ...' as title -> content; the content of a title alone is '{title}'."""
    cells = (cell.strip().partition(': ') for cell in text.split('|'))
    return {title: content or f'{{{title}}}' for title, _, content in cells}


def table(name: str, columns: str, **wanted: str) -> str:
    """Makes a table of the rows of a file.

    Args:
      name: the file, without .csv.
      columns: titles and what stands below each, such as '{low} to {high}' or '{ms:.1f}'; see `titled`.
      wanted: column -> the value that a row must have.
    """
    cells = titled(columns)
    rows = ([x.format_map(row) for x in cells.values()] for row in rows_of(name, **wanted))
    return markdown_table(tuple(cells), rows).replace(' +-', ' ±')


def crosstable(
    name: str, rows: str, across: str, columns: Sequence[str], cell: str, **wanted
) -> str:
    """Makes a table with rows of a file side by side.

    Args:
      name: the file, without .csv.
      rows: titles and contents of the first cells of a line; see `table`.
      across: the column of the file whose values are the titles of the other cells.
      columns: the values to show.
      cell: content of a cell.
      wanted: see `table`.
    """
    heads, lines = titled(rows), {}
    for row in rows_of(name, **wanted):
        line = lines.setdefault(tuple(x.format_map(row) for x in heads.values()), {})
        line[row[across]] = cell.format_map(row).removesuffix(' ()')
    shown = ([*key, *(line.get(x, '') for x in columns)] for key, line in lines.items())
    return markdown_table((*heads, *columns), shown)


def study(name: str, corner: str, columns: str, lines: str, reference: str = '') -> str:
    """Makes a table of the cells of a study, in per cent.

    Args:
      name: the study.
      corner: title of the labels.
      columns: titles and keys of `study_tables.SCORES`, such as 'PublicTest: validation softmax | kNN'.
      lines: 'label: cell' for a score or, with a reference, for its points over the reference cell;
        'label: cell - other' for the points between two cells, seed by seed.
      reference: the cell that is subtracted where no other is named.
    """
    titles = {title: content.strip('{}') for title, content in titled(columns).items()}
    done = rows_of(name, status='done')
    found = [scores_by_cell(done, SCORES[key]) for key in titles.values()]

    def score(scores, cell, other):
        if not other:
            return in_per_cent([value for _, value in sorted(scores[cell].items())])
        return in_per_cent(paired_differences(scores[cell], scores[other]))

    rows = []
    for line in filter(None, map(str.strip, lines.splitlines())):
        label, _, cells = line.partition(': ')
        cell, _, other = cells.partition(' - ')
        rows.append([label, *(score(x, cell, other or reference) for x in found)])
    return markdown_table((corner, *titles), rows).replace(' +-', ' ±')


def scaling() -> str:
    """Makes a table of the efficiency of a step by scaling.py, a case a line."""
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


BOTH = 'softmax | kNN | PublicTest softmax: validation softmax | precision at 1 | MAP@R'
WITH_CENTROID = 'softmax | kNN | centroid | precision at 1 | MAP@R'
WITHOUT_HEAD = 'kNN | centroid | linear | precision at 1 | MAP@R'
OVER = 'Points over cross-entropy'
CLASSIFIERS = 'softmax | kNN: {knn} | centroid | linear'
# Table of a page -> its columns, or file, columns and values that rows need.
PLAIN = {
    'recipe': f'The recipe: {{recipe}} | seed | {CLASSIFIERS}',
    'pretrained': 'Start: {start} | px: {side} | images | rate | softmax | kNN: {knn}',
    'early_steps': (
        'early_steps',
        'Changed: {changed} | steps | training | PublicTest: {publictest}',
        {'loss': 'cross-entropy'},
    ),
    'slices': 'Slice: {slice} | threshold | kNN: {knn} '
    '| Disgust: {disgust} | Fear: {fear} | Happy: {happy}',
    'parity': 'What: {what} | beside: {compared_with} | measured: {measure} | value',
    'data': (
        'files',
        '`data.in_memory`: {in_memory} | start | prepare, s: {prepare_s} | load, s: {load_s} '
        '| images/s: {images_per_second} | MB: {megabytes}',
        {},
    ),
    'parts': 'Batch: {batch} | in parts of: {part} | ms an image: {ms_an_image:.1f} '
    '| peak MB: {megabytes:.0f} | MB that XLA plans: {planned_megabytes:.0f}',
    'faults': 'Fault: {fault} | runs | ended with the same bits: {same_bits}',
    'runtimes': (
        'runtimes',
        'Runtime: {runtime} | MB: {megabytes:.2f} | ms for one face, median: {ms_1:.1f} '
        '| 95th percentile: {ms_1_p95:.1f} | ms for 64: {ms_64:.0f}',
        {'commit': '6023c4d'},
    ),
    'fewer_slices': 'Slices: {num_slices} | MB: {megabytes} | ms for one face: {ms_1:.1f} '
    '| ms for 64: {ms_64:.0f} | softmax: {softmax} ({softmax_low} to {softmax_high}) | kNN: {knn}',
    'using': 'What: {what} | measured: {value} {unit} | lowest: {low} | highest: {high}',
    'quickstart': (
        'quickstart',
        f'Processor: {{machine}} | commit | {CLASSIFIERS}',
        {'what': 'make train'},
    ),
    'processors': 'Run: {run} | processor | cores | softmax | kNN: {knn}',
    'not_kept': 'Tried: {tried} | softmax | kNN: {knn} | beside: {reference} '
    '| its softmax: {reference_softmax} | its kNN: {reference_knn}',
    'thresholds_before': 'Setting: {setting} | difference | softmax | kNN: {knn} '
    '| centroid | MAP@R: {map_at_r}',
}
# Table of a page -> function that makes it.
TABLES: dict[str, Callable[[], str]] = {
    'loss': lambda: crosstable(
        'loss',
        'Batch: {batch} | : {measure}',
        'contestant',
        ('ours', 'pytorch-metric-learning', 'naive vmapped JAX', 'product of rows'),
        '{value} ({multiple_of_ours})',
        slices='8',
        commit='455b9e9',
    ),
    'exchange': lambda: crosstable(
        'exchange',
        'Devices: {devices} | slices',
        'exchange',
        ('slices swapped', 'rows gathered'),
        '{megabytes} MB',
    ),
    'scaling': scaling,
    'training_step': lambda: crosstable(
        'training_step',
        'Channels: {channels} | malloc',
        'contestant',
        ('ours', 'PyTorch', 'PyTorch, channels_last'),
        '{images_per_second} ({ratio_to_pytorch})',
        commit='4db2e40',
    ),
}

THRESHOLDS = """
    8 thresholds, batch-hard: hard-slices-8
    one slice at 0.1, the best single threshold: hard-single-0.1
    one slice at 1.0: hard-single-1.0
    8 slices, all at 0.75: hard-same-0.75
    8 classifiers, no metric term: cross-entropy-slices-8
    4 thresholds, all triplets: all-slices-4
    16 thresholds, all triplets: all-slices-16
    one slice at 1.0, ordinary loss: ordinary-single-1.0
    8 thresholds minus the best single one: hard-slices-8 - hard-single-0.1
"""
PARTS = """
    one slice at 0.1, dual: single-dual
    8 thresholds, ordinary: slices-ordinary
    8 thresholds, dual: slices-dual
    8 thresholds minus one slice, dual: slices-dual - single-dual
    dual minus ordinary, 8 thresholds: slices-dual - slices-ordinary
"""
MININGS = """
    batch-hard: hard
    rank 0.1 from the hardest: quantile-0.1
    rank 0.25: quantile-0.25
    the median: quantile-0.5
    semihard: semihard
    all triplets: all
    all triplets at weight 0.3: all-weight-0.3
    batch-hard at weight 0.3: hard-weight-0.3
    batch-hard at weight 3: hard-weight-3.0
    batch-hard, smooth hinge: hard-softness-0.3
    batch-hard, 4 faces of each class: hard-K-4
"""
MEMORY_FACES = """
    batch-hard: hard-memory-64 - hard
    rank 0.1 from the hardest: quantile-0.1-memory-64 - quantile-0.1
"""
MEMORY_DIGITS = """
    batch-hard, 2 batches: hard-memory-2 - hard
    batch-hard, 8 batches: hard-memory-8 - hard
    rank 0.1 from the hardest, 2 batches: quantile-0.1-memory-2 - quantile-0.1
    rank 0.1 from the hardest, 8 batches: quantile-0.1-memory-8 - quantile-0.1
"""
INGREDIENTS = """
    half the learning rate: rate-0.001
    twice the learning rate: rate-0.004
    four times the learning rate: rate-0.008
    weight decay 0.05: weight-decay-0.05
    weight decay 0.5: weight-decay-0.5
    twice the warp: twice-the-warp
    no change of light: no-light
    erasing: erasing
    no mean of the weights: no-mean-of-weights
    no label smoothing: no-smoothing
    equal classes in a batch: equal-classes
"""
CONVERGENCE = """
    8 thresholds, dual: dual-slices
    8 thresholds, dual, standardised: dual-norm-slices
    8 thresholds, ordinary, standardised: ordinary-norm-slices
    one slice at 0.2, dual, standardised: dual-norm-0.2
    one slice at 0.5, dual, standardised: dual-norm-0.5
    one slice at 0.9, dual, standardised: dual-norm-0.9
    8 slices all at 0.2, dual, standardised: dual-norm-same-0.2
    8 thresholds, all triplets: all-slices
    one slice at 0.5, all triplets: all-0.5
    one slice at 0.9, all triplets: all-0.9
"""

# Table of a page -> study, and what `study` takes.
OF_STUDIES = {
    'thresholds': ('thresholds', OVER, BOTH, THRESHOLDS, 'cross-entropy'),
    'parts_of_the_loss': ('ablation', OVER, WITH_CENTROID, PARTS, 'cross-entropy'),
    'minings': ('mining', OVER, BOTH, MININGS, 'cross-entropy'),
    'memory_faces': ('memory_faces', 'Points by a memory of 64 batches', BOTH, MEMORY_FACES),
    'precision': ('precision', 'Points over float32', BOTH, 'bfloat16: bfloat16', 'float32'),
    'memory_digits': ('memory_digits', 'Points by a memory', WITHOUT_HEAD, MEMORY_DIGITS),
    'ingredients': ('ingredients', 'Points over the recipe', BOTH, INGREDIENTS, 'recipe'),
    'convergence': ('convergence', '', WITHOUT_HEAD, CONVERGENCE),
}
TABLES |= {name: partial(study, *arguments) for name, arguments in OF_STUDIES.items()}
for _name, _columns in PLAIN.items():
    _file, _columns, _wanted = (_name, _columns, {}) if isinstance(_columns, str) else _columns
    TABLES[_name] = partial(table, _file, _columns, **_wanted)


def filled(page: str) -> str:
    """Returns a page's text with its tables made from the files.

    Raises:
      KeyError: a table is not one of `TABLES`.
    """
    return MARKED.sub(lambda found: f'{found[1]}{TABLES[found[2]]()}\n{found[3]}', page)


def main() -> None:
    """Writes the pages that change, and prints their names."""
    for path in sorted(PAGES.glob('*.md')):
        page = path.read_text(encoding='utf-8')
        if filled(page) != page:
            path.write_text(filled(page), encoding='utf-8')
            print(path.relative_to(EXPERIMENTS.parent))


if __name__ == '__main__':
    main()
