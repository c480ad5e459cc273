import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from small_data import CONFIG

from mtdml_jax.config import load_config
from mtdml_jax.host.errors import UserError
from mtdml_jax.loss.memory import empty_memory
from mtdml_jax.loss.multi_threshold import multi_threshold_loss
from mtdml_jax.loss.thresholds import sample_thresholds, threshold_range
from mtdml_jax.models.network import Network, Outputs
from mtdml_jax.models.resnet import ResNet
from mtdml_jax.training.devices import AXIS, MAPPINGS, make_mapping
from mtdml_jax.training.setup import make_class_weights, make_thresholds
from mtdml_jax.training.state import TrainState, init_variables
from mtdml_jax.training.step import make_loss, make_train_step

pytestmark = pytest.mark.usefixtures('resnet4')

LOSS = ConfigDict(
    {
        'metric_weight': 0.7,
        'softmax_weight': 0.3,
        'label_smoothing': 0.1,
        'distance': 'euclidean',
        'dual': True,
        'mining': 'hard',
        'quantile': 0.25,
        'softness': 0.0,
        'reduction': 'mean',
    }
)
THRESHOLDS = np.array([0.4, 0.9], np.float32)


def make_batch(size=16):
    rng = np.random.default_rng(0)
    return {
        'image': rng.normal(size=(size, 16, 16, 1)).astype(np.float32),
        # Classes are uneven over 8 devices, so the mean of each device's own rows would differ.
        'label': np.array([0] * 6 + [1] * 7 + [2] * 2 + [3], np.int32)[:size],
        'mask': np.array([True] * 15 + [False]),
    }


def make_step(axis_name, memory_start=0, norm_axis='the same', **options):
    norm_axis = axis_name if norm_axis == 'the same' else norm_axis
    backbone = ResNet('resnet4', width_factor=1 / 16, stem='small', axis_name=norm_axis)
    network = Network(backbone, 8, 2, 4, scale=5.0, learn_scale=True)
    schedule = optax.constant_schedule(0.1)
    optimizer = optax.sgd(schedule)
    variables = init_variables(network, 0, (16, 16, 1))
    state = TrainState(
        jnp.zeros((), jnp.int32), variables, optimizer.init(variables['params']), None
    )
    # The weights are uneven, so that the devices' mean weights differ from the mean of the batch.
    class_weights = jnp.array([1.0, 0.5, 3.0, 2.0])
    joint_loss = make_loss(network, THRESHOLDS, LOSS, axis_name, class_weights, **options)
    step = make_train_step(joint_loss, optimizer, schedule, 0.0, axis_name, memory_start)
    return step, state


@pytest.fixture(scope='module')
def one_device():
    step, state = make_step(None)
    return jax.device_get(jax.jit(step)(state, make_batch()))


@pytest.fixture(scope='module', params=MAPPINGS)
def eight_devices(request):
    """What a step on 8 devices returns: (on the devices, one replica on the host)."""
    step, state = make_step(AXIS)
    mapping = make_mapping(request.param)
    found = mapping.map_step(step)(mapping.replicate(state), mapping.split(make_batch()))
    return found, mapping.on_host(found)


def test_each_mapping_over_8_devices_gives_the_step_of_one_device(eight_devices, one_device):
    _, step = eight_devices
    chex.assert_trees_all_close(step, one_device, atol=2e-5, rtol=1e-4)


def test_with_running_statistics_a_step_in_micro_batches_equals_that_of_the_whole_batch():
    whole, in_micro_batches = (
        jax.device_get(jax.jit(step)(state, make_batch()))
        for step, state in (make_step(None, batch_norm='running', micro_batch=x) for x in (0, 4))
    )
    chex.assert_trees_all_close(in_micro_batches, whole, atol=1e-5, rtol=1e-4)
    _, state = make_step(None)
    chex.assert_trees_all_equal(whole[0].variables['batch_stats'], state.variables['batch_stats'])


def test_each_micro_batch_has_its_own_statistics_and_their_mean_is_kept():
    step, state = make_step(None, micro_batch=8)
    found = jax.device_get(jax.jit(step)(state, make_batch()))[0].variables['batch_stats']
    backbone = ResNet('resnet4', width_factor=1 / 16, stem='small')
    network = Network(backbone, 8, 2, 4, scale=5.0, learn_scale=True)
    updated = [
        network.apply(
            state.variables, make_batch()['image'][i::2], train=True, mutable=['batch_stats']
        )[1]['batch_stats']
        for i in (0, 1)
    ]
    expected = jax.tree.map(lambda *x: np.mean(x, axis=0), *updated)
    chex.assert_trees_all_close(found, expected, atol=1e-5)


@pytest.mark.slow
def test_step_with_statistics_of_each_device_equals_that_of_micro_batches():
    batch = make_batch()
    step, state = make_step(None, micro_batch=2)
    expected = jax.device_get(jax.jit(step)(state, batch))
    # Micro-batch i of 8 has the rows i and i + 8.
    rows = np.arange(16).reshape(2, 8).T.ravel()
    step, state = make_step(AXIS, norm_axis=None)
    mapping = make_mapping('pmap')
    spread = mapping.split({name: x[rows] for name, x in batch.items()})
    found = mapping.on_host(mapping.map_step(step)(mapping.replicate(state), spread))
    chex.assert_trees_all_close(found, expected, atol=2e-5, rtol=1e-4)


def test_replicas_are_identical_after_a_step(eight_devices):
    for leaf in jax.tree.leaves(eight_devices[0]):
        first, *others = (np.asarray(shard.data) for shard in leaf.addressable_shards)
        assert len(others) == 7
        for replica in others:
            np.testing.assert_array_equal(replica, first)


class Fixed:
    """Stands in for a network: returns the outputs that it was made with."""

    def __init__(self, embedding, logits):
        self.outputs = Outputs(embedding, logits)

    def apply(self, variables, images, *, train, mutable):
        return self.outputs, {'batch_stats': {}}


@pytest.mark.parametrize(
    'options',
    [
        {},
        {'mining': 'all', 'reduction': 'active_mean', 'distance': 'squared_euclidean'},
        {'mining': 'quantile', 'quantile': 0.5, 'softness': 0.1, 'dual': False},
    ],
)
def test_joint_loss_is_the_weighted_sum_of_both_terms_by_hand(options):
    batch, loss = make_batch(), ConfigDict(LOSS.to_dict() | options)
    rng = np.random.default_rng(1)
    embedding = jnp.asarray(rng.normal(size=(16, 8)), jnp.float32)
    logits = 3 * rng.normal(size=(16, 2, 4)).astype(np.float32)
    total, (_, _, metrics) = make_loss(Fixed(embedding, logits), THRESHOLDS, loss, None)(
        {}, {}, batch
    )

    log_probability = logits - np.log(np.sum(np.exp(logits), axis=2, keepdims=True))
    cross_entropy, correct = [], []
    for row in range(15):
        target = np.full(4, 0.1 / 4)
        target[batch['label'][row]] += 0.9
        # The loss takes each slice by itself, the accuracy takes the mean of both.
        cross_entropy.append(-np.sum(target * log_probability[row]) / 2)
        correct.append(np.argmax(logits[row, 0] + logits[row, 1]) == batch['label'][row])
    arguments = embedding, batch['label'], THRESHOLDS
    metric, _ = multi_threshold_loss(*arguments, mask=batch['mask'], **options)
    if options:
        default, _ = multi_threshold_loss(*arguments, mask=batch['mask'])
        assert abs(metric - default) > 1e-2
    np.testing.assert_allclose(metrics['softmax_loss'], np.mean(cross_entropy), rtol=1e-5)
    np.testing.assert_allclose(metrics['accuracy'], np.mean(correct), rtol=1e-6)
    np.testing.assert_allclose(total, 0.7 * metric + 0.3 * np.mean(cross_entropy), rtol=1e-5)


def softmax_loss_of(logits, batch, class_weights=None):
    """Returns the cross-entropy of logits of one slice, without label smoothing."""
    network = Fixed(jnp.eye(4)[: len(logits)], jnp.array(logits, jnp.float32)[:, None])
    loss = ConfigDict(LOSS.to_dict() | {'label_smoothing': 0.0})
    thresholds = jnp.array([0.5])
    count = len(logits)
    batch = {'image': None, 'mask': np.arange(count) < count - 1} | batch
    joint_loss = make_loss(network, thresholds, loss, None, class_weights)
    _, (_, _, metrics) = joint_loss({}, {}, batch)
    return metrics['softmax_loss']


LOGITS = np.log([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.9, 0.05, 0.05]])


def test_cross_entropy_of_votes_uses_their_shares_by_hand():
    votes = np.array([[0.5, 0.5, 0], [0, 1, 0], [0.25, 0.25, 0.5], [1, 0, 0]], np.float32)
    batch = {'label': np.array([0, 1, 2, 0]), 'votes': votes}
    # The last row is masked.
    first = -0.5 * np.log(0.5) - 0.5 * np.log(0.3)
    third = -0.5 * np.log(0.2) - 0.5 * np.log(0.6)
    expected = (first - np.log(0.8) + third) / 3
    np.testing.assert_allclose(softmax_loss_of(LOGITS, batch), expected, rtol=1e-6)


def test_class_weights_weigh_rows_and_keep_the_scale_by_hand():
    batch = {'label': np.array([0, 1, 2, 0])}
    weights = make_class_weights(np.array([1, 4, 2]), 'inverse')
    # The rows have the weights 1, 1/4, 1/2 and the losses -log of 0.5, 0.8, 0.6.
    expected = -(np.log(0.5) + 0.25 * np.log(0.8) + 0.5 * np.log(0.6)) / 1.75
    np.testing.assert_allclose(softmax_loss_of(LOGITS, batch, weights), expected, rtol=1e-6)


def test_class_weights_fall_with_the_number_of_faces_or_its_root():
    counts = np.array([4, 16, 0, 1])
    np.testing.assert_allclose(make_class_weights(counts, 'inverse'), [1 / 4, 1 / 16, 1, 1])
    np.testing.assert_allclose(make_class_weights(counts, 'sqrt'), [1 / 2, 1 / 4, 1, 1])
    assert make_class_weights(counts, 'none') is None
    with pytest.raises(UserError, match='expected one of none, inverse, sqrt, found'):
        make_class_weights(counts, 'cube')


@pytest.mark.parametrize(
    ('decay', 'step', 'used'),
    # The decay grows with the steps from 1/10, as (1 + step) / (10 + step), up to the given decay.
    [(0.05, 0, 0.05), (0.999, 0, 0.1), (0.999, 11, 12 / 21), (0.9, 1000, 0.9)],
)
def test_running_mean_has_a_small_decay_at_first_and_the_given_one_later(decay, step, used):
    def joint_loss(params, batch_stats, batch, memory):
        return params['weight'] ** 2, (batch_stats, memory, {})

    optimizer = optax.sgd(0.5)  # It takes the weight from 1 to 0.
    variables = {'params': {'weight': jnp.ones(())}, 'batch_stats': {}}
    state = TrainState(jnp.array(step), variables, optimizer.init(variables['params']), variables)
    train_step = make_train_step(joint_loss, optimizer, optax.constant_schedule(0.5), decay, None)
    new_state, _ = train_step(state, {})
    assert new_state.variables['params']['weight'] == 0
    np.testing.assert_allclose(new_state.ema['params']['weight'], used, rtol=1e-6)
    assert new_state.eval_variables is new_state.ema


def test_memory_is_filled_and_used_from_its_first_step_on():
    step, state = make_step(None, memory_start=1)
    step, changes = jax.jit(step), []
    for filled in (0, 15, 30):  # One of the 16 rows is masked.
        _, without = step(state.replace(memory=empty_memory(40, 8)), make_batch())
        state, metrics = step(
            state.replace(memory=state.memory or empty_memory(40, 8)), make_batch()
        )
        assert int(state.memory.filled.sum()) == filled
        changes.append(metrics['metric_loss'] != without['metric_loss'])
    assert changes == [False, False, True]


def test_frozen_parameters_get_no_gradient_and_the_others_the_same(one_device):
    step, state = make_step(None, frozen='backbone/Conv_0/')
    found, _ = jax.device_get(jax.jit(step)(state, make_batch()))
    start, found, free = (s.variables['params'] for s in (state, found, one_device[0]))
    chex.assert_trees_all_equal(found['backbone']['Conv_0'], start['backbone']['Conv_0'])
    assert np.any(free['backbone'].pop('Conv_0')['kernel'] != start['backbone']['Conv_0']['kernel'])
    found['backbone'].pop('Conv_0')
    chex.assert_trees_all_close(found, free, rtol=1e-5, atol=1e-6)


def test_step_is_traced_once_for_changing_values():
    step, state = make_step(None)
    traced = jax.jit(chex.assert_max_traces(step, n=1))
    chex.clear_trace_counter()
    for seed in range(3):
        batch = make_batch()
        batch['image'] = batch['image'] + seed
        state, _ = traced(state, batch)
    assert int(state.step) == 3


def test_thresholds_are_midpoints_of_the_valid_range_unless_given():
    config = load_config(CONFIG)
    np.testing.assert_allclose(
        make_thresholds(config, 7), sample_thresholds(8, *threshold_range(7)), rtol=1e-6
    )
    given = load_config(
        CONFIG,
        ['--config.model.num_slices=2', '--config.loss.thresholds=(0.25, 0.75)'],
    )
    np.testing.assert_allclose(make_thresholds(given, 7), [0.25, 0.75])


def test_there_must_be_one_threshold_per_slice():
    config = load_config(CONFIG, ['--config.loss.thresholds=(0.25, 0.75)'])
    with pytest.raises(UserError, match='expected 8 of them .*, found 2'):
        make_thresholds(config, 7)
