import json
import os
import signal

import chex
import numpy as np
import pytest
from backbone_files import file_of
from filelock import FileLock
from small_data import CONFIG, csv_rows, png, small_config, small_overrides, write_csv

from mtdml_jax.__main__ import main
from mtdml_jax.host.errors import STOPPED, UNWRITABLE, UserError
from mtdml_jax.models import make_network
from mtdml_jax.reports.evaluate import load_checkpoint
from mtdml_jax.scoring.embed import make_embedder
from mtdml_jax.training import loop
from mtdml_jax.training.devices import AXIS, make_mapping
from mtdml_jax.training.metrics import read_metrics
from mtdml_jax.training.setup import make_training

pytestmark = pytest.mark.usefixtures('resnet4')


MEMORY = '--config.loss.memory_size=40', '--config.loss.memory_start=2'


@pytest.fixture(scope='module')
def config(folder):
    return small_config(folder, '--config.eval.checkpoint=latest', *MEMORY)


@pytest.fixture(scope='module')
def uninterrupted(config, folder):
    assert loop.train(config, folder / 'uninterrupted')
    return folder / 'uninterrupted'


@pytest.fixture(scope='module')
def again(config, folder):
    """The same run once more: (its folder, what `on_step` was called with)."""
    called = []
    loop.train(config, folder / 'again', on_step=lambda *arguments: called.append(arguments))
    return folder / 'again', called


def final_state(config, workdir):
    state, _ = load_checkpoint(make_network(config.model, 7), config, workdir)
    return state


def interrupt_before(monkeypatch, step, action):
    """Calls `action` when the loop asks for the batch of `step`."""
    make_batches = loop.train_batches

    def batches(*args, start_step, **kwargs):
        for number, batch in enumerate(make_batches(*args, start_step=start_step, **kwargs)):
            if start_step + number + 1 == step:
                action()
            yield batch

    monkeypatch.setattr(loop, 'train_batches', batches)


def test_same_seed_gives_the_same_metrics_bit_for_bit(again, uninterrupted):
    workdir, _ = again
    text = (workdir / 'metrics.jsonl').read_text()
    assert text == (uninterrupted / 'metrics.jsonl').read_text()
    assert [line['step'] for line in read_metrics(workdir / 'metrics.jsonl')] == [
        *(1, 2, 3, 3, 4, 5, 6, 6)
    ]


def test_each_step_calls_back_once_with_its_number_and_its_metrics_on_all_devices(again):
    workdir, called = again
    assert [step for step, _ in called] == [1, 2, 3, 4, 5, 6]
    assert all(len(metrics['loss'].sharding.device_set) == 8 for _, metrics in called)
    lines = read_metrics(workdir / 'metrics.jsonl')
    losses = [float(metrics['loss'][0]) for _, metrics in called]
    assert losses == [line['train/loss'] for line in lines if 'train/loss' in line]


@pytest.mark.parametrize('early', [0.0, 0.5])
def test_new_run_compiles_the_step_ahead_for_the_shapes_of_its_first_batch(folder, early):
    lowered = []

    class Step:
        def lower(self, *shapes):
            lowered.extend(shapes)
            return self

        def compile(self):
            raise ValueError('compiled')

    sides = f'--config.data.early_share={early}', '--config.data.early_image_size=12'
    config = small_config(folder, *sides)
    mapping, features = make_mapping(config.train.mapping), loop.find_features(config.data)
    with pytest.raises(ValueError, match='compiled'):
        loop._compile_ahead(config, features, mapping, Step(), {}).result()
    batch = next(loop.train_batches(loop.load_protocol_split(config.data, 'train'), config))
    assert {name: (x.shape, x.dtype) for name, x in lowered[1].items()} == {
        name: (x.shape, x.dtype) for name, x in mapping.split(batch).items()
    }


def test_another_seed_gives_other_metrics(folder, uninterrupted, tmp_path):
    loop.train(small_config(folder, '--config.seed=1'), tmp_path)
    first, other = (read_metrics(x / 'metrics.jsonl')[0] for x in (uninterrupted, tmp_path))
    assert first['train/loss'] != other['train/loss']


def test_resumed_run_after_a_crash_ends_with_the_same_bits(
    config, uninterrupted, tmp_path, monkeypatch
):
    def crash():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_before(patch, 5, crash)
        loop.train(config, tmp_path)
    assert read_metrics(tmp_path / 'metrics.jsonl')[-1]['step'] == 4
    # The checkpoint that was being written is complete.
    assert (tmp_path / 'checkpoints' / '3').is_dir()
    assert loop.train(config, tmp_path)
    chex.assert_trees_all_equal(final_state(config, tmp_path), final_state(config, uninterrupted))
    # The lines after the checkpoint of step 3 were written again.
    assert read_metrics(tmp_path / 'metrics.jsonl') == read_metrics(uninterrupted / 'metrics.jsonl')


@pytest.mark.slow
def test_run_from_recalibrated_and_frozen_weights_resumes_with_the_same_bits(
    folder, tmp_path, monkeypatch
):
    weights = file_of(tmp_path, channels=1, backbone='resnet4', stem='small')
    settings = f'--config.model.pretrained={weights}', '--config.eval.checkpoint=latest'
    changes = '--config.model.batch_norm=recalibrated', '--config.optim.frozen=^backbone/Conv_0/'
    recalibrated = small_config(folder, *settings, *changes)
    assert loop.train(recalibrated, tmp_path / 'whole')
    with monkeypatch.context() as patch:
        interrupt_before(patch, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert not loop.train(recalibrated, tmp_path / 'stopped')
    weights.unlink()
    assert loop.train(recalibrated, tmp_path / 'stopped')
    chex.assert_trees_all_equal(
        *(final_state(recalibrated, tmp_path / name) for name in ('whole', 'stopped'))
    )
    file_of(tmp_path, channels=1, backbone='resnet4', stem='small')
    assert loop.train(small_config(folder, *settings), tmp_path / 'other')
    first, other = (read_metrics(tmp_path / x / 'metrics.jsonl')[0] for x in ('whole', 'other'))
    assert first['train/loss'] != other['train/loss']


@pytest.mark.slow
def test_run_reports_missing_images_and_resumes_when_they_are_back(tmp_path, monkeypatch, capsys):
    for number, (emotion, pixels, usage) in enumerate(csv_rows()):
        split = 'train' if usage == 'Training' else 'validation'
        path = tmp_path / 'data' / split / str(emotion) / f'{number}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        face = np.array(pixels.split(), np.uint8).reshape(48, 48, 1)
        path.write_bytes(png(face))
    settings = '--config.data.name=folder', '--config.data.in_memory=False'
    command = ['train', f'--config={CONFIG}', *small_overrides(tmp_path), *settings]
    assert main([*command, f'--workdir={tmp_path / "sound"}']) == 0
    capsys.readouterr()
    command.append(f'--workdir={tmp_path / "run"}')
    with monkeypatch.context() as patch:
        interrupt_before(patch, 5, lambda: (tmp_path / 'data').rename(tmp_path / 'gone'))
        assert main(command) == UNWRITABLE
    line = capsys.readouterr().err.splitlines()[-1]
    assert 'images that could be read when they were prepared cannot be now: ' in line
    assert 'No such file' in line
    assert main(command) == 2
    (tmp_path / 'gone').rename(tmp_path / 'data')
    assert main(command) == 0
    found, expected = (
        json.loads((tmp_path / name / 'evaluation.json').read_text()) for name in ('run', 'sound')
    )
    del found['run'], expected['run']  # These differ in time and folder.
    assert found == expected
    lines, expected = (read_metrics(tmp_path / name / 'metrics.jsonl') for name in ('run', 'sound'))
    assert lines == expected


@pytest.mark.parametrize(('step', 'sent'), [(3, signal.SIGTERM), (5, signal.SIGINT)])
def test_signal_saves_the_current_step(config, uninterrupted, tmp_path, monkeypatch, step, sent):
    """At step 3 a validation is due, which the resumed run would not repeat."""
    with monkeypatch.context() as patch:
        interrupt_before(patch, step, lambda: os.kill(os.getpid(), sent))
        assert not loop.train(config, tmp_path)
    assert int(final_state(config, tmp_path).step) == step
    assert loop.train(config, tmp_path)
    chex.assert_trees_all_equal(final_state(config, tmp_path), final_state(config, uninterrupted))
    assert read_metrics(tmp_path / 'metrics.jsonl') == read_metrics(uninterrupted / 'metrics.jsonl')


@pytest.mark.parametrize(
    ('first', 'then'),
    [('pmap', 'shard_map'), pytest.param('shard_map', 'pmap', marks=pytest.mark.slow)],
)
def test_run_that_resumes_with_another_mapping_has_the_same_metrics_and_state(
    config, folder, uninterrupted, tmp_path, monkeypatch, first, then
):
    command = ['train', '--no-evaluate', f'--config={CONFIG}', f'--workdir={tmp_path}']
    command += [*small_overrides(folder), *MEMORY]
    with monkeypatch.context() as patch:
        interrupt_before(patch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert main([*command, f'--config.train.mapping={first}']) == STOPPED
    assert main([*command, f'--config.train.mapping={then}']) == 0
    lines, expected = (
        read_metrics(workdir / 'metrics.jsonl') for workdir in (tmp_path, uninterrupted)
    )
    chex.assert_trees_all_close(lines, expected, atol=1e-5, rtol=1e-5)
    states = (final_state(config, workdir) for workdir in (tmp_path, uninterrupted))
    chex.assert_trees_all_close(*states, atol=1e-5, rtol=1e-5)


def test_finished_run_is_not_changed(config, uninterrupted):
    before = (uninterrupted / 'metrics.jsonl').read_text()
    assert loop.train(config, uninterrupted)
    assert (uninterrupted / 'metrics.jsonl').read_text() == before


def test_every_device_mines_the_global_batch(config, uninterrupted):
    lines = read_metrics(uninterrupted / 'metrics.jsonl')
    found = [x['train/slice_num_valid'] for x in lines if 'train/loss' in x]
    # Each device has 2 of the 16 faces, and so hardly a pair of one class.
    assert found == [[16.0] * 4] * 6
    network, *_ = make_training(config, np.full(7, 6))
    assert network.backbone.axis_name == AXIS
    alone = config.copy_and_resolve_references()
    alone.model.batch_norm = 'device'
    network, *_ = make_training(alone, np.full(7, 6))
    assert network.backbone.axis_name is None


def test_validation_scores_the_running_mean_by_neighbours_in_the_train_split(config, uninterrupted):
    state = final_state(config, uninterrupted)
    splits = loop.load_training_splits(config.data)
    network = make_network(config.model, 7)
    validate = loop.make_validation(network, config, *splits)
    scores = validate(state.ema)
    *_, line = read_metrics(uninterrupted / 'metrics.jsonl')
    assert {f'validation/{name}': score for name, score in scores.items()} == {
        name: x for name, x in line.items() if name != 'step'
    }
    train, validation = (make_embedder(network, config)(state.ema, x) for x in splits)
    similarity = validation.embeddings.astype(np.float64) @ train.embeddings.T
    nearest = np.argsort(-similarity, axis=1)[:, : config.eval.num_neighbors]
    votes = [np.bincount(x, minlength=7) for x in train.labels[nearest]]
    found = np.mean(np.argmax(votes, axis=1) == validation.labels)
    assert scores['knn_accuracy'] == found
    assert validate(state.variables) != scores


def test_workdir_of_another_run_is_refused_and_left_alone(config, folder, uninterrupted):
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.rglob('*')}
    other = small_config(folder, '--config.optim.learning_rate=0.5')
    with pytest.raises(UserError, match='optim.learning_rate'):
        loop.train(other, uninterrupted)
    assert {path: path.stat().st_mtime_ns for path in uninterrupted.rglob('*')} == before


def test_second_run_in_a_workdir_is_refused_while_the_first_trains(config, tmp_path):
    refused = pytest.raises(UserError, match='another process is training in')
    with FileLock(tmp_path / '.lock'), refused:
        loop.train(config, tmp_path)
    assert not (tmp_path / 'config.json').exists()


def test_run_without_a_validation_split_trains_without_validation(folder, tmp_path):
    write_csv(tmp_path / 'data' / 'fer2013.csv', csv_rows({'Training': 2}))
    config = small_config(tmp_path, '--config.eval.split=train')
    assert loop.train(config, tmp_path / 'run')
    lines = read_metrics(tmp_path / 'run' / 'metrics.jsonl')
    assert [line['step'] for line in lines] == [1, 2, 3, 4, 5, 6]


def test_head_that_is_not_trained_is_not_validated(config, folder, uninterrupted):
    without = small_config(folder, '--config.loss.softmax_weight=0')
    network = make_network(config.model, 7)
    scores = loop.make_validation(network, without, *loop.load_training_splits(config.data))(
        final_state(config, uninterrupted).ema
    )
    assert scores.keys() == {'map_at_r', 'knn_accuracy'}
