import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from small_data import CONFIG

from mtdml_jax.config import load_config
from mtdml_jax.errors import UserError
from mtdml_jax.training import checkpoints
from mtdml_jax.training.state import TrainState


def make_state(step):
    params = {'w': np.full((2, 3), step, np.float32)}
    variables = {'params': params, 'batch_stats': {'mean': np.zeros(3, np.float32)}}
    opt_state = jax.device_get(optax.adam(0.1).init(params))
    return TrainState(np.asarray(step, np.int32), variables, opt_state, None)


def save_steps(folder, accuracies, keep=1):
    """Saves a checkpoint every 10 steps with these accuracies (None: not measured)."""
    train = load_config(CONFIG, [f'--config.train.keep_checkpoints={keep}']).train
    with checkpoints.open_checkpoints(folder, train) as manager:
        for number, accuracy in enumerate(accuracies, start=1):
            metrics = None if accuracy is None else {'softmax_accuracy': accuracy}
            checkpoints.save(manager, make_state(10 * number), metrics, {'number': number})
            manager.wait_until_finished()
    return checkpoints.open_checkpoints(folder, train)


def test_state_comes_back_bit_for_bit_with_its_structure(tmp_path):
    with save_steps(tmp_path, [0.5]) as manager:
        target = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, make_state(0)))
        state, info = checkpoints.restore(manager, 10, target)
    chex.assert_trees_all_equal(state, make_state(10))
    chex.assert_trees_all_equal_structs(state, make_state(10))
    assert info == {'number': 1}


def test_checkpoint_from_before_there_was_a_memory_is_read(tmp_path):
    old = make_state(10)
    fields = {name: getattr(old, name) for name in ('step', 'variables', 'opt_state', 'ema')}
    items = ocp.args.Composite(state=ocp.args.StandardSave(fields), info=ocp.args.JsonSave({}))
    with checkpoints.open_checkpoints(tmp_path, load_config(CONFIG).train) as manager:
        manager.save(10, args=items)
        manager.wait_until_finished()
        chex.assert_trees_all_equal(checkpoints.restore(manager, 10, old)[0], old)


def test_latest_and_best_are_kept(tmp_path):
    with save_steps(tmp_path, [0.2, 0.9, 0.4, 0.3, 0.5], keep=2) as manager:
        assert sorted(manager.all_steps()) == [20, 40, 50]
        assert checkpoints.choose_step(manager, 'best', 'softmax_accuracy') == 20
        assert checkpoints.choose_step(manager, 'latest', 'softmax_accuracy') == 50


def test_checkpoint_that_was_not_measured_is_never_the_best(tmp_path):
    with save_steps(tmp_path, [0.9, 0.4, None]) as manager:
        assert sorted(manager.all_steps()) == [10, 30]
        assert checkpoints.choose_step(manager, 'best', 'softmax_accuracy') == 10


def test_best_of_checkpoints_that_were_not_measured_is_the_latest(tmp_path):
    with save_steps(tmp_path, [None, None], keep=2) as manager:
        assert checkpoints.choose_step(manager, 'best', 'softmax_accuracy') == 20


def test_only_a_finished_checkpoint_counts_and_looking_leaves_no_folder(tmp_path):
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
