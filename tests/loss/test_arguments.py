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
        (np.array(LABELS, complex), 'integer or boolean type, found complex64'),
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
