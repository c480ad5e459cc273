import numpy as np
import pytest

from mtdml_jax.config import CHOICES
from mtdml_jax.data.sampling import FREQUENCIES, count_groups, index_by_class, sample_rows


def labels_of(sizes):
    """Returns shuffled labels; class i has sizes[i] faces."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return np.random.default_rng(0).permutation(labels)


def batches_of(labels, batch_size, samples_per_class, steps, seed=3, sampling='class'):
    index = index_by_class(labels)
    shape = batch_size, samples_per_class, sampling
    return [sample_rows(index, *shape, seed=seed, step=step).numpy() for step in steps]


def assert_no_face_repeats_before_all_have_appeared(labels, rows):
    for label in np.unique(labels):
        drawn = rows[labels[rows] == label]
        size = np.sum(labels == label)
        for start in range(0, len(drawn), size):
            chunk = drawn[start : start + size]
            assert len(set(chunk)) == len(chunk), label


def test_index_lists_the_rows_of_each_class_in_order():
    index = index_by_class(np.array([4, 1, 4, 1, 1]))
    np.testing.assert_array_equal(index.rows, [1, 3, 4, 0, 2])
    np.testing.assert_array_equal(index.start, [0, 3])
    np.testing.assert_array_equal(index.size, [3, 2])


def test_few_classes_are_all_in_every_batch_with_shares_that_take_turns():
    labels = labels_of([5, 7, 9, 4, 6, 8, 11])
    counts = [np.bincount(labels[rows]) for rows in batches_of(labels, 16, 2, range(7))]
    for step, count in enumerate(counts):
        assert sorted(count) == [2, 2, 2, 2, 2, 3, 3], step
    # 7 batches of 16 draw 112 faces, which is 16 for each of 7 classes.
    np.testing.assert_array_equal(np.sum(counts, axis=0), np.full(7, 16))


def test_each_face_of_few_classes_appears_once_before_any_repeats():
    labels = labels_of([5, 7, 9, 4, 6, 8, 11])
    rows = np.concatenate(batches_of(labels, 16, 2, range(40)))
    assert_no_face_repeats_before_all_have_appeared(labels, rows)
    assert set(rows) == set(range(len(labels)))


@pytest.mark.parametrize(('num_classes', 'classes_per_batch'), [(10, 4), (9, 3), (5, 4), (11, 7)])
def test_of_many_classes_each_batch_holds_p_different_ones_with_k_faces(
    num_classes, classes_per_batch
):
    labels = labels_of([5 + number % 4 for number in range(num_classes)])
    for rows in batches_of(labels, 3 * classes_per_batch, 3, range(30)):
        present, counts = np.unique(labels[rows], return_counts=True)
        assert len(present) == classes_per_batch
        assert set(counts) == {3}


@pytest.mark.parametrize(('num_classes', 'classes_per_batch'), [(10, 4), (9, 3), (5, 4), (11, 7)])
def test_each_face_of_many_classes_appears_once_before_any_repeats(num_classes, classes_per_batch):
    labels = labels_of([5 + number % 4 for number in range(num_classes)])
    rows = np.concatenate(batches_of(labels, 2 * classes_per_batch, 2, range(60)))
    assert_no_face_repeats_before_all_have_appeared(labels, rows)
    assert set(rows) == set(range(len(labels)))
    visits = np.bincount(labels[rows]) // 2
    assert visits.max() - visits.min() <= 2


def test_a_class_smaller_than_its_share_repeats_its_faces_within_a_batch():
    labels = np.array([0, 0, 1, 1, 1, 1, 1, 1])
    (rows,) = batches_of(labels, 8, 2, [0])
    np.testing.assert_array_equal(np.bincount(rows[labels[rows] == 0]), [2, 2])


def test_batch_depends_on_seed_and_step_alone():
    labels = labels_of([20] * 7)
    forward = batches_of(labels, 14, 2, range(6))
    backward = batches_of(labels, 14, 2, reversed(range(6)))[::-1]
    np.testing.assert_array_equal(forward, backward)
    assert np.any(forward[0] != batches_of(labels, 14, 2, [0], seed=4)[0])
    assert np.any(forward[0] != forward[1])


def test_many_classes_need_a_batch_of_whole_groups():
    with pytest.raises(ValueError, match='expected samples_per_class to divide'):
        batches_of(labels_of([4] * 9), 16, 3, [0])


@pytest.mark.parametrize(
    ('sampling', 'expected'),
    # A round has 42 groups, in proportion to the sizes 64, 16, 4 or to their roots 8, 4, 2.
    [('instance', [32, 8, 2]), ('sqrt', [24, 12, 6])],
)
def test_groups_of_a_class_are_drawn_as_its_size_or_its_root_asks(sampling, expected):
    size = np.array([64, 16, 4])
    np.testing.assert_array_equal(count_groups(size, 2, sampling), expected)
    labels = labels_of(size)
    batches = batches_of(labels, 14, 2, range(6), sampling=sampling)
    rows = np.concatenate(batches)
    np.testing.assert_array_equal(np.bincount(labels[rows]), 2 * np.array(expected))
    assert_no_face_repeats_before_all_have_appeared(labels, rows)
    for batch in batches:
        assert all(np.bincount(labels[batch]) % 2 == 0)


@pytest.mark.parametrize('sampling', ['instance', 'sqrt'])
def test_each_face_of_uneven_groups_appears_once_before_any_repeats(sampling):
    # Rounds have 4, 2, 2 or 3, 3, 2 groups of 2 faces. They do not end where the faces of a class end.
    labels = labels_of([7, 5, 3])
    rows = np.concatenate(batches_of(labels, 6, 2, range(16), sampling=sampling))
    assert_no_face_repeats_before_all_have_appeared(labels, rows)
    assert set(rows) == set(range(15))


def test_rare_class_is_drawn_once_in_each_round_at_least():
    np.testing.assert_array_equal(count_groups(np.array([400, 2]), 8, 'instance'), [50, 1])


def test_round_that_fits_the_faces_shows_each_of_them_once():
    labels = labels_of([32, 8])
    rows = np.concatenate(batches_of(labels, 8, 4, range(10), sampling='instance'))
    for part in (rows[:40], rows[40:]):
        assert set(part) == set(range(40))
    assert not np.array_equal(rows[:40], rows[40:])
    assert len(np.unique(np.flatnonzero(labels[rows[:40]] == 1) // 8)) > 1


def test_config_offers_the_samplings_that_there_are():
    assert CHOICES['data.sampling'] == tuple(FREQUENCIES)
