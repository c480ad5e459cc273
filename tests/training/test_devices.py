import jax
import numpy as np
import pytest

from mtdml_jax.config import CHOICES
from mtdml_jax.training.devices import AXIS, MAPPINGS, make_mapping

STATE = {'total': np.zeros(2, np.float32)}
BATCH = {'image': np.arange(32, dtype=np.float32).reshape(16, 2)}

every_mapping = pytest.mark.parametrize('name', MAPPINGS)


def step(state, batch):
    """Adds the mean of a batch over all its rows to the state."""
    mean = jax.lax.pmean(batch['image'].mean(axis=0), AXIS)
    return {'total': state['total'] + mean}, {'mean': mean}


def test_config_takes_every_mapping_and_no_other():
    assert CHOICES['train.mapping'] == tuple(MAPPINGS)


@every_mapping
def test_step_sees_all_rows_of_a_batch_that_is_split_over_all_or_some_devices(name):
    for devices in (None, jax.devices()[2:4], jax.devices()[:1]):
        mapping = make_mapping(name, devices)
        mapped = mapping.map_step(step)
        state, metrics = mapped(mapping.replicate(STATE), mapping.split(BATCH))
        np.testing.assert_array_equal(mapping.on_host(state)['total'], [15, 16])
        assert metrics['mean'].sharding.device_set == set(devices or jax.devices())


@every_mapping
def test_batch_is_split_in_order(name):
    def add_in_order(state, batch):
        own = jax.lax.axis_index(AXIS) * batch['image'].mean(axis=0)
        return {'total': state['total'] + jax.lax.psum(own, AXIS)}, {}

    mapping = make_mapping(name, jax.devices()[:4])
    state, _ = mapping.map_step(add_in_order)(mapping.replicate(STATE), mapping.split(BATCH))
    # The means of the four devices are (3, 4), (11, 12), (19, 20) and (27, 28).
    expected = [11 + 2 * 19 + 3 * 27, 12 + 2 * 20 + 3 * 28]
    np.testing.assert_array_equal(mapping.on_host(state)['total'], expected)


@every_mapping
def test_state_is_overwritten_and_arrays_on_the_host_are_copies_that_are_not(name):
    mapping = make_mapping(name)
    mapped, batch = mapping.map_step(step), mapping.split(BATCH)
    first, _ = mapped(mapping.replicate(STATE), batch)
    kept = mapping.on_host(first)
    mapped(first, batch)
    assert first['total'].is_deleted()
    np.testing.assert_array_equal(kept['total'], [15, 16])
    np.testing.assert_array_equal(STATE['total'], [0, 0])


@pytest.mark.parametrize(
    ('name', 'expected'), [('pmap', [(4, 2), (4, 4, 2)]), ('shard_map', [(2,), (16, 2)])]
)
def test_shapes_are_those_that_the_step_takes(name, expected):
    mapping = make_mapping(name, jax.devices()[:4])
    shapes = mapping.shapes(STATE, BATCH)
    assert [x.shape for x in jax.tree.leaves(shapes)] == expected
    arguments = mapping.replicate(STATE), mapping.split(BATCH)
    for shape, x in zip(jax.tree.leaves(shapes), jax.tree.leaves(arguments), strict=True):
        assert (shape.shape, shape.dtype) == (x.shape, x.dtype)


@every_mapping
def test_step_that_was_compiled_for_the_shapes_is_not_traced_again(name):
    traced = []

    def noting(state, batch):
        traced.append(batch)
        return step(state, batch)

    mapping = make_mapping(name)
    mapped = mapping.map_step(noting)
    assert mapped.lower(*mapping.shapes(STATE, BATCH)).compile()
    mapped(mapping.replicate(STATE), mapping.split(BATCH))
    assert len(traced) == 1
