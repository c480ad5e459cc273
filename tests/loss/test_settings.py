"""Calls without jit, with JAX's strictest settings, and exported for a symbolic batch."""

import chex
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import mtdml_jax as mt

RNG = np.random.default_rng(0)
EMBEDDINGS, LABELS = RNG.normal(size=(24, 16)).astype(np.float32), np.arange(24) % 5
MASK, WEIGHTS = np.arange(24) > 2, RNG.uniform(0.5, 2, 24).astype(np.float32)
THRESHOLDS = np.float32([0.2, 0.5, 0.8, 1.1])
COLUMNS = tuple(EMBEDDINGS.T)
MEMORY = mt.Memory(EMBEDDINGS, LABELS.astype(np.int32), MASK, np.int32(0))
CALLS = {
    'hard': lambda e, y: mt.multi_threshold_loss(e, y, THRESHOLDS),
    'semihard': lambda e, y: mt.multi_threshold_loss(
        e, y, THRESHOLDS, mining='semihard', reduction='none', mask=MASK, weights=WEIGHTS
    ),
    'quantile': lambda e, y: mt.multi_threshold_loss(
        e, y, THRESHOLDS, mining='quantile', reduction='active_mean', quantile=0.4, softness=0.2
    ),
    'all': lambda e, y: mt.multi_threshold_loss(
        e, y, THRESHOLDS, mining='all', distance='squared_euclidean', softness=0.2
    ),
    'memory': lambda e, y: mt.multi_threshold_loss(
        e, y, THRESHOLDS, memory=mt.remember(mt.empty_memory(30, 16), e, y, mask=MASK)
    ),
    'mine_batch_hard': lambda e, y: mt.mine_batch_hard(
        e, y, gallery=EMBEDDINGS, gallery_labels=LABELS.astype(np.uint8), gallery_mask=MASK
    ),
    'slices': lambda e, y: mt.merge_slices(mt.split_slices(e, 4)),
    'triplet_loss': lambda e, y: mt.triplet_loss(e, COLUMNS[0][:, None], THRESHOLDS[0]),
    'dual_triplet_loss': lambda e, y: mt.dual_triplet_loss(*COLUMNS[:3], 0.3, softness=0.1),
    'sample_thresholds': lambda e, y: mt.sample_thresholds(4, *mt.threshold_range(7)),
    'memory on the host': lambda e, y: mt.multi_threshold_loss(
        e, y, THRESHOLDS, memory=mt.remember(MEMORY, e, y)
    ),
    'embed_in_parts': lambda e, y: mt.embed_in_parts(
        lambda rows: (rows, rows.mean()), e, 8, has_aux=True
    ),
    'embed_in_parts on the host': lambda e, y: mt.embed_in_parts(jnp.sqrt, EMBEDDINGS**2, 8),
}


@pytest.mark.parametrize('name', CALLS)
def test_no_array_is_moved_that_was_not_passed(name):
    arrays = jax.device_put((EMBEDDINGS, LABELS))
    with jax.transfer_guard('disallow'):
        found = CALLS[name](*arrays)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(found)))


def test_calls_without_jit_compile_once():
    compilations = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: compilations.append(event) if 'backend_compile' in event else None
    )
    arrays = jax.device_put((EMBEDDINGS[:, :12], LABELS))
    functions = CALLS['hard'], CALLS['all'], CALLS['slices'], mt.mine_batch_hard
    thresholds = jnp.float32([0.2, 0.5, 0.9])

    def loss(embeddings, labels, softness):
        return mt.multi_threshold_loss(embeddings, labels, thresholds, softness=softness)[0]

    def call_all(softness):
        for function in functions:
            function(*arrays)
        jax.grad(loss)(*arrays, softness)

    call_all(0.1)
    assert len(compilations) > len(functions)
    compilations.clear()
    call_all(0.3)
    assert not compilations


BATCH = jax.export.symbolic_shape('b')
SHAPES = (
    jax.ShapeDtypeStruct((*BATCH, 16), np.float64),
    jax.ShapeDtypeStruct(BATCH, np.int32),
)


@pytest.mark.parametrize(
    ('mining', 'sizes'),
    [
        ('hard', (60,)),
        pytest.param('hard', (3, 60, 1000, 3000), marks=pytest.mark.slow),
        pytest.param('all', (3, 60, 130), marks=pytest.mark.slow),
        pytest.param('semihard', (60, 1000), marks=pytest.mark.slow),
        pytest.param('quantile', (60, 200), marks=pytest.mark.slow),
    ],
)
def test_loss_and_gradient_are_exported_for_any_batch_and_device(mining, sizes):
    def step(embeddings, labels):
        def loss(embeddings):
            return mt.multi_threshold_loss(
                embeddings, labels, THRESHOLDS, mining=mining, mask=labels > 0
            )

        return jax.value_and_grad(loss, has_aux=True)(embeddings)

    with jax.enable_x64(True):  # In float32, thousands of rows have nearest negatives that tie.
        exported = jax.export.export(jax.jit(step), platforms=['cpu', 'cuda', 'tpu'])(*SHAPES)
        read = jax.export.deserialize(exported.serialize())
        for size in sizes:
            rng = np.random.default_rng(size)
            batch = rng.normal(size=(size, 16)), rng.integers(0, 7, size, np.int32)
            found, expected = jax.jit(read.call)(*batch), jax.jit(step)(*batch)
            chex.assert_trees_all_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_every_other_function_is_exported_for_any_batch():
    def functions(embeddings, labels):
        slices = mt.split_slices(embeddings, 4)
        gallery = {'gallery': slices, 'gallery_labels': labels}
        return (
            mt.merge_slices(slices),
            mt.mine_batch_hard(slices, labels),
            mt.mine_batch_hard(slices[:3], labels[:3], **gallery),
            mt.remember(mt.empty_memory(100, 16), embeddings, labels, mask=labels > 0),
            mt.triplet_loss(embeddings, slices.reshape(embeddings.shape), 0.1),
        )

    with jax.enable_x64(True):
        exported = jax.export.export(jax.jit(functions), platforms=['cpu', 'cuda', 'tpu'])(*SHAPES)
        read = jax.export.deserialize(exported.serialize())
        for size in (24, 90):
            labels = np.arange(size, dtype=np.int32) % 5
            batch = np.random.default_rng(size).normal(size=(size, 16)), labels
            found, expected = jax.jit(read.call)(*batch), jax.jit(functions)(*batch)
            chex.assert_trees_all_close(found, expected, rtol=0, atol=1e-12)
