from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

import mtdml_jax as mt

THRESHOLDS = np.array([0.3, 0.9], np.float32)
LABELS = np.repeat(np.arange(6), 4)


@pytest.fixture(scope='module')
def params():
    rng = np.random.default_rng(0)
    return {
        name: rng.normal(size=shape).astype(np.float32) / shape[0] ** 0.5
        for name, shape in {'first': (5, 16), 'second': (16, 8)}.items()
    }


@pytest.fixture(scope='module')
def images():
    return np.random.default_rng(1).normal(size=(24, 5)).astype(np.float32)


def embed(params, images):
    return jnp.tanh(images @ params['first']) @ params['second']


@partial(jax.jit, static_argnames='axis_name')
def loss_of(embeddings, labels, axis_name=None):
    return mt.multi_threshold_loss(embeddings, labels, THRESHOLDS, axis_name=axis_name)[0]


def loss_in_micro_batches(params, images, part_size, labels=LABELS, axis_name=None):
    embeddings = mt.embed_in_parts(lambda x: embed(params, x), images, part_size)
    return loss_of(embeddings, labels, axis_name)


@jax.jit
def loss_of_whole(params, images):
    return loss_of(embed(params, images), LABELS)


@pytest.mark.parametrize('backend', ['cpu', 'gpu'])  # unrolled, or a loop
@pytest.mark.parametrize('part_size', [1, 4, 12, 24])
def test_loss_and_gradient_are_those_of_the_whole_batch(
    params, images, part_size, backend, monkeypatch
):
    monkeypatch.setattr(jax, 'default_backend', lambda: backend)
    expected = jax.value_and_grad(loss_of_whole)(params, images)
    found = jax.jit(jax.value_and_grad(loss_in_micro_batches), static_argnums=2)(
        params, images, part_size
    )
    chex.assert_trees_all_close(found, expected, atol=1e-6)


def test_sums_of_losses_of_the_micro_batches_are_another_loss(params, images):
    """Otherwise the tests above could not tell apart mining in a batch and in micro-batches."""
    losses = [loss_of(embed(params, images[i::6]), LABELS[i::6]) for i in range(6)]
    assert abs(np.mean(losses) - loss_of_whole(params, images)) > 0.05


def test_rows_keep_their_order_and_micro_batches_take_every_nth(images):
    seen = []

    def remember(rows):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), rows, ordered=True)
        return {'twice': 2 * rows, 'sum': rows.sum(axis=1)}

    found = mt.embed_in_parts(remember, images, 8)
    jax.effects_barrier()
    np.testing.assert_array_equal(found['twice'], 2 * images)
    np.testing.assert_allclose(found['sum'], images.sum(axis=1), atol=1e-6)
    assert len(seen) == 3
    for part, rows in enumerate(seen):
        np.testing.assert_array_equal(rows, images[part::3])


def test_aux_is_the_mean_over_the_micro_batches(images):
    outputs, aux = mt.embed_in_parts(
        lambda rows: (rows, {'largest': rows.max(axis=0)}), images, 8, has_aux=True
    )
    np.testing.assert_array_equal(outputs, images)
    expected = np.mean([images[i::3].max(axis=0) for i in range(3)], axis=0)
    np.testing.assert_allclose(aux['largest'], expected, atol=1e-6)


def test_gradient_over_8_devices_in_micro_batches_is_that_of_one_device(params, images):
    mesh = Mesh(np.array(jax.devices()[:8]), 'batch')
    rows, replicated = PartitionSpec('batch'), PartitionSpec()

    def step(params, images, labels):
        loss, gradient = jax.value_and_grad(loss_in_micro_batches)(
            params, images, 1, labels, 'batch'
        )
        return loss, jax.lax.pmean(gradient, 'batch')

    mapped = jax.shard_map(
        step, mesh=mesh, in_specs=(replicated, rows, rows), out_specs=replicated, check_vma=False
    )
    found = jax.jit(mapped)(params, images, LABELS)
    expected = jax.value_and_grad(loss_of_whole)(params, images)
    chex.assert_trees_all_close(found, expected, atol=1e-6)


HEEDS_BARRIERS = jax.__version_info__ >= (0, 12)


@pytest.mark.parametrize(
    'backend',
    ['gpu', pytest.param('cpu', marks=pytest.mark.skipif(not HEEDS_BARRIERS, reason='its XLA'))],
)
def test_memory_is_that_of_a_micro_batch(backend, monkeypatch):
    """Memory that XLA plans for a network whose inner layer is much larger than its input."""
    monkeypatch.setattr(jax, 'default_backend', lambda: backend)
    rng = np.random.default_rng(0)
    params = {
        'first': rng.normal(size=(5, 4096)).astype(np.float32),
        'second': rng.normal(size=(4096, 8)).astype(np.float32),
    }
    images, labels = rng.normal(size=(512, 5)).astype(np.float32), np.arange(512) % 9

    def memory(part_size):
        gradient = jax.jit(jax.grad(lambda p: loss_in_micro_batches(p, images, part_size, labels)))
        return gradient.lower(params).compile().memory_analysis().temp_size_in_bytes

    assert memory(32) < memory(512) / 4


@pytest.mark.parametrize('part_size', [0, 5, 48])
def test_part_size_that_does_not_divide_the_batch_is_refused(params, images, part_size):
    with pytest.raises(ValueError, match=f'divides the batch of 24, found {part_size}'):
        loss_in_micro_batches(params, images, part_size)
