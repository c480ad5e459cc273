"""Studies, with a training command that only writes what the real one leaves (its own: test_main.py)."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import record
import studies
import study
from small_data import CONFIG
from studies import STUDIES, Cell, Study
from study import run_study
from study_tables import summary

from mtdml_jax.config import check_config, load_config

STUDY = Study(
    name='toy',
    question='does it run?',
    config=CONFIG,
    cells=(Cell('plain', {}), Cell('many', {'model.num_slices': 8}), Cell('other', {})),
    seeds=(0, 1),
    reference='plain',
    draw=lambda rows, path: path.write_text(str(len(rows))),
)
TRAIN_LINE = {
    'step': 6,
    'train/loss': 2.5,
    'train/accuracy': 0.25,
    'train/metric_loss': 0.5,
    'train/softmax_loss': 2.0,
    'train/slice_active_share': [1.0, 0.5],
    'train/slice_incomplete_share': [0.0, 0.25],
    'train/slice_collapse': [0.97, 0.95],
}
EVALUATION = {
    'classifiers': {
        'softmax': {'accuracy': 0.5, 'mean_class_accuracy': 0.4},
        'knn': {'accuracy': 0.6, 'mean_class_accuracy': 0.3},
    },
    'retrieval': {'precision_at_1': 0.7, 'r_precision': 0.2, 'map_at_r': 0.1},
    'slices': [{'threshold': 0.5, 'cka': 0.25}],
    'run': {'seconds': 12.5, 'device': 'abacus'},
}


@pytest.fixture
def trained(monkeypatch):
    """Stands in for the training command; the list of (cell, seed) that it was called for."""
    calls = []

    def execute(command, log):
        workdir = Path(next(x for x in command if x.startswith('--workdir=')).split('=')[1])
        calls.append((workdir.parent.name, workdir.name))
        (workdir / 'checkpoints').mkdir()
        looks = [{'step': step, 'validation/knn_accuracy': step / 8} for step in (3, 6)]
        lines = [{'step': 1, 'train/loss': 9.0}, looks[0], TRAIN_LINE, looks[1]]
        text = ''.join(json.dumps(line) + '\n' for line in lines)
        (workdir / 'metrics.jsonl').write_text(text)
        (workdir / 'evaluation.json').write_text(json.dumps(EVALUATION))
        return 0

    monkeypatch.setattr(study, 'execute', execute)
    return calls


@pytest.fixture
def run(tmp_path):
    """Runs the study with arguments; returns (exit code, rows)."""
    previous = signal.getsignal(signal.SIGTERM)

    def run(*arguments):
        where = [f'--runs={tmp_path / "runs"}', f'--output={tmp_path / "out"}']
        code = run_study(STUDY, [*where, *arguments])
        return code, record.read_rows(tmp_path / 'out' / 'results' / 'toy.csv')

    yield run
    signal.signal(signal.SIGTERM, previous)


def test_runs_all_cells_of_a_seed_before_the_next_seed_and_none_twice(run, trained, tmp_path):
    expected = [(cell.name, f'seed{seed}') for seed in (0, 1) for cell in STUDY.cells]
    code, rows = run()
    assert (code, trained) == (0, expected)
    assert [(row['cell'], f'seed{row["seed"]}') for row in rows] == expected
    assert run() == (0, rows)
    assert trained == expected
    assert (tmp_path / 'out' / 'figures' / 'toy.png').read_text() == '6'


def test_only_the_chosen_cells_and_seeds_run(run, trained):
    run('--cells=[po]*', '--seeds', '3')
    assert trained == [('plain', 'seed3'), ('other', 'seed3')]
    run('--seeds', '3')
    assert trained[2:] == [('many', 'seed3')]


def test_row_has_the_measurements_and_the_command_without_this_machines_folders(run, trained):
    _, (row,) = run('--cells=many', '--seeds=2', '--data=/faces', '--config.train.num_steps=6')
    expected = {
        'study': 'toy',
        'cell': 'many',
        'seed': '2',
        'status': 'done',
        'command': f'python -m mtdml_jax train --config={CONFIG} --workdir=runs/toy/many/seed2 '
        '--config.model.num_slices=8 --config.seed=2 --config.train.num_steps=6',
        'seconds': '12.5',
        'device': 'abacus',
        'train_accuracy': '0.25',
        'train_loss': '2.5',
        'active_share': '0.75',
        'incomplete_share': '0.125',
        'collapsed_slices': '1',
        'train_active_share': '[1.0, 0.5]',
        'softmax_accuracy': '0.5',
        'knn_mean_class_accuracy': '0.3',
        'validation_knn_accuracy': '0.75',
        'map_at_r': '0.1',
        'slices': '[{"threshold": 0.5, "cka": 0.25}]',
    }
    assert {name: row[name] for name in expected} == expected
    assert row['commit']
    assert row['jax'].startswith('0.')


def test_table_subtracts_the_chosen_cell(run, trained, capsys):
    run('--seeds=0', '--reference=many')
    assert '| plain - many |' in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run('--reference=most')


def test_tables_have_the_chosen_cells_and_the_reference_in_study_order(run, trained, capsys):
    run('--cells=other', '--seeds=0')
    run('--cells=[mp]*', '--seeds=0')
    capsys.readouterr()
    for pattern, names in (('[om]*', ['plain', 'many', 'other']), ('other', ['plain', 'other'])):
        run('--figure-only', f'--cells={pattern}')
        means, differences = (table_rows(x) for x in capsys.readouterr().out.split('\n\n'))
        assert [x[0] for x in means[1:]] == names
        assert [x[0] for x in differences[1:]] == [f'{x} - plain' for x in names[1:]]


def test_cells_without_a_run_have_no_tables(run, trained, capsys):
    run('--cells=other', '--seeds=0')
    capsys.readouterr()
    assert run('--figure-only', '--cells=many')[0] == 0
    assert not capsys.readouterr().out


def test_row_by_another_command_is_not_taken_for_this_one(run, trained):
    run('--cells=plain')
    with pytest.raises(SystemExit, match="cell 'plain', seed 0, by another command"):
        run('--cells=plain', '--config.train.num_steps=7')


def test_checkpoints_are_deleted_unless_kept(run, trained, tmp_path):
    run('--cells=plain', '--seeds=0')
    run('--cells=plain', '--seeds=1', '--keep')
    kept = [path.parent.name for path in (tmp_path / 'runs').rglob('checkpoints')]
    assert kept == ['seed1']
    assert (tmp_path / 'runs' / 'toy' / 'plain' / 'seed0' / 'metrics.jsonl').exists()


def test_list_prints_the_commands_and_runs_nothing(run, trained, capsys):
    _, rows = run('--list', '--data=/faces', '--seeds=0')
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(line.endswith('--config.data.dir=/faces') for line in lines)
    assert trained == rows == []


def test_run_that_diverges_is_a_row_and_the_study_goes_on(run, trained, monkeypatch):
    finish = study.execute

    def execute(command, log):
        finish(command, log)
        workdir = log.parent
        if workdir.parent.name != 'many':
            return 0
        (workdir / 'evaluation.json').unlink()
        return study.DIVERGED

    monkeypatch.setattr(study, 'execute', execute)
    code, rows = run('--seeds=0')
    assert code == 0
    assert [row['status'] for row in rows] == ['done', 'diverged', 'done']
    assert rows[1]['knn_accuracy'] == ''
    assert rows[1]['train_loss'] == '2.5'


def test_run_that_fails_stops_the_study_with_what_it_printed(run, monkeypatch):
    monkeypatch.setattr(study, 'execute', lambda command, log: log.write_text('no data') and 2)
    with pytest.raises(SystemExit, match='exit code 2:\nno data'):
        run()


def test_run_that_was_asked_to_stop_has_no_row_and_is_run_again(
    run, trained, monkeypatch, tmp_path
):
    stale = tmp_path / 'runs' / 'toy' / 'plain' / 'seed0' / 'evaluation.json'
    stale.parent.mkdir(parents=True)
    stale.write_text(json.dumps(EVALUATION))
    with monkeypatch.context() as patch:
        patch.setattr(study, 'execute', lambda command, log: study.STOPPED)
        assert run('--seeds=0') == (study.INTERRUPTED, [])
    assert len(run('--seeds=0')[1]) == 3


def test_interrupted_study_lets_the_run_save(tmp_path, monkeypatch):
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    script = (
        'import pathlib, signal, sys, time\n'
        'def save(*_): print("saved"); sys.exit()\n'
        'signal.signal(signal.SIGTERM, save)\n'
        f'pathlib.Path({str(tmp_path / "ready")!r}).touch()\n'
        'time.sleep(30)\n'
    )

    def stop_when_ready():
        while not (tmp_path / 'ready').exists():
            time.sleep(0.05)
        time.sleep(0.2)  # The process that waits may still be inside Popen.
        os.kill(os.getpid(), signal.SIGTERM)

    try:
        threading.Thread(target=stop_when_ready).start()
        with pytest.raises(KeyboardInterrupt):
            study.execute([sys.executable, '-c', script], tmp_path / 'log')
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert (tmp_path / 'log').read_text() == 'saved\n'


def test_kill_while_a_row_is_written_leaves_the_rows_before_it(tmp_path, monkeypatch):
    path = tmp_path / 'results.csv'
    record.append_row(path, {'cell': 'a', 'seed': 0})
    with monkeypatch.context() as patch:
        patch.setattr(record.csv.DictWriter, 'writerows', lambda self, rows: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            record.append_row(path, {'cell': 'b', 'seed': 0})
    assert record.read_rows(path) == [{'cell': 'a', 'seed': '0'}]
    record.append_row(path, {'cell': 'c', 'seed': 1, 'new': 'x, "y"'})
    assert record.read_rows(path) == [
        {'cell': 'a', 'seed': '0', 'new': ''},
        {'cell': 'c', 'seed': '1', 'new': 'x, "y"'},
    ]


def table_rows(text):
    """The cells of each row of a Markdown table, without the line under the header."""
    header, _, *rows = ([x.strip() for x in line.split('|')[1:-1]] for line in text.splitlines())
    return [header, *rows]


def test_tables_show_up_to_two_seeds_and_the_differences_to_the_reference_seed_by_seed():
    def row(cell, seed, knn, map_at_r):
        shares = {'active_share': '0.5', 'incomplete_share': '', 'collapsed_slices': '1'}
        return {'cell': cell, 'seed': seed, 'knn_accuracy': knn, 'map_at_r': map_at_r, **shares}

    rows = [
        row('a', 0, '0.5', '0.1'),
        row('a', 1, '0.6', '0.2'),
        row('b', 1, '0.61', '0.3'),
        row('b', 0, '0.52', '0.1'),
        # No run in common with 'a': scores, no difference. 'd' lacks a score.
        row('c', 2, '0.7', '0.4'),
        row('d', 0, '0.75', ''),
    ]
    scores, differences = (table_rows(x) for x in summary(rows, 'a').split('\n\n'))
    shares = ['active share', 'incomplete share', 'collapsed slices']
    assert scores == [
        ['Cell', 'seeds', 'kNN', 'MAP@R', *shares],
        ['a', '2', '50.00, 60.00', '10.00, 20.00', '0.500', '', '1.0'],
        ['b', '2', '52.00, 61.00', '10.00, 30.00', '0.500', '', '1.0'],
        ['c', '1', '70.00', '40.00', '0.500', '', '1.0'],
        ['d', '1', '75.00', '', '0.500', '', '1.0'],
    ]
    assert differences == [
        ['Difference', 'kNN', 'MAP@R'],
        ['b - a', '2.00, 1.00', '0.00, 10.00'],
        ['d - a', '25.00', ''],
    ]
    assert '\n\n' not in summary(rows, 'c')
    scores = table_rows(summary(rows, 'c', converged=0.6))
    assert scores[0][:4] == ['Cell', 'seeds', 'kNN >= 60%', 'kNN']
    assert [x[2] for x in scores[1:]] == ['1', '1', '1', '1']


def test_tables_show_means_and_intervals_that_see_through_the_luck_of_three_seeds():
    def row(cell, seed, knn):
        return {'cell': cell, 'seed': seed, 'knn_accuracy': knn, 'active_share': '0.5'}

    rows = [row('a', 2, '0.2'), row('a', 0, '0.5'), row('a', 1, '0.8')]
    rows += [row('b', 0, '0.51'), row('b', 1, '0.82'), row('b', 2, '0.23'), row('b', 7, '0.9')]
    scores, differences = (table_rows(x) for x in summary(rows, 'a').split('\n\n'))
    # t of 2 degrees of freedom is 4.302653; 'a' has a standard deviation of 0.3. Seeds differ by 0.3,
    # cells by 0.01, 0.02 and 0.03: a standard deviation of 0.01.
    assert scores[1][:3] == ['a', '3', f'50.00 +-{100 * 4.302653 * 0.3 / 3**0.5:.2f}']
    assert differences[1:] == [['b - a', f'2.00 +-{100 * 4.302653 * 0.01 / 3**0.5:.2f}']]


@pytest.mark.parametrize('name', STUDIES)
def test_cells_of_the_studies_are_valid_and_see_equally_many_faces(name):
    cells = STUDIES[name].cells
    assert len({cell.name for cell in cells}) == len(cells)
    assert STUDIES[name].reference in {cell.name for cell in cells}
    for cell in cells:
        arguments = study.train_arguments(STUDIES[name], cell, 3, {})
        overrides = [x for x in arguments if x.startswith('--config.')]
        config = load_config(str(study.ROOT / STUDIES[name].config), overrides)
        check_config(config, 1)
        assert config.seed == 3
        parts = config.data.train_split, config.eval.split
        assert parts[1] in ('test', 'validation') or parts == ('train[:33%]', 'train[33%:]')
        assert config.train.num_steps % config.train.log_every == 0
        assert len(config.loss.thresholds) in (0, config.model.num_slices)
        if name in ('mining', 'thresholds'):
            missing = studies.IMAGES - config.data.batch_size * config.train.num_steps
            # Whole batches of K faces a class, in lines of equal length, do not always divide it.
            is_spared = config.data.sampling == 'class' and 0 < missing < 0.02 * studies.IMAGES
            assert missing == 0 or is_spared
            assert config.model.embedding_size == 256


def test_single_thresholds_of_the_study_of_posed_faces_are_shares_of_the_valid_range():
    cells = {cell.name: cell.settings for cell in STUDIES['gpu_posed'].cells}
    # 7 classes: sqrt(14 / 6) = 1.5275.
    assert cells['single-0.5']['loss.thresholds'] == (0.764,)
    assert cells['single-0.9']['loss.thresholds'] == (1.375,)


@pytest.mark.parametrize('name', STUDIES)
def test_figure_of_a_study_needs_no_more_than_a_part_of_the_cells(name, tmp_path):
    slices = json.dumps([{'agreement': 0.5, 'cka': 0.5}] * 2)
    scores = {'knn_accuracy': '0.5', 'softmax_accuracy': '0.6', 'train_active_share': '[1, 0.5]'}
    rows = [
        {'cell': cell.name, 'seed': seed, 'slices': slices, **scores}
        for cell in STUDIES[name].cells[:3]
        for seed in '01'
    ]
    STUDIES[name].draw(rows, tmp_path / 'figure.png')
    assert (tmp_path / 'figure.png').stat().st_size > 10_000
