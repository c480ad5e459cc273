import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
from small_data import CONFIG
from tensorboardX.proto.event_pb2 import Event

from mtdml_jax.config import load_config
from mtdml_jax.host.errors import DivergenceError
from mtdml_jax.training import metrics
from mtdml_jax.training.metrics import (
    RunLog,
    check_finite,
    collapse_alarm,
    count_collapsed_steps,
    read_metrics,
)


def step_metrics(loss=1.0, collapse=(0.6, 0.6), num_valid=(8, 8)):
    """Returns the metrics of a step, replicated over two devices."""
    metrics = {
        'loss': loss,
        'metric_loss': 0.5,
        'softmax_loss': 0.25,
        'accuracy': 0.5,
        'grad_norm': 2.0,
        'learning_rate': 0.1,
        'slice_loss': (0.7, 1.2),
        'slice_active_share': (1.0, 0.5),
        'slice_collapse': collapse,
        'slice_num_valid': num_valid,
    }
    return {
        name: jnp.stack([jnp.asarray(value, jnp.float32)] * 2) for name, value in metrics.items()
    }


def run_log(folder, start_step=0, kept=None, **train):
    overrides = [f'--config.train.{key}={value}' for key, value in train.items()]
    overrides.append('--config.model.num_slices=2')
    return RunLog(folder, start_step, kept or {}, load_config(CONFIG, overrides))


def test_damaged_lines_are_skipped_and_named(tmp_path, caplog):
    path = tmp_path / 'metrics.jsonl'
    good = [json.dumps({'step': step, 'train/loss': 0.5}) for step in (1, 2, 3)]
    lines = [good[0], good[1][:-4], '\0\0\0', '[1]', '{"step": "x"}', '', good[2], good[1][:9]]
    path.write_bytes('\n'.join(lines).encode() + b'\xff')
    with run_log(tmp_path, start_step=2):
        pass
    # A kill cut off the last line. The third step will be taken again.
    assert path.read_text() == good[0] + '\n'
    assert caplog.messages == [f'{path}: skipped damaged lines: 2, 3, 4, 5']


def test_kill_while_a_resumed_run_reopens_its_metrics_loses_no_line(tmp_path, monkeypatch):
    path = tmp_path / 'metrics.jsonl'
    path.write_text(json.dumps({'step': 1}) + '\n')
    monkeypatch.setattr(metrics.Path, 'replace', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_log(tmp_path, start_step=1)
    assert read_metrics(path) == [{'step': 1}]


def test_metrics_are_means_over_the_steps_since_the_last_line(tmp_path):
    with run_log(tmp_path) as log:
        for loss in (1.0, 3.0):
            log.add(step_metrics(loss))
        log.flush(2)
        log.add(step_metrics(7.0))
        log.flush(3)
        log.validation(3, {'knn_accuracy': 0.25})
    first, second, third = read_metrics(tmp_path / 'metrics.jsonl')
    assert (first['step'], first['train/loss']) == (2, 2.0)
    assert first['train/slice_active_share'] == [1.0, 0.5]
    assert (second['step'], second['train/loss']) == (3, 7.0)
    assert third == {'step': 3, 'validation/knn_accuracy': 0.25}
    assert log.seconds['total'] >= log.seconds['steps'] > 0


def test_metrics_file_has_no_times(tmp_path):
    with run_log(tmp_path) as log:
        log.add(step_metrics())
        log.flush(1)
    (line,) = read_metrics(tmp_path / 'metrics.jsonl')
    assert not [name for name in line if 'second' in name]


def test_tensorboard_has_metrics_of_each_slice_and_speed_and_memory(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(metrics.time, 'monotonic', lambda: now[0])
    monkeypatch.setattr(metrics, 'peak_device_memory', lambda: {'peak_device_gigabytes': 2.5})

    def slow_batches():
        for _ in range(2):
            now[0] += 3.0
            yield {}

    with run_log(tmp_path) as log:
        for _ in log.watch(slow_batches()):
            now[0] += 1.0  # the step
            log.add(step_metrics(3.0))
        log.flush(2)
    (path,) = tmp_path.glob('events.*')
    records = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    values = [x for record in records for x in Event.FromString(record).summary.value]
    found = {value.tag: value.simple_value for value in values}
    assert found['train/loss'] == 3.0
    assert (found['train/slice_active_share/0'], found['train/slice_active_share/1']) == (1.0, 0.5)
    # Each batch of 128 images takes four seconds, three of which are waiting.
    assert found['train/images_per_second'] == 32.0
    assert found['train/step_seconds'] == 4.0
    assert found['train/data_wait_share'] == 0.75
    assert found['train/peak_device_gigabytes'] == 2.5


def test_full_disk_raises_an_error_instead_of_waiting_for_ever(tmp_path):
    with run_log(tmp_path) as log, open('/dev/full', 'wb', buffering=0) as full:
        file = log._events._py_recordio_writer
        kept, file._writer = file._writer, full
        log.add(step_metrics())
        with pytest.raises(OSError, match='No space left'):
            log.flush(1)
        file._writer = kept


def test_run_stopped_between_two_lines_writes_the_lines_of_an_uninterrupted_run(tmp_path):
    steps = [step_metrics(loss, (0.99, 0.1), (valid, 0)) for loss, valid in ((0.1, 3), (0.3, 4))]

    def lines(folder, kept=None, start_step=0, stop=False):
        folder.mkdir(exist_ok=True)
        with run_log(folder, start_step, kept, collapse_steps=2) as log:
            for step, metrics in enumerate(steps[start_step:], start=start_step + 1):
                log.add(metrics)
                if stop:
                    log.check(step)
                    return json.loads(json.dumps(log.kept))
            log.flush(2)
        return (folder / 'metrics.jsonl').read_text()

    kept = lines(tmp_path / 'stopped', stop=True)
    text = lines(tmp_path / 'stopped', kept, start_step=1)
    assert text == lines(tmp_path / 'whole')
    # The alarm depends on both steps, too.
    assert [
        set(json.loads(line)) & {'train/loss', 'alarm/collapsed_slices'}
        for line in text.split('\n')[:-1]
    ] == [
        {'alarm/collapsed_slices'},
        {'train/loss'},
    ]


def test_resumed_run_drops_lines_after_its_checkpoint_and_an_incomplete_line(tmp_path):
    lines = [json.dumps({'step': step, 'train/loss': step}) for step in (1, 2, 3)]
    (tmp_path / 'metrics.jsonl').write_text('\n'.join(lines) + '\n{"step": 4, "tra')
    with run_log(tmp_path, start_step=2) as log:
        log.add(step_metrics(9.0))
        log.flush(3)
    found = [
        (line['step'], line['train/loss']) for line in read_metrics(tmp_path / 'metrics.jsonl')
    ]
    assert found == [(1, 1), (2, 2), (3, 9.0)]


@pytest.mark.parametrize('name', ['loss', 'grad_norm'])
@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_loss_that_is_not_finite_raises_an_error_with_step_terms_and_config(tmp_path, name, value):
    config = load_config(CONFIG, ['--config.optim.learning_rate=10'])
    metrics = {key: x[0] for key, x in step_metrics().items()} | {name: value}
    with pytest.raises(DivergenceError) as error:
        check_finite(17, metrics, config, tmp_path)
    for part in ('step 17', 'config.optim.learning_rate=10.0', 'config.json', 'softmax loss 0.25'):
        assert part in str(error.value)


def test_error_names_the_first_step_that_is_not_finite(tmp_path):
    with run_log(tmp_path) as log, pytest.raises(DivergenceError, match='step 12:'):
        for loss in (1.0, math.nan, math.nan):
            log.add(step_metrics(loss))
        log.flush(13)


def test_collapsed_steps_are_counted_until_the_slice_recovers():
    count = np.array([4, 4])
    for collapse, expected in (((0.99, 0.97), [5, 5]), ((0.99, 0.9), [6, 0])):
        one_device = {name: x[0] for name, x in step_metrics(collapse=collapse).items()}
        count = count_collapsed_steps(count, one_device)
        np.testing.assert_array_equal(count, expected)


def test_collapse_alarm_goes_off_once_after_collapse_steps_in_a_row(tmp_path, capfd):
    with run_log(tmp_path, collapse_steps=3) as log:
        for step in range(1, 7):
            log.add(step_metrics(collapse=(0.99, 0.6)))
            log.flush(step)
    assert capfd.readouterr().err.count('COLLAPSE at step 3') == 1
    alarms = [x for x in read_metrics(tmp_path / 'metrics.jsonl') if 'alarm/collapsed_slices' in x]
    assert alarms == [{'step': 3, 'alarm/collapsed_slices': [0]}]


def test_collapse_alarm_says_what_happened_and_what_to_try():
    config = load_config(CONFIG, ['--config.loss.softmax_weight=0', '--config.loss.dual=False'])
    text = collapse_alarm(40, np.array([0, 2]), config)
    for part in ('step 40', 'slices 0, 2 (of 8)', 'no gradient', 'softmax_weight=1.0', 'dual=True'):
        assert part in text


def test_steps_without_a_triplet_in_any_slice_are_reported_once(tmp_path, capfd):
    with run_log(tmp_path, collapse_steps=3) as log:
        for step, num_valid in enumerate([(0, 0)] * 2 + [(0, 1)] + [(0, 0)] * 5, start=1):
            log.add(step_metrics(num_valid=num_valid))
            log.flush(step)
    told = capfd.readouterr().err
    assert told.count('NO TRIPLETS') == told.count('NO TRIPLETS at step 6: for 3 steps') == 1
    for part in ('config.loss.mining=hard', 'samples_per_class=4'):
        assert part in told
    lines = read_metrics(tmp_path / 'metrics.jsonl')
    alarms = [x for x in lines if 'alarm/steps_without_triplets' in x]
    assert alarms == [{'step': 6, 'alarm/steps_without_triplets': 3}]
