from functools import partial

import chex
import jax
import numpy as np
import pytest
import reference

import mtdml_jax as mt

WIDTH = 24


def draw(seed, rows):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, WIDTH)).astype(np.float32), rng.integers(0, 3, rows)


BATCH, LABELS = draw(0, 16)
MASK = np.arange(16) < 15
OLD, OLD_LABELS = draw(1, 20)


def memory_of(size=24, seen=20):
    """A memory of rows from earlier batches and four unfilled rows of zeros."""
    memory = mt.empty_memory(size, WIDTH)
    return mt.remember(memory, OLD[:seen], OLD_LABELS[:seen])


def thresholds(num_slices):
    return np.linspace(0.2, 1.3, num_slices).astype(np.float32)


@partial(jax.jit, static_argnames=('num_slices', 'mining', 'dual', 'axis_name'))
def loss_of(embeddings, labels=LABELS, mask=MASK, memory=None, num_slices=3, **options):
    return mt.multi_threshold_loss(
        embeddings, labels, thresholds(num_slices), mask=mask, memory=memory, **options
    )


@pytest.mark.parametrize('options', [{}, {'mining': 'semihard', 'dual': False}])
def test_loss_and_gradient_over_batch_and_memory_are_those_of_plain_loops(options):
    everything = np.concatenate([BATCH, OLD])
    dual = options.get('dual', True)
    terms = reference.loss_terms(
        everything,
        np.concatenate([LABELS, OLD_LABELS]),
        thresholds(3),
        mask=np.concatenate([MASK, np.ones(20, bool)]),
        weights=np.repeat([1, 0], [16, 20]),  # Rows of the memory are not anchors.
        **options,
    )
    value = jax.jit(jax.value_and_grad(partial(loss_of, **options), has_aux=True))
    (loss, aux), gradient = value(BATCH, memory=memory_of())
    np.testing.assert_allclose(loss, reference.reduce(terms, 'mean', 36), rtol=1e-5)
    expected = reference.loss_gradient(everything, terms, thresholds(3), 'euclidean', dual, 'mean')
    np.testing.assert_allclose(gradient, expected[:16], atol=1e-6)
    np.testing.assert_array_equal(
        aux.num_valid, [len(set(s.losses) - {*range(16, 36)}) for s in terms]
    )
    assert abs(loss - loss_of(BATCH, **options)[0]) > 0.01


def test_memory_takes_no_gradient():
    def loss_by_memory(embeddings):
        return loss_of(BATCH, memory=memory_of()._replace(embeddings=embeddings))[0]

    assert not jax.jit(jax.grad(loss_by_memory))(memory_of().embeddings).any()


def test_rows_that_hold_nothing_change_nothing():
    expected = loss_of(BATCH)
    chex.assert_trees_all_close(
        loss_of(BATCH, memory=mt.empty_memory(24, WIDTH)), expected, rtol=1e-6
    )
    zeros = memory_of()._replace(filled=np.ones(24, bool))
    assert abs(loss_of(BATCH, memory=zeros)[0] - loss_of(BATCH, memory=memory_of())[0]) > 1e-3


def test_newest_rows_replace_the_oldest_and_masked_ones_are_not_kept():
    memory = mt.empty_memory(5, 1)
    steps = [
        ([1, 2, 3], [1, 1, 1], [1, 2, 3, 0, 0], 3),
        ([4, 5, 6], [1, 0, 1], [1, 2, 3, 4, 6], 0),  # 5 is padding
        ([7, 8], [1, 1], [7, 8, 3, 4, 6], 2),
        ([9, 10, 11, 12, 13], [0, 1, 1, 1, 1], [13, 8, 10, 11, 12], 1),
    ]
    for rows, mask, expected, following in steps:
        rows = np.array(rows)
        memory = mt.remember(memory, rows[:, None], 10 * rows, mask=np.array(mask, bool))
        np.testing.assert_array_equal(memory.embeddings[:, 0], expected)
        np.testing.assert_array_equal(memory.labels, 10 * np.array(expected))
        np.testing.assert_array_equal(memory.filled, np.array(expected) > 0)
        assert memory.next == following


@pytest.mark.parametrize('num_slices', [3, 8])  # gathers rows, or swaps slices
def test_eight_devices_give_the_loss_gradient_and_memory_of_one(num_slices):
    def loss_and_memory(embeddings, labels, mask, memory, axis_name=None):
        options = {'num_slices': num_slices, 'axis_name': axis_name}
        value = jax.value_and_grad(loss_of, has_aux=True)
        (loss, aux), gradient = value(embeddings, labels, mask, memory, **options)
        kept = mt.remember(memory, embeddings, labels, mask=mask, axis_name=axis_name)
        return loss, aux, gradient, kept

    expected = jax.jit(loss_and_memory)(BATCH, LABELS, MASK, memory_of())
    rows = (x.reshape(8, 2, *x.shape[1:]) for x in (BATCH, LABELS, MASK))
    spread = jax.pmap(partial(loss_and_memory, axis_name='batch'), 'batch', in_axes=(0, 0, 0, None))
    loss, aux, gradient, kept = spread(*rows, memory_of())
    # A device has the gradient of all losses by its own rows; the mean over devices is the batch's.
    gradient = gradient.reshape(16, WIDTH) / 8
    chex.assert_trees_all_close(gradient, expected[2], atol=1e-6)
    for device in range(8):
        found = jax.tree.map(lambda x, d=device: x[d], (loss, aux, kept))
        chex.assert_trees_all_close(found, (*expected[:2], expected[3]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: mt.remember(memory_of(15, 10), BATCH, LABELS), r'B at most 15.*found \(16, 24\)'),
        (lambda: mt.remember(memory_of(), BATCH[:, :8], LABELS), r'\[B, 24\].*found \(16, 8\)'),
        (lambda: loss_of(BATCH[:, :9], memory=memory_of()), r'\[M, 9\], found \(24, 24\)'),
        (lambda: loss_of(BATCH, memory=memory_of(), mining='all'), 'other than'),
        (lambda: loss_of(BATCH, memory=tuple(memory_of())), 'expected a Memory, found tuple'),
        (lambda: mt.remember(None, BATCH, LABELS), 'expected a Memory, found NoneType'),
        (
            lambda: loss_of(BATCH, memory=memory_of()._replace(labels=LABELS[:3])),
            r'filled of shape \(3,\)',
        ),
    ],
)
def test_memory_that_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
