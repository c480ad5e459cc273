"""Minings, smooth hinge, weights and the collapse score of the multi-threshold loss."""

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
from mtdml_jax.loss.multi_threshold import MININGS

WEIGHTS = np.array([0.3, 1.0, 0.0, 2.0, 0.7, 1.5, 4.0, 0.1])
MASK = np.arange(8) != 4


def test_smooth_hinge_approaches_the_hinge_from_above():
    # The triplets violate the threshold by 0.2, keep it by 0.4, and lie exactly on it.
    d_ap, d_an = np.array([0.5, 0.5, 0.5]), np.array([0.9, 1.5, 1.1])
    smooth = triplet_loss(d_ap, d_an, 0.6, softness=0.1)
    np.testing.assert_allclose(
        smooth, [0.1 * np.log1p(np.e**2), 0.1 * np.log1p(np.e**-4), 0.1 * np.log(2)], rtol=1e-5
    )
    sharp = triplet_loss(d_ap, d_an, 0.6, softness=1e-4)
    np.testing.assert_allclose(sharp, triplet_loss(d_ap, d_an, 0.6), atol=1e-4)
    both = dual_triplet_loss(d_ap, d_an, d_an[::-1], 0.6, softness=0.1)
    np.testing.assert_allclose(both, (smooth + smooth[::-1]) / 2, rtol=1e-5)


def test_smooth_hinge_is_finite_far_from_the_threshold():
    value, slope = jax.value_and_grad(triplet_loss)(2.0, 0.0, 0.6, softness=1e-3)
    assert (float(value), float(slope)) == (pytest.approx(2.6), 1.0)
    value, slope = jax.value_and_grad(triplet_loss)(0.0, 2.0, 0.6, softness=1e-3)
    assert (float(value), float(slope)) == (0.0, 0.0)


@pytest.mark.parametrize(
    ('mining', 'options'),
    [
        *product(MININGS, ({'distance': 'euclidean'}, {'reduction': 'active_mean'})),
        *product(MININGS, ({'softness': 0.3, 'distance': 'squared_euclidean', 'dual': False},)),
        ('hard', {'softness': 0.3, 'reduction': 'active_mean'}),
    ],
)
def test_weighted_loss_aux_and_gradient_match_loops(mining, options):
    embeddings, chosen = random_embeddings(3), {'mining': mining}
    if mining == 'quantile':
        chosen |= {'quantile': 0.5}
    loss, aux, gradient = loss_and_gradient(
        embeddings, mask=MASK, weights=WEIGHTS, **options, **chosen
    )

    reduction, softness = options.get('reduction', 'mean'), options.get('softness', 0.0)
    kind, dual = options.get('distance', 'euclidean'), options.get('dual', True) and mining != 'all'
    terms = reference.loss_terms(
        embeddings,
        LABELS,
        THRESHOLDS,
        kind,
        dual,
        MASK,
        weights=WEIGHTS,
        softness=softness,
        **chosen,
    )
    np.testing.assert_allclose(loss, reference.reduce(terms, reduction, 8), rtol=1e-9)
    assert_aux_matches(aux, terms, rtol=1e-7, atol=1e-12)
    expected = reference.loss_gradient(
        embeddings, terms, THRESHOLDS, kind, dual, reduction, softness
    )
    assert np.max(np.abs(expected)) > 0.01
    np.testing.assert_allclose(gradient, expected, atol=1e-10)


@pytest.mark.parametrize('mining', MININGS)
def test_unreduced_losses_are_the_means_of_each_anchors_triplets(mining):
    losses, _, _ = loss_and_gradient(random_embeddings(3), mining=mining, reduction='none')
    terms = reference.loss_terms(random_embeddings(3), LABELS, THRESHOLDS, mining=mining)
    np.testing.assert_allclose(losses, reference.reduce(terms, 'none', 8), rtol=1e-9, atol=1e-12)


def test_minings_are_four_different_losses():
    losses = [
        float(loss_and_gradient(random_embeddings(0), mining=mining)[0]) for mining in MININGS
    ]
    differences = np.abs(np.subtract.outer(losses, losses)) + np.eye(4)
    assert np.min(differences) > 0.01


def test_dual_and_ordinary_loss_of_all_triplets_are_the_same_mean():
    arguments = random_embeddings(4), LABELS, THRESHOLDS
    one_sided = loss_and_gradient(*arguments, mining='all', dual=False)
    chex.assert_trees_all_equal(loss_and_gradient(*arguments, mining='all'), one_sided)
    # The dual loss of every triplet, by loops.
    for s, vectors in enumerate(reference.unit_slices(random_embeddings(4), 3)):
        two_sided = [
            reference.triplet_term(vectors, t, THRESHOLDS[s], 'euclidean', True, 0.0, 1.0).loss
            for t in reference.mine(vectors, LABELS, mining='all')
        ]
        assert one_sided[1].loss[s] == pytest.approx(np.mean(two_sided))


def test_equal_weights_of_any_size_change_nothing():
    plain = loss_and_gradient(random_embeddings(5))
    weighted = loss_and_gradient(random_embeddings(5), weights=np.full(8, 1e-3))
    chex.assert_trees_all_close(weighted, plain, rtol=1e-9)


def test_row_of_weight_0_is_still_mined_by_others():
    weights = np.where(np.arange(8) == 1, 0.0, 1.0)
    _, _, weighted = loss_and_gradient(random_embeddings(6), weights=weights)
    _, _, masked = loss_and_gradient(random_embeddings(6), mask=weights > 0)
    assert np.max(np.abs(weighted[1])) > 0.01
    np.testing.assert_array_equal(masked[1], 0)


@pytest.mark.parametrize('mining', MININGS)
@pytest.mark.parametrize('softness', [0.0, 0.2])
def test_gradient_is_finite_for_every_degenerate_batch(mining, softness):
    batches = {
        'zero rows': (np.zeros((8, 6)), LABELS, EVERYONE),
        'equal rows': (np.tile([0, 2.0, -3, 0, 1, 0], (8, 1)), LABELS, EVERYONE),
        'some zero rows': (random_embeddings() * (LABELS != 1)[:, None], LABELS, EVERYONE),
        'one class': (random_embeddings(), np.zeros(8, np.int32), EVERYONE),
        'all classes differ': (random_embeddings(), np.arange(8, dtype=np.int32), EVERYONE),
        'everything masked': (random_embeddings(), LABELS, ~EVERYONE),
        'one row': (random_embeddings()[:1], LABELS[:1], EVERYONE[:1]),
    }
    for name, (embeddings, labels, mask) in batches.items():
        found = compiled(
            np.float32(embeddings), labels, np.float32(THRESHOLDS), mask, mining=mining,
            softness=softness,
        )  # fmt: skip
        for leaf in jax.tree.leaves(found):
            assert np.all(np.isfinite(leaf)), name
        if name in ('one class', 'all classes differ', 'everything masked', 'one row'):
            loss, aux, gradient = found
            assert loss == 0, name
            np.testing.assert_array_equal(gradient, 0, err_msg=name)
            np.testing.assert_array_equal(aux.collapse, 0, err_msg=name)


@pytest.mark.parametrize('mining', MININGS)
def test_what_stands_in_masked_rows_changes_neither_loss_nor_any_gradient(mining):
    mask, embeddings = LABELS != 2, random_embeddings(3)
    options = {'mask': mask, 'mining': mining, 'weights': WEIGHTS}
    expected = loss_and_gradient(embeddings, **options)
    assert np.abs(expected[2][mask]).max() > 0.01
    for wrong in (np.nan, np.inf, -np.inf, 1e300):
        dirty = np.where(mask[:, None], embeddings, wrong)
        options['weights'] = np.where(mask, WEIGHTS, np.nan)
        found = loss_and_gradient(dirty, **options)
        chex.assert_trees_all_equal(found, expected)
        np.testing.assert_array_equal(found[2][~mask], 0)


@pytest.mark.parametrize('mining', MININGS)
def test_nan_in_an_embedding_is_seen_in_its_slice_and_in_no_other(mining):
    embeddings = random_embeddings(3)
    embeddings[2, 3] = np.nan
    loss, aux, _ = loss_and_gradient(embeddings, mining=mining)
    assert np.isnan(loss)
    np.testing.assert_array_equal(np.isnan(aux.loss), [False, True, False])


@pytest.mark.parametrize('mining', MININGS)
@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16])
def test_low_precision_is_computed_in_float32_by_every_mining(mining, dtype):
    embeddings = jnp.asarray(300 * random_embeddings(3), dtype)
    loss, aux, gradient = compiled(embeddings, LABELS, THRESHOLDS, EVERYONE, mining=mining)
    assert (loss.dtype, aux.loss.dtype, gradient.dtype) == (jnp.float32, jnp.float32, dtype)
    expected = loss_and_gradient(np.asarray(embeddings, np.float64), mining=mining)
    chex.assert_trees_all_close((loss, aux), expected[:2], rtol=1e-5, atol=1e-6)
    assert np.all(np.isfinite(np.float32(gradient)))


@pytest.mark.parametrize('mining', MININGS)
@settings(derandomize=True, deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 1000),
    labels=arrays(np.int32, 8, elements=st.integers(0, 3)),
    mask=arrays(bool, 8, fill=st.just(True)),
    weights=arrays(np.float64, 8, elements=st.sampled_from([0.0, 0.5, 1.0, 3.0])),
)
def test_any_labels_mask_and_weights_match_loops(mining, seed, labels, mask, weights):
    loss, aux, gradient = loss_and_gradient(
        random_embeddings(seed), labels, mask=mask, weights=weights, mining=mining
    )
    terms = reference.loss_terms(
        random_embeddings(seed), labels, THRESHOLDS, mask=mask, weights=weights, mining=mining
    )
    np.testing.assert_allclose(loss, reference.reduce(terms, 'mean', 8), rtol=1e-9, atol=1e-12)
    assert_aux_matches(aux, terms, rtol=1e-7, atol=1e-12)
    assert np.all(np.isfinite(gradient))
    np.testing.assert_array_equal(gradient[~mask], 0)


@pytest.mark.parametrize('mining', MININGS)
def test_permuting_rotating_scaling_and_relabelling_change_nothing(mining):
    embeddings = random_embeddings(7)
    expected = loss_and_gradient(embeddings, mining=mining)
    order = np.random.default_rng(0).permutation(8)
    turned = (embeddings.view(complex) * np.exp([0.3j, 1.2j, 2.5j])).view(float)
    permuted = loss_and_gradient(embeddings[order], LABELS[order], mining=mining)
    chex.assert_trees_all_close(permuted, (*expected[:2], expected[2][order]), rtol=1e-9)
    for changed, labels in (
        (turned, LABELS),
        (embeddings * np.linspace(0.1, 9, 8)[:, None], LABELS),
        (embeddings, 7 - 2 * LABELS),
    ):
        found = loss_and_gradient(changed, labels, mining=mining)
        chex.assert_trees_all_close(found[:2], expected[:2], rtol=1e-9)


def test_collapse_is_0_for_orthogonal_classes_and_1_for_one_point():
    # Two classes along two axes; then all rows within 1e-3 of one point, and one row far away.
    corners = np.tile(np.eye(2)[LABELS[:8] % 2], 3)
    close = np.tile([1.0, 0.0], (8, 3)) + 1e-3 * np.random.default_rng(0).normal(size=(8, 6))
    outlier = close.copy()
    outlier[6] = np.tile([-1.0, 0.0], 3)
    for distance in ('euclidean', 'squared_euclidean'):
        scores = {
            name: loss_and_gradient(batch, labels=LABELS % 2, distance=distance)[1]
            for name, batch in (('corners', corners), ('close', close))
        }
        np.testing.assert_allclose(scores['corners'].collapse, 0, atol=1e-9)
        np.testing.assert_array_less(0.99, scores['close'].collapse)
    # Only the outlier has class 3: no hardest pair contains it, but the spread shows it.
    aux = loss_and_gradient(outlier)[1]
    np.testing.assert_array_less(0.99, aux.collapse)
    np.testing.assert_array_less(0.5, aux.spread)


def test_changing_values_are_traced_once():
    chex.clear_trace_counter()
    traced_once = jax.jit(
        chex.assert_max_traces(multi_threshold_loss, n=1), static_argnames='mining'
    )
    for seed in range(3):
        traced_once(
            random_embeddings(seed),
            np.roll(LABELS, seed),
            THRESHOLDS + seed,
            mask=np.arange(8) != seed,
            weights=WEIGHTS + seed,
            quantile=seed / 4,
            mining='quantile',
        )


@pytest.mark.parametrize(
    ('mining', 'batch', 'num_slices', 'bound'),
    # Naive code stores a distance for every pair and slice, and a number for every triplet of a slice.
    [('hard', 2048, 16, 4 * 16 * 2048**2 / 10), ('all', 256, 2, 4 * 256**3 / 2)],
)
def test_memory_stays_far_below_what_all_pairs_or_triplets_take(mining, batch, num_slices, bound):
    def loss_of(*args):
        return multi_threshold_loss(*args, mining=mining)[0]

    compiled_loss = (
        jax.jit(jax.grad(loss_of))
        .lower(
            jax.ShapeDtypeStruct((batch, 64), jnp.float32),
            jax.ShapeDtypeStruct((batch,), jnp.int32),
            jax.ShapeDtypeStruct((num_slices,), jnp.float32),
        )
        .compile()
    )
    assert compiled_loss.memory_analysis().temp_size_in_bytes < bound
