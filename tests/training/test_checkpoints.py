import os

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from small_data import CONFIG

from mtdml_jax.config import load_config
from mtdml_jax.host.errors import UserError
from mtdml_jax.host.process import quieten_orbax
from mtdml_jax.training import checkpoints
from mtdml_jax.training.state import TrainState

# Orbax reports damaged checkpoints from threads of its own, possibly while a later test runs.
quieten_orbax()


def make_state(step):
    params = {'w': np.full((2, 3), step, np.float32)}
    variables = {'params': params, 'batch_stats': {'mean': np.zeros(3, np.float32)}}
    opt_state = jax.device_get(optax.adam(0.1).init(params))
    return TrainState(np.asarray(step, np.int32), variables, opt_state, None)


def save_steps(folder, accuracies, keep=1):
    """Saves a checkpoint every 10 steps with these accuracies; None is an accuracy not measured."""
    train = load_config(CONFIG, [f'--config.train.keep_checkpoints={keep}']).train
    with checkpoints.open_checkpoints(folder, train) as manager:
        for number, accuracy in enumerate(accuracies, start=1):
            metrics = None if accuracy is None else {'softmax_accuracy': accuracy}
            checkpoints.save(manager, make_state(10 * number), metrics, {'number': number})
            manager.wait_until_finished()
    return checkpoints.open_checkpoints(folder, train)


def test_state_is_restored_bit_for_bit_with_its_structure(tmp_path):
    with save_steps(tmp_path, [0.5]) as manager:
        target = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, make_state(0)))
        state, info = checkpoints.restore(manager, 10, target)
    chex.assert_trees_all_equal(state, make_state(10))
    chex.assert_trees_all_equal_structs(state, make_state(10))
    assert info == {'number': 1}


def test_checkpoint_from_before_the_memory_was_added_is_read(tmp_path):
    old = make_state(10)
    fields = {name: getattr(old, name) for name in ('step', 'variables', 'opt_state', 'ema')}
    items = ocp.args.Composite(state=ocp.args.StandardSave(fields), info=ocp.args.JsonSave({}))
    with checkpoints.open_checkpoints(tmp_path, load_config(CONFIG).train) as manager:
        manager.save(10, args=items)
        manager.wait_until_finished()
        chex.assert_trees_all_equal(checkpoints.restore(manager, 10, old)[0], old)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


DAMAGES = {
    'truncated': lambda path: os.truncate(path, path.stat().st_size // 2),
    'emptied': lambda path: os.truncate(path, 0),
    'missing': lambda path: path.unlink(),
    'flipped': flip_a_bit,
    'changed numbers': lambda path: path.write_text('{"number": 2, "digest": "0123"}'),
}


def damage(checkpoint, files, kind):
    """Damages all files of a checkpoint that match a pattern; there must be one."""
    paths = list(checkpoint.glob(files))
    assert paths
    for path in paths:
        DAMAGES[kind](path)


ARRAYS, STRUCTURE, INFO = 'state/**/d/*', 'state/_METADATA', 'info/metadata'
METRICS = 'metrics/metrics'


@pytest.mark.parametrize(
    ('files', 'kind'),
    [
        *((ARRAYS, kind) for kind in ('truncated', 'emptied', 'missing', 'flipped')),
        (STRUCTURE, 'missing'),
        (INFO, 'truncated'),
        (INFO, 'missing'),
        (INFO, 'changed numbers'),
        (METRICS, 'truncated'),
        (METRICS, 'emptied'),
    ],
)
def test_run_resumes_from_the_last_undamaged_checkpoint(tmp_path, caplog, files, kind):
    folder = tmp_path / 'checkpoints'
    with save_steps(folder, [0.5, 0.6, 0.7], keep=3):
        pass
    damage(folder / '30', files, kind)
    with checkpoints.open_checkpoints(folder, load_config(CONFIG).train) as manager:
        state, info = checkpoints.restore_latest(manager, make_state(0))
        chex.assert_trees_all_equal(state, make_state(20))
        assert info == {'number': 2}
        assert str(folder / '30') in caplog.text
        # Metrics are read when the folder is opened, before a state is restored.
        assert files == METRICS or 'resuming from the checkpoint of step 20' in caplog.text
        assert (tmp_path / 'damaged_checkpoint_30').is_dir()
        # The resumed run saves the step again.
        checkpoints.save(manager, make_state(30), None, {})
        manager.wait_until_finished()
        chex.assert_trees_all_equal(checkpoints.restore_latest(manager, state)[0], make_state(30))


def test_half_written_checkpoint_is_ignored(tmp_path):
    half = tmp_path / '20.orbax-checkpoint-tmp' / 'metrics'
    half.mkdir(parents=True)
    (half / 'metrics').write_text('{"softmax_acc')
    with save_steps(tmp_path, [0.5]) as manager:
        assert manager.all_steps() == [10]


def test_checkpoint_that_cannot_be_written_raises_an_os_error_with_the_reason(
    tmp_path, monkeypatch
):
    def full(*_, **__):
        raise ValueError('RESOURCE_EXHAUSTED: ' + 300 * 'a' + ' No space left on device')

    with save_steps(tmp_path, [0.5]) as manager:
        with monkeypatch.context() as patch:
            patch.setattr(ocp.CheckpointManager, 'close', full)
            with pytest.raises(OSError, match=f'written to {tmp_path}.* No space left on device'):
                manager.close()
        for name in ('save', 'wait_until_finished'):
            with monkeypatch.context() as patch:
                patch.setattr(manager, name, full)
                with pytest.raises(
                    OSError, match=f'written to {tmp_path}.* No space left on device'
                ):
                    checkpoints.save(manager, make_state(20), None, {})
                    checkpoints.finish(manager)


def test_nothing_is_moved_if_all_checkpoints_are_damaged(tmp_path):
    folder = tmp_path / 'checkpoints'
    with save_steps(folder, [0.5, 0.6], keep=2) as manager:
        for step in (10, 20):
            damage(folder / str(step), ARRAYS, 'truncated')
        with pytest.raises(UserError, match=f'no checkpoint can be read; {folder}/20 cannot'):
            checkpoints.restore_latest(manager, make_state(0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ['checkpoints']


def test_latest_and_best_are_kept(tmp_path):
    with save_steps(tmp_path, [0.2, 0.9, 0.4, 0.3, 0.5], keep=2) as manager:
        assert sorted(manager.all_steps()) == [20, 40, 50]
        assert checkpoints.choose_step(manager, 'best', 'softmax_accuracy') == 20
        assert checkpoints.choose_step(manager, 'latest', 'softmax_accuracy') == 50


def test_checkpoint_without_metrics_is_never_the_best(tmp_path):
    with save_steps(tmp_path, [0.9, 0.4, None]) as manager:
        assert sorted(manager.all_steps()) == [10, 30]
        assert checkpoints.choose_step(manager, 'best', 'softmax_accuracy') == 10


def test_best_of_checkpoints_without_metrics_is_the_latest(tmp_path):
    with save_steps(tmp_path, [None, None], keep=2) as manager:
        assert checkpoints.choose_step(manager, 'best', 'softmax_accuracy') == 20


def test_only_a_finished_checkpoint_counts_and_the_check_makes_no_folder(tmp_path):
    folder = tmp_path / 'checkpoints'
    assert not checkpoints.has_checkpoint(folder)
    assert not folder.exists()
    (folder / '20.orbax-checkpoint-tmp-1').mkdir(parents=True)
    assert not checkpoints.has_checkpoint(folder)
    save_steps(folder, [0.5]).close()
    assert checkpoints.has_checkpoint(folder)


def test_folder_without_a_checkpoint_is_named(tmp_path):
    with (
        save_steps(tmp_path, []) as manager,
        pytest.raises(UserError, match=f'no checkpoint in {tmp_path}'),
    ):
        checkpoints.choose_step(manager, 'best', 'softmax_accuracy')
