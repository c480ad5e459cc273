import json
import subprocess
import sys

import numpy as np
import pytest
from small_data import CONFIG, csv_rows, small_overrides, write_csv
from study import measurements

import mtdml_jax
from mtdml_jax.__main__ import main
from mtdml_jax.host.process import show_devices
from mtdml_jax.training import loop

pytestmark = pytest.mark.usefixtures('resnet4')

GOOD = ' '.join(['7'] * 2304)


@pytest.fixture(scope='module')
def run(folder):
    """A finished run."""
    assert main(train_command(folder, folder / 'run')) == 0
    return folder / 'run'


def train_command(folder, workdir, *overrides):
    overrides = [*small_overrides(folder), *overrides]
    return ['train', f'--config={CONFIG}', f'--workdir={workdir}', *overrides]


def error_of(command, capsys):
    """Runs a command that must end with exit code 2; returns the one line of its error."""
    assert main(command) == 2
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith('mtdml_jax: ')]
    (line,) = lines
    return line


def test_training_writes_the_documented_files(run):
    names = {path.name.split('.')[0] for path in run.glob('[!.]*')}
    kept = {'config', 'metrics', 'events', 'checkpoints', 'evaluation', 'report', 'model'}
    assert names == kept
    evaluation = json.loads((run / 'evaluation.json').read_text())
    assert evaluation['split'] == 'validation'
    assert evaluation['num_examples'] == 21
    assert evaluation['class_names'][3] == 'Happy'
    assert list(evaluation['classifiers']) == ['softmax', 'knn', 'centroid', 'linear']
    assert len(evaluation['slices']) == 4
    assert evaluation['run']['checkpoint_step'] in (3, 6)
    confusion = np.array(evaluation['classifiers']['knn']['confusion_matrix'])
    np.testing.assert_array_equal(confusion.sum(axis=1), [3] * 7)


def test_no_evaluate_writes_no_evaluation_report_and_model(folder, tmp_path):
    command = train_command(folder, tmp_path, '--config.train.num_steps=1')
    assert main([*command, '--no-evaluate']) == 0
    names = {path.name.split('.')[0] for path in tmp_path.glob('[!.]*')}
    assert names == {'config', 'metrics', 'events', 'checkpoints'}


@pytest.mark.parametrize('by', ['softmax', 'centroid'])
def test_model_of_the_run_predicts_the_classes_that_its_evaluation_counted(run, by):
    rows = [(emotion, pixels) for emotion, pixels, usage in csv_rows() if usage == 'PublicTest']
    faces = [np.array(pixels.split(), np.uint8).reshape(48, 48) for _, pixels in rows]
    found = mtdml_jax.load(run).predict(faces, by=by)
    confusion = np.zeros((7, 7), int)
    for (emotion, _), label in zip(rows, found.labels, strict=True):
        confusion[emotion, label] += 1
    evaluation = json.loads((run / 'evaluation.json').read_text())
    np.testing.assert_array_equal(confusion, evaluation['classifiers'][by]['confusion_matrix'])
    assert list(found.class_names) == evaluation['class_names']


def test_study_reads_its_row_from_the_files_of_a_run(run):
    row = measurements(run)
    assert len(json.loads(row['slices'])) == len(json.loads(row['train_collapse'])) == 4
    assert 0 <= row['linear_accuracy'] <= 1
    assert row['train_loss'] > 0
    assert row['seconds'] > 0
    assert row['device']


def test_evaluate_reads_the_config_of_the_run_and_writes_another_split_elsewhere(
    run, tmp_path, capsys
):
    before, out = (run / 'evaluation.json').read_bytes(), tmp_path / 'other' / 'place'
    assert main(['evaluate', f'--workdir={run}', '--split=train', f'--out={out}']) == 0
    printed = capsys.readouterr().out
    assert '42 faces of the split train' in printed
    assert f'report: {out / "report.html"}' in printed
    assert {x.name for x in out.iterdir()} == {
        'evaluation.json',
        'report.html',
        'model.safetensors',
    }
    assert json.loads((out / 'evaluation.json').read_text())['split'] == 'train'
    assert (run / 'evaluation.json').read_bytes() == before


def test_evaluate_prints_its_numbers_before_it_fails_to_write(run, tmp_path, capsys):
    (tmp_path / 'file').touch()
    assert main(['evaluate', f'--workdir={run}', f'--out={tmp_path / "file"}']) == 74
    assert '21 faces of the split validation:\n  softmax' in capsys.readouterr().out


def test_run_without_the_softmax_term_has_no_softmax_classifier(run):
    changed = ['--config.loss.softmax_weight=0', '--config.train.best_metric=knn_accuracy']
    assert main(['evaluate', f'--workdir={run}', '--split=train', *changed]) == 0
    evaluation = json.loads((run / 'evaluation.json').read_text())
    assert list(evaluation['classifiers']) == ['knn', 'centroid', 'linear']


def test_split_that_the_data_lack_is_an_error(run, capsys):
    before = (run / 'evaluation.json').read_text()
    error = error_of(['evaluate', f'--workdir={run}', '--split=test'], capsys)
    assert "fer2013 has no split 'test'; it has train, validation" in error
    assert (run / 'evaluation.json').read_text() == before


def test_missing_data_file_is_an_error_that_says_where_to_get_it(tmp_path, capsys):
    error = error_of(train_command(tmp_path, tmp_path / 'run'), capsys)
    for part in (str(tmp_path / 'data'), 'fer2013.csv', 'icml_face_data.csv', 'Kaggle'):
        assert part in error
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    ('row', 'message'),
    [
        ((3, ' '.join(['7'] * 2303), 'Training'), 'expected 2304 pixels, found 2303'),
        ((3, GOOD[:-1] + '300', 'Training'), 'expected pixel values from 0 to 255, found 300'),
        ((9, GOOD, 'Training'), "expected a label from 0 to 6, found '9'"),
    ],
)
def test_wrong_row_of_the_csv_file_is_named(tmp_path, capsys, row, message):
    path = write_csv(tmp_path / 'data' / 'fer2013.csv', [(0, GOOD, 'Training'), row])
    error = error_of(train_command(tmp_path, tmp_path / 'run'), capsys)
    assert f'{path}: row 3: {message}' in error
    assert not list((tmp_path / 'prepared').rglob('*.tfrecord*'))


def test_class_with_one_face_is_an_error(tmp_path, capsys):
    rows = [row for row in csv_rows({'Training': 2}) if row[0] != 1]
    write_csv(tmp_path / 'data' / 'fer2013.csv', [*rows, (1, GOOD, 'Training')])
    error = error_of(train_command(tmp_path, tmp_path / 'run'), capsys)
    assert 'every class needs at least 2 faces' in error
    assert 'there is only 1 in Disgust' in error


@pytest.mark.parametrize(
    ('override', 'message'),
    [
        ('--config.optim.lerning_rate=1', "did you mean 'optim.learning_rate'"),
        ('--config.data.batch_size=20', 'config.data.batch_size (20) must be divisible'),
        ('--config.model.embedding_size=18', 'config.model.embedding_size (18) must be divisible'),
        (
            '--config.model.stem=tiny',
            "config.model.stem: expected one of imagenet, small, cifar, found 'tiny'",
        ),
        ('--config.optim.name=lion', 'config.optim.name: expected adamw or sgd'),
        ('--config.loss.distance=cosine', "config.loss: expected distance to be one of"),
        ('--config.eval.split=test', "fer2013 has no split 'test'; it has train, validation; cross"),
    ],
)  # fmt: skip
def test_wrong_setting_is_named(folder, tmp_path, capsys, override, message):
    assert message in error_of(train_command(folder, tmp_path / 'run', override), capsys)
    assert not (tmp_path / 'run').exists()


def test_workdir_may_start_at_the_home_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('HOME', str(tmp_path))
    assert str(tmp_path / 'nothing') in error_of(['evaluate', '--workdir=~/nothing'], capsys)


def test_folder_that_cannot_be_written_ends_with_its_exit_code(folder, tmp_path, capsys):
    (tmp_path / 'file').touch()
    assert main(train_command(folder, tmp_path / 'file' / 'run')) == 74
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith('mtdml_jax: [Errno 20] Not a directory')


def test_ctrl_c_before_the_first_step_ends_with_one_line(folder, tmp_path, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, 'load_training_splits', interrupt)
    assert main(train_command(folder, tmp_path)) == 130
    assert capsys.readouterr().err.splitlines()[-1] == 'mtdml_jax: interrupted'


@pytest.mark.parametrize('steps', ['3,2', '0,1', '5', 'a,b'])
def test_wrong_steps_of_a_trace_are_an_error(folder, tmp_path, capsys, steps):
    with pytest.raises(SystemExit, match='2'):
        main([*train_command(folder, tmp_path), f'--profile={steps}'])
    assert f'expected FIRST,LAST, two steps from 1 on, found {steps!r}' in capsys.readouterr().err


def test_workdir_of_another_run_is_refused(folder, run, capsys):
    error = error_of(train_command(folder, run, '--config.seed=5'), capsys)
    assert 'seed (there 0, now 5)' in error


def test_loss_that_diverges_ends_with_its_exit_code_and_saves_nothing(
    folder, tmp_path, capsys, monkeypatch
):
    make_batches = loop.train_batches

    def diverging(*args, **kwargs):
        for number, batch in enumerate(make_batches(*args, **kwargs)):
            yield batch | {'image': batch['image'] * (np.nan if number else 1)}

    monkeypatch.setattr(loop, 'train_batches', diverging)
    # A checkpoint is due at step 3, and the next line of metrics at step 6.
    assert main(train_command(folder, tmp_path, '--config.train.log_every=6')) == 3
    assert 'mtdml_jax: step 2: the loss is no longer finite' in capsys.readouterr().err
    assert not [path for path in (tmp_path / 'checkpoints').iterdir() if path.name.isdigit()]


@pytest.mark.parametrize(
    ('argument', 'message'),
    [
        ('--distributed', 'expected HOST:PORT,NUM,ID, because nothing here says it'),
        ('--distributed=localhost:1234,2', "expected HOST:PORT,NUM,ID, found 'localhost:1234,2'"),
    ],
)
def test_process_that_cannot_find_the_others_ends_with_an_error(
    folder, tmp_path, argument, message
):
    # In a process of its own, because JAX joins processes only before its first computation.
    command = [*train_command(folder, tmp_path / 'run'), argument]
    found = subprocess.run(
        [sys.executable, '-m', 'mtdml_jax', *command], capture_output=True, text=True, check=False
    )
    assert found.returncode == 2
    assert found.stderr.splitlines() == [found.stderr.strip()]
    assert f'mtdml_jax: --distributed: {message}' in found.stderr


def test_debug_shows_the_traceback(tmp_path):
    command = [sys.executable, '-m', 'mtdml_jax', 'evaluate', f'--workdir={tmp_path}']
    short = subprocess.run(command, capture_output=True, text=True, check=False)
    assert short.returncode == 2
    assert short.stderr.splitlines()[0].startswith('mtdml_jax: --workdir: no run in')
    assert len(short.stderr.splitlines()) == 1
    long = subprocess.run([*command, '--debug'], capture_output=True, text=True, check=False)
    assert 'Traceback' in long.stderr


@pytest.mark.parametrize('error', [AssertionError(), RuntimeError("Unable to initialize 'tpu'")])
def test_missing_accelerator_ends_in_one_line(folder, capsys, monkeypatch, error):
    def find_none():
        raise error

    monkeypatch.setattr('jax.devices', find_none)
    monkeypatch.setenv('JAX_PLATFORMS', 'cuda')
    line = error_of(train_command(folder, folder / 'none'), capsys)
    assert "JAX finds no device for JAX_PLATFORMS='cuda' (" in line
    assert str(error) in line


def test_command_without_its_packages_names_the_extra_that_has_them(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'mtdml_jax.config', None)
    line = error_of(['prepare', '--config=quickstart'], capsys)
    assert "prepare needs more packages than the loss: pip install 'mtdml_jax[train]'" in line
    monkeypatch.setitem(sys.modules, 'mtdml_jax.inference.predict', None)
    line = error_of(['predict', '--model=m.safetensors', 'face.png'], capsys)
    assert line.endswith("pip install 'mtdml_jax[predict]'")


def test_devices_are_printed_with_a_warning_if_jax_does_not_use_a_gpu(
    tmp_path, capsys, monkeypatch
):
    driver = tmp_path / 'version'
    monkeypatch.setattr('mtdml_jax.host.system.NVIDIA_DRIVER', str(driver))
    show_devices()
    assert capsys.readouterr().err == '8 cpu devices: cpu\n'
    driver.touch()
    show_devices()
    assert 'JAX uses the CPU although' in capsys.readouterr().err
