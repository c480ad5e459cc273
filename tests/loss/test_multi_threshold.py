"""The triplet losses by hand, and the multi-threshold loss against plain loops."""

from functools import partial
from itertools import product

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from loss_cases import (
    EVERYONE,
    LABELS,
    THRESHOLDS,
    assert_aux_matches,
    compiled,
    loss_and_gradient,
    random_embeddings,
)

from mtdml_jax import dual_triplet_loss, multi_threshold_loss, triplet_loss
from mtdml_jax.loss.distances import DISTANCES


def test_triplet_loss_is_what_the_threshold_lacks():
    losses = triplet_loss(jnp.array([0.5, 0.5, 0.5]), jnp.array([0.9, 1.5, 1.0]), 0.6)
    np.testing.assert_allclose(losses, [0.2, 0.0, 0.1], atol=1e-6)


@pytest.mark.parametrize(
    ('d_pn', 'expected', 'slope'),
    [
        # 1/2 (0.2 + 0.1): the sum would be 0.3, the smaller of both sides 0.2.
        (1.0, 0.15, 1.0),
        # The positive's side is satisfied: half of the anchor's.
        (2.0, 0.1, 0.5),
        # Both sides equal: the ordinary loss.
        (0.9, 0.2, 1.0),
    ],
)
def test_dual_loss_is_half_of_the_sum_of_both_sides(d_pn, expected, slope):
    value, gradient = jax.value_and_grad(dual_triplet_loss)(0.5, 0.9, d_pn, 0.6)
    assert float(value) == pytest.approx(expected, rel=1e-6)
    assert gradient == slope


def test_dual_loss_measures_the_positive_to_the_negative_of_the_anchor():
    # Anchor at 0, positive at 40 degrees; the anchor's negative at -50, the positive's own at 100.
    angles = np.radians([0, 40, -50, 100, 0, 0, 0, 0])
    embeddings = np.tile(np.exp(1j * angles)[:, None], 3).view(float)
    labels = np.array([0, 0, 1, 1, 0, 0, 0, 0], np.int32)
    losses, _, _ = loss_and_gradient(
        embeddings, labels, np.ones(3), np.arange(8) < 4, reduction='none'
    )
    d40, d50, d60, d90 = 2 * np.sin(np.radians([20, 25, 30, 45]))
    hinges = {other: max(0, d40 - other + 1) for other in (d50, d60, d90)}
    np.testing.assert_allclose(losses[:, 0], (hinges[d50] + hinges[d90]) / 2)
    # Plausible but wrong formulas: with the positive's own negative, and with the nearer of both ends.
    assert abs(losses[0, 0] - (hinges[d50] + hinges[d60]) / 2) > 0.1
    assert abs(losses[0, 0] - hinges[d50]) > 0.1


@pytest.mark.parametrize('mask', [EVERYONE, np.arange(8) % 4 != 1], ids=['everyone', 'some'])
@pytest.mark.parametrize(
    ('distance', 'dual', 'reduction'),
    [
        *product(DISTANCES, (True, False), ['mean']),
        ('euclidean', True, 'none'),
        ('euclidean', False, 'active_mean'),
    ],
)
def test_loss_aux_and_gradient_match_loops(distance, dual, reduction, mask):
    def loops(e):
        return reference.loss_terms(e, LABELS, THRESHOLDS, distance, dual, mask)

    def total(e):
        return np.sum(reference.reduce(loops(e), reduction, batch_size=8))

    embeddings = random_embeddings()
    options = {'distance': distance, 'dual': dual, 'reduction': reduction}
    loss, aux, gradient = loss_and_gradient(embeddings, mask=mask, **options)
    np.testing.assert_allclose(loss, reference.reduce(loops(embeddings), reduction, 8))
    assert_aux_matches(aux, loops(embeddings), rtol=1e-7)
    slope = reference.numeric_gradient(total, embeddings)
    assert np.max(np.abs(slope)) > 0.01
    np.testing.assert_allclose(gradient, slope, atol=1e-7)


def test_active_mean_counts_the_active_anchors_of_each_slice_by_themselves():
    terms = reference.loss_terms(random_embeddings(), LABELS, THRESHOLDS, dual=False)
    active = [[v for v in s.losses.values() if v > 0] for s in terms]
    found, _, _ = loss_and_gradient(random_embeddings(), dual=False, reduction='active_mean')
    assert found == pytest.approx(np.mean([np.mean(a) for a in active]))
    assert abs(found - np.mean(np.concatenate(active))) > 0.01


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 1000),
    labels=arrays(np.int32, 8, elements=st.integers(0, 3)),
    mask=arrays(bool, 8, fill=st.just(True)),
    thresholds=arrays(np.float64, 3, elements=st.sampled_from([0.0, 0.3, 0.9, 1.6])),
)
def test_any_labels_mask_and_thresholds_match_loops(seed, labels, mask, thresholds):
    loss, aux, gradient = loss_and_gradient(random_embeddings(seed), labels, thresholds, mask)
    terms = reference.loss_terms(random_embeddings(seed), labels, thresholds, mask=mask)
    np.testing.assert_allclose(loss, reference.reduce(terms, 'mean', 8))
    assert_aux_matches(aux, terms, rtol=1e-7)
    assert np.all(np.isfinite(gradient))
    np.testing.assert_array_equal(gradient[~mask], 0)


def test_every_slice_counts_as_much_as_it_does_alone():
    embeddings = random_embeddings(1)
    _, aux, gradient = loss_and_gradient(embeddings)
    for s, columns in enumerate(np.split(np.arange(6), 3)):
        alone, _, part = loss_and_gradient(embeddings[:, columns], thresholds=THRESHOLDS[s : s + 1])
        np.testing.assert_allclose(aux.loss[s], alone)
        np.testing.assert_allclose(gradient[:, columns], part / 3, atol=1e-12)


@pytest.mark.parametrize(
    ('labels', 'mask'),
    [
        (np.zeros(8, np.int32), EVERYONE),
        (np.arange(8, dtype=np.int32), EVERYONE),
        (LABELS, ~EVERYONE),
        (LABELS, np.isin(np.arange(8), [0, 2])),
        (LABELS, np.isin(np.arange(8), [0, 1, 3])),
        (np.zeros(1, np.int32), np.ones(1, bool)),
    ],
    ids=['one class', 'all differ', 'all masked', 'one class left', 'singles left', 'one row'],
)
def test_batch_without_triplets_has_loss_and_gradient_zero(labels, mask):
    loss, aux, gradient = loss_and_gradient(random_embeddings()[: len(labels)], labels, mask=mask)
    assert loss == 0
    np.testing.assert_array_equal(gradient, 0)
    for name in set(aux._fields) - {'spread'}:
        np.testing.assert_array_equal(getattr(aux, name), 0, err_msg=name)
    assert np.all(np.isfinite(aux.spread))


@pytest.mark.parametrize(
    ('options', 'active', 'incomplete'),
    [({'dual': True}, 1.0, 0.5), ({'dual': False}, 0.5, 0.5), ({'mining': 'all'}, 0.5, 0.0)],
)
def test_incomplete_share_counts_what_only_the_side_of_the_positive_violates(
    options, active, incomplete
):
    """Rows at 0, 40, 60 degrees: 0.68 - 1.00 + 0.2 < 0 from the first, 0.68 - 0.35 + 0.2 > 0."""
    angles = np.radians([0, 40, 60])
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    labels = np.array([0, 0, 1], np.int32)
    _, aux, _ = loss_and_gradient(points, labels, np.array([0.2]), np.ones(3, bool), **options)
    np.testing.assert_array_equal(aux.active_share, [active])
    np.testing.assert_array_equal(aux.incomplete_share, [incomplete])


@pytest.mark.parametrize('distance', DISTANCES)
@pytest.mark.parametrize('row', [[0.0] * 6, [0, 2, -3, 0, 1, 0]], ids=['zero', 'equal'])
def test_collapsed_embeddings_sit_at_the_mean_threshold_without_gradient(row, distance):
    loss, aux, gradient = loss_and_gradient(np.tile(np.float64(row), (8, 1)), distance=distance)
    assert loss == pytest.approx(0.6)
    np.testing.assert_array_equal(gradient, 0)
    np.testing.assert_allclose(aux.spread, 0, atol=1e-12)
    np.testing.assert_array_equal(aux.positive_distance, 0)
    np.testing.assert_array_equal(aux.active_share, 1)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16])
def test_low_precision_embeddings_are_computed_in_float32(dtype):
    embeddings = jnp.asarray(300 * random_embeddings(3), dtype)
    loss, aux, gradient = compiled(embeddings, LABELS, THRESHOLDS, EVERYONE)
    assert (loss.dtype, aux.loss.dtype, gradient.dtype) == (jnp.float32, jnp.float32, dtype)
    expected = loss_and_gradient(np.asarray(embeddings, np.float64))
    chex.assert_trees_all_close((loss, aux), expected[:2], rtol=1e-5)
    np.testing.assert_allclose(gradient, expected[2].astype(dtype), rtol=1e-2, atol=1e-6)


def test_masked_rows_may_hold_anything():
    mask = np.arange(8) < 6
    clean = random_embeddings(4)
    garbage, labels = clean.copy(), LABELS.copy()
    garbage[6], garbage[7], labels[6:] = 1e300, clean[0], (0, 1)
    found = loss_and_gradient(garbage, labels, mask=mask)
    chex.assert_trees_all_equal(found, loss_and_gradient(clean, mask=mask))
    np.testing.assert_array_equal(found[2][6:], 0)
    assert abs(loss_and_gradient(garbage, labels)[0] - found[0]) > 0.01


@pytest.mark.parametrize(
    ('change', 'labels'),
    [
        (lambda e: (e.view(complex) * np.exp([0.3j, 1.2j, 2.5j])).view(float), LABELS),
        (lambda e: e * np.linspace(0.1, 9, 8)[:, None], LABELS),
        (lambda e: e * np.repeat([0.1, 1.0, 7.0], 2), LABELS),
        (lambda e: e, 7 - 2 * LABELS),
    ],
    ids=['rotated slices', 'scaled rows', 'scaled slices', 'other names of the classes'],
)
def test_loss_and_aux_do_not_change_with(change, labels):
    expected, found = (
        loss_and_gradient(random_embeddings(5)),
        loss_and_gradient(change(random_embeddings(5)), labels),
    )
    chex.assert_trees_all_close(found[:2], expected[:2], rtol=1e-9)


def test_permuted_batch_has_the_same_loss_and_a_permuted_gradient():
    order = np.random.default_rng(0).permutation(8)
    loss, aux, gradient = loss_and_gradient(random_embeddings(6))
    found = loss_and_gradient(random_embeddings(6)[order], LABELS[order])
    chex.assert_trees_all_close(found, (loss, aux, gradient[order]), rtol=1e-9)


def test_aux_passes_no_gradient():
    def watched(e):
        aux = multi_threshold_loss(e, LABELS, THRESHOLDS)[1]
        return sum(jnp.sum(field).astype(jnp.float32) for field in aux)

    np.testing.assert_array_equal(jax.jit(jax.grad(watched))(random_embeddings()), 0)


class EveryTransformation(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
    def test_matches_loops_in_float32(self):
        mask = np.arange(8) != 2
        loss, aux = self.variant(lambda *args: multi_threshold_loss(*args[:3], mask=args[3]))(
            random_embeddings(), LABELS, THRESHOLDS, mask
        )
        terms = reference.loss_terms(random_embeddings(), LABELS, THRESHOLDS, mask=mask)
        np.testing.assert_allclose(loss, reference.reduce(terms, 'mean', 8), rtol=1e-5)
        assert_aux_matches(aux, terms, rtol=1e-5)


def test_batches_under_vmap_equal_each_alone():
    batches = [(random_embeddings(seed), np.roll(LABELS, seed)) for seed in range(3)]
    mapped = jax.vmap(partial(multi_threshold_loss, thresholds=THRESHOLDS))
    losses, _ = jax.jit(mapped)(*map(np.stack, zip(*batches, strict=True)))
    alone = [loss_and_gradient(*batch)[0] for batch in batches]
    np.testing.assert_allclose(losses, alone, rtol=1e-5)


def test_changing_values_are_traced_once():
    chex.clear_trace_counter()
    traced_once = jax.jit(chex.assert_max_traces(multi_threshold_loss, n=1))
    for seed in range(3):
        batch = random_embeddings(seed), np.roll(LABELS, seed), THRESHOLDS + seed
        traced_once(*batch, mask=np.arange(8) != seed)


@pytest.mark.parametrize(
    ('changed', 'message'),
    [
        ({'distance': 'cosine'}, r"distance .*'squared_euclidean'.*found 'cosine'"),
        ({'mining': 'easy'}, r"mining .*'hard'.*found 'easy'"),
        ({'reduction': 'sum'}, r"reduction .*'active_mean', 'none'.*found 'sum'"),
        ({'thresholds': np.ones((3, 1))}, r'thresholds of shape \[S\], found \(3, 1\)'),
        ({'thresholds': np.ones(4)}, 'divisible by the number of slices, found 6 and 4'),
        ({'embeddings': np.ones((8, 3, 2))}, r'shape \[B, E\].*found \(8, 3, 2\) and \(8,\)'),
        ({'mask': np.ones((8, 1), bool)}, r'mask of shape \(8,\), found \(8, 1\)'),
        ({'softness': -0.1}, 'softness from 0 to inf, found -0.1'),
        ({'mining': 'quantile', 'quantile': 1.5}, 'quantile from 0 to 1, found 1.5'),
        ({'weights': np.ones(7)}, r'weights of shape \(8,\), found \(7,\)'),
        ({'labels': np.zeros(7, int)}, r'labels of shape \[B\], found \(8, 6\) and \(7,\)'),
    ],
)
def test_bad_arguments_name_expected_and_found_when_traced(changed, message):
    # A copy, because jax 0.10 caches the float32 buffer of a traced constant by its id, also for x64.
    arguments = {'embeddings': np.ones((8, 6)), 'labels': LABELS, 'thresholds': THRESHOLDS.copy()}
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(partial(multi_threshold_loss, **(arguments | changed)))
