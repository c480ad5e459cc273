"""The pages of docs/results/: short, and their tables are what the csv files give."""

import re

import pytest
import record
import results
from studies import STUDIES

PAGES = {page.stem: page.read_text(encoding='utf-8') for page in results.PAGES.glob('*.md')}


@pytest.mark.parametrize('name', sorted(PAGES))
def test_tables_of_a_page_are_what_the_files_give(name):
    assert results.filled(PAGES[name]) == PAGES[name], 'run `make results`'


@pytest.mark.parametrize('name', sorted(PAGES))
def test_page_is_short_and_its_tables_narrow(name):
    lines = PAGES[name].splitlines()
    assert len(lines) <= 60
    assert [x for x in lines if x.startswith('|') and x.count('|') > 7] == []


def test_every_table_stands_on_one_page():
    assert sorted(re.findall(r'<!-- table: (\S+) -->', '\n'.join(PAGES.values()))) == sorted(
        results.TABLES
    )


def test_index_leads_to_every_page():
    assert set(re.findall(r'\((\w+)\.md\)', PAGES['index'])) == PAGES.keys() - {'index'}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a file of results."""
    monkeypatch.setattr(results, 'EXPERIMENTS', tmp_path)
    (tmp_path / 'results').mkdir()
    return lambda name, text: (tmp_path / 'results' / f'{name}.csv').write_text(text)


def rows_of(table):
    return [[x.strip() for x in line.split('|')[1:-1]] for line in table.splitlines()]


def test_table_keeps_digits_as_they_stand_unless_a_format_is_asked_for(write):
    write('x', 'a,b,c\nfirst,2.50,1.26\nsecond,3.0, +-1\n')
    assert rows_of(results.table('x', 'A: {a} | B: {b} s | C: {c}')) == [
        ['A', 'B', 'C'],
        ['---'] * 3,
        ['first', '2.50 s', '1.26'],
        ['second', '3.0 s', '±1'],
    ]
    shown = rows_of(results.table('x', ': {b:.0f} {c:.1f}', a='first'))
    assert shown[2:] == [['2 1.3']]


def test_crosstable_leaves_fields_without_a_row_and_brackets_without_a_value_empty(write):
    write('x', 'size,who,ms,times\n1,ours,5,\n1,theirs,10,2.0\n2,ours,7,\n')
    found = results.crosstable('x', 'Size: {size}', 'who', ('ours', 'theirs'), '{ms} ({times})')
    assert rows_of(found)[2:] == [['1', '5', '10 (2.0)'], ['2', '7', '']]


def test_file_of_results_has_a_script_that_writes_it_or_is_marked_as_typed():
    scripts = '\n'.join(x.read_text() for x in results.EXPERIMENTS.rglob('*.py'))
    scripts += (results.EXPERIMENTS.parent / 'tests/environments/faults.py').read_text()
    files = {x.stem for x in (results.EXPERIMENTS / 'results').glob('*.csv')}
    written = {x for x in files if re.search(rf"record\([\w.]+, '{x}'|'{x}\.csv'", scripts)}
    assert sorted(files - written) == sorted({*record.TYPED, *record.CLOSED, *STUDIES} & files)
    assert not written & {*record.TYPED}


def test_differences_are_those_of_the_seeds_in_common(write):
    write(
        'x',
        'cell,seed,status,knn_accuracy\n'
        'a,1,done,0.5\na,0,done,0.25\nb,0,done,0.125\nb,1,done,0.75\nb,2,done,1\nb,3,failed,1\n',
    )
    found = results.study('x', 'Points', 'near: kNN', 'a minus b: a - b')
    assert rows_of(found)[0] == ['Points', 'near']
    assert rows_of(found)[2:] == [['a minus b', '12.50, -25.00']]
