"""Batch-hard mining against brute-force loops.

Most vectors have small whole numbers for entries: their distances are exact in float32, and full of
ties, so that the mined rows must be the loops' rows.
"""

import re

import chex
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from reference import batch_hard, batch_hard_within
from reference import mine as mine_by_loops

from mtdml_jax import Triplets, mine_batch_hard
from mtdml_jax.loss import tiles

mine = jax.jit(mine_batch_hard, static_argnames=('tile', 'mining'))


def random_batch(seed, batch=14, num_slices=2, dim=2):
    """A batch with uneven classes, a class of one member (3), duplicates and ties."""
    rng = np.random.default_rng(seed)
    slices = rng.integers(-2, 3, size=(batch, num_slices, dim)).astype(np.float32)
    slices[batch // 2] = slices[0]
    labels = rng.permutation(np.r_[3, rng.choice(3, size=batch - 1, p=[0.6, 0.3, 0.1])])
    return slices, labels.astype(np.int32)


def assert_finds(triplets, expected):
    """`expected`: per slice and anchor (positive, negative), or None."""
    valid = [[pair is not None for pair in pairs] for pairs in expected]
    np.testing.assert_array_equal(triplets.valid, valid)
    for s, a in np.argwhere(valid):
        found = triplets.positive[s, a], triplets.negative[s, a]
        assert tuple(map(int, found)) == expected[s][a], f'slice {s}, anchor {a}'


def per_slice(slices, *arguments):
    return [batch_hard_within(slices[:, s], *arguments) for s in range(slices.shape[1])]


@pytest.mark.parametrize('seed', range(10))
def test_random_batches_match_loops(seed):
    slices, labels = random_batch(seed)
    assert_finds(mine(slices, labels), per_slice(slices, labels))


@pytest.mark.parametrize('batch', [32, 33, 70])
def test_batches_of_one_block_of_rows_and_of_several_match_loops(batch):
    # Ties within and across blocks; the last one is full or has one row or six.
    slices, labels = random_batch(0, batch)
    assert_finds(mine(slices, labels), per_slice(slices, labels))


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    slices=arrays(np.float32, (9, 2, 2), elements=st.sampled_from([-2.0, -1.0, 0.0, 1.0, 2.0])),
    labels=arrays(np.int32, 9, elements=st.integers(0, 3)),
    mask=arrays(bool, 9),
)
def test_any_batch_matches_loops(slices, labels, mask):
    assert_finds(mine(slices, labels, mask=mask), per_slice(slices, labels, mask))


def test_float_vectors_of_uneven_length_match_loops():
    # Cosine similarity would mine other rows: the lengths differ by a factor of 10.
    rng = np.random.default_rng(0)
    slices = rng.normal(size=(14, 2, 2)) * rng.uniform(0.3, 3.0, size=(14, 2, 1))
    _, labels = random_batch(0)
    expected = per_slice(slices, labels)
    directions = slices / np.linalg.norm(slices, axis=-1, keepdims=True)
    assert per_slice(directions, labels) != expected
    assert_finds(mine(slices.astype(np.float32), labels), expected)


def test_triplets_are_rows_of_int32():
    slices, labels = random_batch(0)
    triplets = mine(slices, labels)
    assert isinstance(triplets, Triplets)
    for field, dtype in zip(triplets, (np.int32, np.int32, bool), strict=True):
        assert field.shape == (2, 14)
        assert field.dtype == dtype


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize(
    ('mining', 'quantile'),
    [
        ('semihard', 0.0),
        ('quantile', 0.0),
        ('quantile', 0.25),
        ('quantile', 0.7),
        ('quantile', 1.0),
    ],
)
def test_softer_minings_match_loops(mining, quantile, seed):
    slices, labels = random_batch(seed)
    mask = np.arange(14) != 5
    found = mine(slices, labels, mask=mask, mining=mining, quantile=quantile)
    for s in range(2):
        expected = mine_by_loops(slices[:, s], labels, mask, mining, quantile)
        rows = np.flatnonzero(found.valid[s])
        triplets = zip(rows, found.positive[s, rows], found.negative[s, rows], strict=True)
        assert [tuple(map(int, triplet)) for triplet in triplets] == expected


def test_quantile_0_is_batch_hard_and_1_the_easiest_pair():
    slices, labels = random_batch(3)
    hard, found = mine(slices, labels), mine(slices, labels, mining='quantile', quantile=0.0)
    np.testing.assert_array_equal(found.valid, hard.valid)
    for rows, expected in zip(found[:2], hard[:2], strict=True):
        np.testing.assert_array_equal(rows[hard.valid], expected[hard.valid])
    # Positives of row 0 at 1, 2, 3, negatives at 4, 5, 6.
    line = np.float32([0, 3, 1, 2, 5, 6, 4])[:, None]
    ranked = [
        mine(line, np.r_[0, 0, 0, 0, 1, 1, 1], mining='quantile', quantile=q) for q in (0, 0.5, 1)
    ]
    assert [int(t.positive[0]) for t in ranked] == [1, 3, 2]
    assert [int(t.negative[0]) for t in ranked] == [6, 4, 5]


def test_anchor_without_negative_beyond_its_positive_has_no_semihard_triplet():
    # Row 0: positive at 4, negatives at 2 and 4, neither beyond it. Row 1: positive at 4, one at 6.
    line = np.float32([0, 4, 2, -2, -4])[:, None]
    triplets = mine(line, np.array([0, 0, 1, 1, 1]), mining='semihard')
    np.testing.assert_array_equal(triplets.valid[:2], [False, True])
    assert int(triplets.negative[1]) == 3
    assert bool(mine(line, np.array([0, 0, 1, 1, 1])).valid[0])


def test_nearly_collapsed_float32_vectors_match_loops():
    # Spread 1e-4 around a unit vector: |g|^2 - 2ag alone would lose every digit of the differences.
    rng = np.random.default_rng(0)
    vectors = np.float32([0.6, 0.8, 0, 0] + 1e-4 * rng.normal(size=(60, 4)))
    labels = rng.choice(4, size=60)
    distances = np.sum(vectors**2, axis=1) - 2 * vectors @ vectors.T
    negatives = np.argmin(np.where(labels[:, None] != labels, distances, np.inf), axis=1)
    expected = batch_hard_within(vectors, labels)
    assert np.mean([n != pair[1] for n, pair in zip(negatives, expected, strict=True)]) > 0.5
    assert_finds(mine(vectors[:, None], labels), [expected])


def mine_line(positions, labels, mask=(True,) * 5):
    """Mines five points on a line."""
    return mine(np.float32(positions)[:, None], np.array(labels), mask=np.array(mask))


def test_ties_go_to_the_lowest_row():
    # Rows 1 and 3 are equally far positives of row 0, rows 2 and 4 equally near negatives.
    triplets = mine_line([0, 2, 1, -2, -1], [0, 0, 1, 0, 1])
    assert (int(triplets.positive[0]), int(triplets.negative[0])) == (1, 2)


def test_every_slice_is_mined_by_itself():
    # Points on two lines in the opposite order; their sum of distances would tie everywhere.
    positions = np.array([0.0, 1.0, 3.0, -5.0, -9.0])
    slices = np.stack([positions, [0.0, 3.0, 1.0, -9.0, -5.0]], axis=1)[..., None]
    triplets = mine_batch_hard(jnp.asarray(slices, jnp.float32), jnp.array([0, 0, 0, 1, 1]))
    np.testing.assert_array_equal(triplets.positive[:, 0], [2, 1])
    np.testing.assert_array_equal(triplets.negative[:, 0], [3, 4])


def test_slices_mined_together_equal_each_mined_alone():
    slices, labels = random_batch(1)
    together = mine(slices, labels)
    for s in range(2):
        chex.assert_trees_all_equal(
            jax.tree.map(lambda x, s=s: x[s], together), mine(slices[:, s], labels)
        )


def test_unsliced_input_is_one_slice_without_its_axis():
    slices, labels = random_batch(2)
    flat, sliced = mine(slices[:, 0], labels), mine(slices[:, :1], labels)
    assert flat.positive.shape == (14,)
    chex.assert_trees_all_equal(flat, jax.tree.map(lambda x: x[0], sliced))


@pytest.mark.parametrize(
    ('batch', 'labels'), [(1, [0]), (4, [2, 2, 2, 2]), (4, [0, 1, 2, 3])], ids=str
)
def test_batch_without_triplets_has_no_valid_anchor_but_rows_in_range(batch, labels):
    triplets = mine(np.ones((batch, 2, 3), np.float32), np.array(labels))
    assert not np.any(triplets.valid)
    for rows in triplets[:2]:
        assert np.all((np.asarray(rows) >= 0) & (np.asarray(rows) < batch))


def test_only_member_of_its_class_is_invalid_but_a_negative_of_others():
    triplets = mine_line([0, 1, 0.5, 9, 8], [0, 0, 1, 2, 2])
    np.testing.assert_array_equal(triplets.valid, [True, True, False, True, True])
    np.testing.assert_array_equal(triplets.negative[:2], [2, 2])
    assert 0 <= triplets.positive[2] < 5


def test_masked_rows_are_neither_anchors_nor_chosen():
    # Unmasked, row 3 is the farthest positive of rows 0 and 1, and row 4 their nearest negative.
    positions, labels = [0, 1, 4, -9, 0.5], [0, 0, 1, 0, 1]
    free, masked = mine_line(positions, labels), mine_line(positions, labels, np.arange(5) < 3)
    assert (int(free.positive[0]), int(free.negative[0])) == (3, 4)
    assert (int(masked.positive[0]), int(masked.negative[0])) == (1, 2)
    # Row 2 lost its only positive.
    np.testing.assert_array_equal(masked.valid, [True, True, False, False, False])


def random_gallery(seed):
    slices, labels = random_batch(seed)
    gallery, gallery_labels = random_batch(seed + 100, batch=20)
    return slices, labels, gallery, gallery_labels


def against_gallery(slices, labels, gallery, gallery_labels, rows, mask, gallery_mask):
    return [
        batch_hard(slices[:, s], labels, gallery[:, s], gallery_labels, rows, mask, gallery_mask)
        for s in range(slices.shape[1])
    ]


@pytest.mark.parametrize('seed', range(4))
def test_gallery_with_masks_matches_loops(seed):
    slices, labels, gallery, gallery_labels = batch = random_gallery(seed)
    rng = np.random.default_rng(seed)
    mask, gallery_mask = rng.random(14) < 0.8, rng.random(20) < 0.7
    found = mine(
        slices,
        labels,
        gallery=gallery,
        gallery_labels=gallery_labels,
        mask=mask,
        gallery_mask=gallery_mask,
    )
    assert_finds(found, against_gallery(*batch, [-1] * 14, mask, gallery_mask))


def test_gallery_row_that_holds_the_anchor_is_not_its_positive():
    # The anchors are gallery rows 2 and 0; only `rows` says so. All distances tie at 0.
    gallery, gallery_labels = jnp.zeros((4, 1)), jnp.array([5, 6, 5, 6])
    anchors, labels = jnp.zeros((2, 1)), jnp.array([5, 5])
    arguments = {'gallery': gallery, 'gallery_labels': gallery_labels}
    unaware = mine(anchors, labels, **arguments)
    aware = mine(anchors, labels, rows=jnp.array([2, 0]), **arguments)
    np.testing.assert_array_equal(unaware.positive, [0, 0])
    np.testing.assert_array_equal(aware.positive, [0, 2])
    np.testing.assert_array_equal(aware.negative, [1, 1])


def test_part_of_a_batch_against_all_of_it_equals_the_whole_mined_at_once():
    slices, labels = random_batch(5)
    rows = np.arange(4, 9)
    part = mine(slices[rows], labels[rows], gallery=slices, gallery_labels=labels, rows=rows)
    whole = mine(slices, labels)
    chex.assert_trees_all_equal(part, jax.tree.map(lambda x: x[:, rows], whole))


@pytest.mark.parametrize('tile', [4, 7, 50])
def test_tile_does_not_change_the_triplets(tile):
    # 14 anchors: 4 does not divide them, 7 does, 50 exceeds them.
    slices, labels = random_batch(6)
    chex.assert_trees_all_equal(mine(slices, labels, tile=tile), mine(slices, labels))


def test_tile_that_depends_on_the_device_does_not_change_the_triplets(monkeypatch):
    batches = [random_batch(seed) for seed in (10, 11)]
    whole = [mine(*batch, tile=14) for batch in batches]
    monkeypatch.setattr(tiles, '_TILE_ENTRIES', {'cpu': 4 * 14, 'default': 7 * 14})
    monkeypatch.setattr(tiles, '_TILE_ANCHORS', 1)
    tiled = jax.vmap(mine_batch_hard)(*map(np.stack, zip(*batches, strict=True)))
    for number, expected in enumerate(whole):
        chex.assert_trees_all_equal(jax.tree.map(lambda x, n=number: x[n], tiled), expected)


@pytest.mark.parametrize(
    ('platform', 'rows', 'tile'),
    [('cpu', 1024, 512), ('cpu', 2**15, 64), ('cuda', 1024, 1024), ('tpu', 2**15, 512)],
)
def test_tile_is_that_of_the_device_which_the_program_is_for(platform, rows, tile):
    shapes = jax.ShapeDtypeStruct((rows, 2, 4), np.float32), jax.ShapeDtypeStruct((rows,), np.int32)
    program = jax.export.export(jax.jit(mine_batch_hard), platforms=[platform])(*shapes)
    products = re.findall(r'dot_general.*-> tensor<(\w+)xf32>', program.mlir_module())
    assert products == [f'{rows}x{tile}']


@pytest.mark.parametrize(('dtype', 'far'), [(jnp.bfloat16, 16.0), (jnp.float16, 300.0)])
def test_low_precision_vectors_are_compared_in_float32(dtype, far):
    # Rows 1 and 2 would tie: in bfloat16 256 + 1 is 256, in float16 300^2 is infinite.
    vectors = jnp.array([[0, 0], [far, 0], [far, 1], [far, 2], [far, 0]], dtype)
    triplets = mine(vectors, np.array([0, 0, 0, 1, 1]))
    assert (int(triplets.positive[0]), int(triplets.negative[0])) == (2, 4)


def test_products_are_exact_on_devices_that_round_by_default():
    # The default precision on a TPU multiplies in bfloat16 and would choose another row.
    assert 'HIGHEST' in str(jax.make_jaxpr(mine_batch_hard)(*random_batch(8)))


class EveryTransformation(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
    def test_finds_the_same_triplets(self):
        slices, labels = random_batch(9)
        mask = np.arange(14) != 3
        found = self.variant(lambda x, y, m: mine_batch_hard(x, y, mask=m, tile=4))(
            slices, labels, mask
        )
        assert_finds(found, per_slice(slices, labels, mask))


def test_batches_mined_under_vmap_equal_each_alone():
    batches = [random_batch(seed) for seed in (10, 11, 12)]
    together = jax.vmap(mine)(*map(np.stack, zip(*batches, strict=True)))
    for number, batch in enumerate(batches):
        chex.assert_trees_all_equal(
            jax.tree.map(lambda x, number=number: x[number], together), mine(*batch)
        )


def test_changing_values_are_traced_once():
    chex.clear_trace_counter()
    traced_once = jax.jit(chex.assert_max_traces(mine_batch_hard, n=1))
    for seed in range(3):
        traced_once(*random_batch(seed))


@pytest.mark.parametrize(
    ('changed', 'message'),
    [
        ({'mining': 'all'}, r"mining to be one of \('hard', 'semihard', 'quantile'\), found 'all'"),
        ({'mining': 'quantile', 'quantile': 1.5}, 'quantile from 0 to 1, found 1.5'),
        ({'slices': np.ones((4, 2, 3, 1))}, r'\[B, S, D\] or \[B, D\].*\(4, 2, 3, 1\) and \(4,\)'),
        ({'labels': np.zeros(3, int)}, r'labels of shape \[B\], found \(4, 2, 3\) and \(3,\)'),
        ({'labels': np.zeros((4, 1), int)}, r'labels of shape \[B\].*\(4, 1\)'),
        ({'mask': np.ones((4, 1), bool)}, r'mask of shape \(4,\), found \(4, 1\)'),
        ({'rows': np.arange(3)}, r'rows of shape \(4,\), found \(3,\)'),
        (
            {
                'gallery': np.ones((5, 2, 3)),
                'gallery_labels': np.zeros(5, int),
                'gallery_mask': np.ones(4, bool),
            },
            r'gallery_mask of shape \(5,\), found \(4,\)',
        ),
        ({'gallery_labels': np.zeros(4, int)}, 'gallery_labels.* without a gallery'),
        ({'gallery': np.ones((5, 2, 3))}, r'gallery_labels of shape \(5,\).*found None'),
        (
            {'gallery': np.ones((5, 2, 3)), 'gallery_labels': np.zeros(4, int)},
            r'gallery_labels of shape \(5,\).*found \(4,\)',
        ),
        (
            {'gallery': np.ones((5, 2, 4)), 'gallery_labels': np.zeros(5, int)},
            r'like the anchors \(2, 3\), found \(2, 4\)',
        ),
    ],
)
def test_shapes_that_do_not_fit_name_expected_and_found(changed, message):
    arguments = {'slices': np.ones((4, 2, 3)), 'labels': np.zeros(4, int)} | changed
    with pytest.raises(ValueError, match=message):
        mine_batch_hard(**arguments)
