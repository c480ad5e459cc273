import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from mtdml_jax.host.errors import UserError
from mtdml_jax.training.state import make_optimizer, make_schedule

OPTIM = {
    'name': 'sgd',
    'learning_rate': 0.5,
    'schedule': 'constant',
    'warmup': 0.0,
    'weight_decay': 0.0,
    'momentum': 0.0,
    'clip_norm': 0.0,
    'frozen': '',
}


def update(params, grads, **changes):
    optim = ConfigDict({**OPTIM, **changes})
    optimizer = make_optimizer(optim, make_schedule(optim, 10))
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    return updates


def test_cosine_schedule_rises_to_its_peak_and_falls_to_zero():
    schedule = make_schedule(ConfigDict({**OPTIM, 'schedule': 'cosine', 'warmup': 0.2}), 10)
    # Halfway through the 8 steps after the warm-up the cosine is one half.
    np.testing.assert_allclose([schedule(t) for t in (0, 1, 2, 6, 10)], [0, 0.25, 0.5, 0.25, 0])


def test_constant_schedule_stays_at_its_peak_after_the_warmup():
    schedule = make_schedule(ConfigDict({**OPTIM, 'warmup': 0.2}), 10)
    np.testing.assert_allclose([schedule(t) for t in (0, 1, 2, 10)], [0, 0.25, 0.5, 0.5])


def test_weight_decay_applies_to_kernels_and_not_to_biases():
    params = {'kernel': jnp.full((2, 2), 4.0), 'bias': jnp.full(2, 4.0)}
    grads = {'kernel': jnp.zeros((2, 2)), 'bias': jnp.zeros(2)}
    for name in ('sgd', 'adamw'):
        updates = update(params, grads, name=name, weight_decay=0.1)
        np.testing.assert_allclose(updates['kernel'], -0.5 * 0.1 * 4.0)
        np.testing.assert_allclose(updates['bias'], 0.0)


def test_frozen_parameters_stay_in_spite_of_gradient_and_weight_decay():
    params = {'head': {'kernel': jnp.ones((2, 2))}, 'stem': {'kernel': jnp.ones((2, 2))}}
    for name in ('sgd', 'adamw'):
        updates = update(params, params, name=name, weight_decay=0.1, frozen='^stem/')
        np.testing.assert_array_equal(updates['stem']['kernel'], 0.0)
        assert np.all(updates['head']['kernel'] < 0)


@pytest.mark.parametrize(
    ('frozen', 'message'),
    [('^Stem/', "'^Stem/' finds no parameter, such as stem/kernel"), ('(', r'unterminated')],
)
def test_pattern_that_freezes_nothing_is_refused(frozen, message):
    params = {'stem': {'kernel': jnp.ones((2, 2))}}
    with pytest.raises(UserError, match='config.optim.frozen: ') as error:
        update(params, params, frozen=frozen)
    assert message in str(error.value)


def test_gradient_is_clipped_to_the_norm():
    updates = update({'w': jnp.zeros(2)}, {'w': jnp.array([3.0, 4.0])}, clip_norm=1.0)
    np.testing.assert_allclose(updates['w'], [-0.3, -0.4], rtol=1e-6)


def test_momentum_is_that_of_nesterov_by_hand():
    optim = ConfigDict({**OPTIM, 'momentum': 0.9})
    optimizer = make_optimizer(optim, make_schedule(optim, 10))
    params = {'w': jnp.zeros(1)}
    state = optimizer.init(params)
    first, state = optimizer.update({'w': jnp.array([1.0])}, state, params)
    second, _ = optimizer.update({'w': jnp.array([2.0])}, state, params)
    np.testing.assert_allclose(first['w'], [-0.5 * (1 + 0.9 * 1)], rtol=1e-6)
    # The trace is 2 + 0.9 x 1 = 2.9.
    np.testing.assert_allclose(second['w'], [-0.5 * (2 + 0.9 * 2.9)], rtol=1e-6)


@pytest.mark.parametrize(('key', 'value'), [('name', 'adam'), ('schedule', 'step')])
def test_unknown_choice_is_named(key, value):
    optim = ConfigDict({**OPTIM, key: value})
    with pytest.raises(UserError, match=f"config.optim.{key}: expected .*, found '{value}'"):
        make_optimizer(optim, make_schedule(optim, 10))
