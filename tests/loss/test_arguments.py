"""Arguments that the functional API accepts as arrays, and arguments that it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtdml_jax as mt

EMBEDDINGS = np.random.default_rng(0).normal(size=(4, 4)).round(2)
LABELS = [0, 0, 1, 1]
THRESHOLDS = [0.3, 0.9]


def loss_of(labels, embeddings=EMBEDDINGS, **options):
    return mt.multi_threshold_loss(embeddings, labels, THRESHOLDS, **options)[0]


def mine(labels, slices=EMBEDDINGS, **options):
    return mt.mine_batch_hard(slices, labels, **options)


@pytest.mark.parametrize(
    'labels',
    [
        LABELS,
        tuple(LABELS),
        [False, False, True, True],
        [np.int64(0), jnp.int32(0), 1, 1],
        np.array(LABELS, np.uint8),
        np.array(LABELS, bool),
        np.array(LABELS, np.int64) * (2**31 - 1),
        jnp.array(LABELS, jnp.int16),
    ],
)
def test_labels_of_any_integer_type_are_the_same_classes(labels):
    assert loss_of(labels) == loss_of(jnp.array(LABELS))
    np.testing.assert_array_equal(mine(labels).positive, [1, 0, 3, 2])
    if not isinstance(labels, list | tuple):
        assert jax.jit(loss_of)(labels) == jax.jit(loss_of)(jnp.array(LABELS))


@pytest.mark.parametrize(
    ('labels', 'message'),
    [
        (
            [16777216.0, 16777216.0, 16777217.0, 16777217.0],
            'integer or boolean type, found float32',
        ),
        (np.array(LABELS, np.float64), 'integer or boolean type, found float32'),
        (jnp.array(LABELS, jnp.bfloat16), 'integer or boolean type, found bfloat16'),
        ([0, 0, 1, float('nan')], 'integer or boolean type, found float32'),
        (np.array(LABELS, complex), 'an array of real numbers, found complex64'),
        (['sad', 'sad', 'happy', 'happy'], 'as an array of numbers, found an array of <U5'),
        ([0, 0, 1, None], 'as an array of numbers, found an array of object'),
        ([[0], [0, 1], [1], [1]], 'as an array of numbers, found list that is none'),
        (
            np.array([0, 0, 1, 2**31]),
            r'\(int32\), found 0 to 2147483648; renumber them: numpy.unique',
        ),
        ([0, 0, 1, -(2**40)], r'found -1099511627776 to 1; renumber them'),
    ],
)
def test_other_labels_are_refused_with_what_was_found(labels, message):
    for call in (loss_of, mine):
        with pytest.raises(ValueError, match=f'expected labels .*{message}'):
            call(labels)
    with pytest.raises(ValueError, match=f'expected gallery_labels .*{message}'):
        mine(LABELS, gallery=EMBEDDINGS, gallery_labels=labels)


def test_labels_of_another_type_are_refused_under_jit():
    with pytest.raises(ValueError, match='expected labels .* found float32'):
        jax.jit(loss_of)(np.array(LABELS, np.float32))


def test_lists_are_what_arrays_are():
    expected = loss_of(
        jnp.array(LABELS), mask=jnp.array([1, 1, 1, 0], bool), weights=jnp.array([1.0, 2, 1, 1])
    )
    found = loss_of(LABELS, EMBEDDINGS.tolist(), mask=[1, 1, 1, 0], weights=[1, 2, 1, 1])
    assert found == expected > 0
    gallery = {'gallery_labels': LABELS, 'gallery_mask': [1, 0, 1, 1], 'rows': [0, 1, 2, 3]}
    found = mine(LABELS, EMBEDDINGS.tolist(), gallery=EMBEDDINGS.tolist(), **gallery)
    np.testing.assert_array_equal(found.positive[1:], [0, 3, 2])
    np.testing.assert_array_equal(found.valid, [False, True, True, True])
    slices = mt.split_slices(EMBEDDINGS.tolist(), 2)
    np.testing.assert_array_equal(
        mt.merge_slices(slices.tolist()), mt.merge_slices(mt.split_slices(jnp.array(EMBEDDINGS), 2))
    )
    # [0.5 - 1 + 0.75]_+ = 0.25; the dual loss averages it with [0.5 - 0 + 0.75]_+ = 1.25.
    np.testing.assert_allclose(mt.triplet_loss([0.5], [1.0], [0.75]), [0.25])
    np.testing.assert_allclose(mt.dual_triplet_loss([0.5], [1.0], [0.0], 0.75), [0.75])


def test_whole_numbers_are_embeddings():
    whole = [[1, 0, 2, 1], [0, 1, 1, 3], [3, 1, 0, 1], [1, 1, 2, 2]]
    assert loss_of(LABELS, whole) == loss_of(LABELS, np.array(whole, np.float32)) > 0


@pytest.mark.parametrize('wrong', [[['happy', 'sad']] * 4, [[1.0], [1.0, 2.0]], None])
def test_embeddings_that_are_no_numbers_are_refused(wrong):
    with pytest.raises(ValueError, match='expected embeddings as an array of numbers, found'):
        loss_of(LABELS, wrong)
    with pytest.raises(ValueError, match='expected embeddings as an array of numbers, found'):
        mt.split_slices(wrong, 2)


@pytest.mark.parametrize('mining', ['hard', 'all'])
def test_batch_without_rows_is_refused(mining):
    with pytest.raises(ValueError, match='expected at least one row'):
        loss_of(np.zeros(0, int), np.zeros((0, 4)), mining=mining)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'quantile': np.float32(1.5)}, 'quantile from 0 to 1, found 1.5'),
        ({'quantile': jnp.float32(-0.5)}, 'quantile from 0 to 1, found -0.5'),
        ({'quantile': float('nan')}, 'quantile from 0 to 1, found nan'),
        ({'quantile': [0.5, 0.5]}, r'quantile as one number, found the shape \(2,\)'),
        ({'softness': jnp.float32(-0.5)}, 'softness from 0 to inf, found -0.5'),
        ({'softness': 'soft'}, 'softness as an array of numbers'),
        ({'quantile': 'half'}, 'quantile as an array of numbers'),
        ({'mining': ['hard']}, 'mining to be one of .*, found .*hard'),
        ({'weights': [1, 1, -0.5, 1]}, 'weights from 0 to inf, found -0.5'),
        ({'weights': jnp.array([1, -2.0, 1, 1])}, 'weights from 0 to inf, found -2'),
        (
            {'embeddings': EMBEDDINGS * 1j},
            'embeddings as an array of real numbers, found complex64',
        ),
        ({'embeddings': jax.random.split(jax.random.key(0), 4)}, 'embeddings .*, found key<fry>'),
    ],
)
def test_numbers_out_of_range_and_other_types_are_refused_in_any_form(options, message):
    with pytest.raises(ValueError, match=f'expected {message}'):
        loss_of(LABELS, **options)
    numbers = {key: x for key, x in options.items() if key != 'embeddings'}
    if 'found key' not in message and isinstance(options.get('quantile', 0.0), float):
        with pytest.raises(ValueError, match=f'expected {message}'):
            jax.jit(lambda embeddings: loss_of(LABELS, embeddings, **numbers))(
                options.get('embeddings', EMBEDDINGS)
            )


def test_weights_of_masked_rows_may_be_anything():
    weights, mask = [2.0, 1.0, float('nan'), -1.0], [1, 1, 0, 0]
    labels = [0, 1, 1, 1]
    expected = loss_of(labels, weights=[2, 1, 0, 0], mask=mask)
    assert loss_of(labels, weights=weights, mask=mask) == expected
    with pytest.raises(ValueError, match='weights from 0 to inf, found nan'):
        loss_of(labels, weights=weights)


@pytest.mark.parametrize('form', [np.asarray, jnp.asarray])
def test_labels_that_the_memory_cannot_hold_are_refused(form):
    memory = mt.empty_memory(6, 4)
    labels = form(np.array([0, 1, 2, 2**31], np.uint32))
    with pytest.raises(ValueError, match=r'\(int32\), found 0 to 2147483648; renumber them'):
        mt.remember(memory, EMBEDDINGS, labels)
    kept = mt.remember(memory, EMBEDDINGS, [*labels[:3].tolist(), 7]).labels
    np.testing.assert_array_equal(kept, [0, 1, 2, 7, 0, 0])


def test_memory_and_batch_may_have_labels_of_different_types():
    """Class 300 of the memory is not class 44, which 8 bits would make of it."""
    memory = mt.remember(mt.empty_memory(4, 4), EMBEDDINGS[::-1], [300, 300, 300, 300])
    labels = np.array([44, 44, 45, 45], np.uint8)
    found, aux = mt.multi_threshold_loss(EMBEDDINGS, labels, THRESHOLDS, memory=memory)
    wide, _ = mt.multi_threshold_loss(EMBEDDINGS, labels.astype(int), THRESHOLDS, memory=memory)
    assert found == wide
    # With the memory as class 44, rows 0 and 1 would have positives at distance 0.
    assert aux.positive_distance.min() > 0.1


def test_softness_may_be_traced_and_is_that_of_the_number():
    soft = jax.jit(lambda softness: loss_of(LABELS, softness=softness))
    for softness in (0.0, 0.3):
        np.testing.assert_allclose(soft(softness), loss_of(LABELS, softness=softness), rtol=1e-6)
    gradient = jax.grad(soft)
    step = 1e-3
    slope = (soft(0.3 + step) - soft(0.3 - step)) / (2 * step)
    np.testing.assert_allclose(gradient(0.3), slope, rtol=0.02)
    assert gradient(0.0) == 0
    # [0.5 - 1 + 0.75]_+ = 0.25, and 0.5 ln(1 + exp(0.25 / 0.5)) = 0.487.
    losses = jax.jit(lambda softness: mt.triplet_loss(0.5, 1.0, 0.75, softness=softness))
    np.testing.assert_allclose([losses(0.0), losses(0.5)], [0.25, 0.48703843], rtol=1e-6)
