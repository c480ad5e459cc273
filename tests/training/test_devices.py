import jax
import numpy as np

from mtdml_jax.training.devices import (
    AXIS,
    map_over_devices,
    on_host,
    replicate,
    split_over_devices,
    step_shapes,
)

STATE = {'total': np.zeros(2, np.float32)}
BATCH = {'image': np.arange(32, dtype=np.float32).reshape(16, 2)}


def step(state, batch):
    """Adds the mean of a batch over all its rows to the state."""
    mean = jax.lax.pmean(batch['image'].mean(axis=0), AXIS)
    return {'total': state['total'] + mean}, {'mean': mean}


def take_a_step(devices):
    mapped = map_over_devices(step, devices)
    state, metrics = mapped(replicate(STATE, devices), split_over_devices(BATCH, devices))
    return on_host(state), metrics


def test_step_sees_all_rows_of_a_batch_that_is_split_over_all_or_some_devices():
    for devices in (None, jax.devices()[2:4], jax.devices()[:1]):
        state, metrics = take_a_step(devices)
        np.testing.assert_array_equal(state['total'], [15, 16])
        assert metrics['mean'].sharding.device_set == set(devices or jax.devices())


def test_batch_is_split_in_order():
    split = split_over_devices(BATCH, jax.devices()[:4])['image']
    assert split.shape == (4, 4, 2)
    np.testing.assert_array_equal(split.reshape(16, 2), BATCH['image'])


def test_arrays_on_the_host_are_copies_that_a_later_step_does_not_overwrite():
    mapped = map_over_devices(step)
    first, _ = mapped(replicate(STATE), split_over_devices(BATCH))
    kept = on_host(first)
    mapped(first, split_over_devices(BATCH))
    np.testing.assert_array_equal(kept['total'], [15, 16])


def test_shapes_are_those_that_the_step_takes():
    devices = jax.devices()[:4]
    shapes = step_shapes(STATE, BATCH, len(devices))
    assert [x.shape for x in jax.tree.leaves(shapes)] == [(4, 2), (4, 4, 2)]
    arguments = replicate(STATE, devices), split_over_devices(BATCH, devices)
    for shape, x in zip(jax.tree.leaves(shapes), jax.tree.leaves(arguments), strict=True):
        assert (shape.shape, shape.dtype) == (x.shape, x.dtype)
    assert map_over_devices(step, devices).lower(*shapes).compile()
