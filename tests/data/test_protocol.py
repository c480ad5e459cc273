import numpy as np
import pytest
from face_trees import data_config, write_image
from small_data import split_of

from mtdml_jax.data.protocol import (
    assign_folds,
    count_folds,
    find_validation,
    has_validation,
    load_protocol_split,
)
from mtdml_jax.host.errors import UserError

SUBJECTS = ['S9', 'S1', 'S10', 'S2', 'S1', 'S9', 'S3', 'S10']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Returns a folder with 6 subjects, who have 2 faces of each of 3 classes."""
    folder = tmp_path_factory.mktemp('protocol') / 'faces'
    for subject in range(6):
        for name in 'abc':
            for take in range(2):
                write_image(folder / name / f'S{subject}_{take}.png', 40 * subject)
    return folder


def subjects_of(split):
    return sorted(set(split.subjects))


def folds_config(folder, **options):
    return data_config('folder', folder, subject_pattern=r'S\d+', **options)


def test_folds_take_turns_over_the_sorted_subjects():
    split = split_of([b''] * 8, [0] * 8, subjects=SUBJECTS)
    # The subjects sorted as text are S1, S10, S2, S3, S9. Fold i has ids[i::2].
    np.testing.assert_array_equal(assign_folds(split, 2), [0, 0, 1, 0, 0, 0, 1, 1])
    np.testing.assert_array_equal(assign_folds(split, -1), [4, 0, 1, 2, 0, 4, 3, 1])


def test_folds_without_subjects_share_out_each_class():
    names = [f'face{row}' for row in (5, 4, 3, 2, 1, 0)]
    split = split_of([b''] * 6, [0, 1, 0, 1, 0, 1], file_names=names)
    # The order by (class, name) is: rows 4, 2, 0, then 5, 3, 1.
    np.testing.assert_array_equal(assign_folds(split, 3), [2, 2, 1, 1, 0, 0])


@pytest.mark.parametrize(
    ('subjects', 'folds', 'message'),
    [
        (['a', ''], 2, 'the subject of 1 faces is unknown'),
        (['', ''], -1, 'subjects of this data set are not known'),
        (['a', 'b'], 3, r'2 to 2 \(the subjects\), found 3'),
        (['', ''], 3, r'2 to 2 \(the faces\), found 3'),
        (['a', 'b'], 1, 'found 1'),
    ],
)
def test_folds_that_cannot_be_are_refused(subjects, folds, message):
    with pytest.raises(UserError, match=message):
        assign_folds(split_of([b''] * 2, [0, 1], subjects=subjects), folds)


def test_parts_of_all_folds_are_disjoint_by_subject_and_test_everyone_once(folder):
    tested = []
    for fold in range(3):
        data = folds_config(folder, folds=3, fold=fold, validation_share=0.25)
        parts = [load_protocol_split(data, name) for name in ('train', 'validation', 'test')]
        everyone = sorted(subject for part in parts for subject in subjects_of(part))
        assert everyone == [f'S{i}' for i in range(6)]
        assert [len(subjects_of(part)) for part in parts] == [3, 1, 2]
        assert [part.name for part in parts] == ['train', 'validation', 'test']
        tested += parts[2].file_names
    assert len(tested) == len(set(tested)) == 36


def test_fold_that_does_not_exist_is_refused(folder):
    with pytest.raises(UserError, match='config.data.fold: expected 0 to 5, found 6'):
        load_protocol_split(folds_config(folder, folds=-1, fold=6), 'test')


def test_number_of_folds_is_that_of_subjects_when_each_is_left_out(folder):
    assert count_folds(folds_config(folder, folds=-1)) == 6
    assert count_folds(folds_config(folder, folds=4)) == 4
    with pytest.raises(UserError, match='config.data.folds: expected a number of folds'):
        count_folds(folds_config(folder))


def test_validation_share_is_cut_from_train_by_subject(folder):
    data = folds_config(folder, validation_share=0.5)
    train, validation = load_protocol_split(data, 'train'), load_protocol_split(data, 'validation')
    assert subjects_of(train) == ['S0', 'S2', 'S4']
    assert subjects_of(validation) == ['S1', 'S3', 'S5']
    assert has_validation(data)


def test_validation_share_without_subjects_keeps_the_classes_proportions():
    labels = np.repeat([0, 1, 2], [40, 10, 20])
    cut = find_validation(split_of([b''] * 70, labels), 0.1)
    np.testing.assert_array_equal(np.bincount(labels[cut]), [4, 1, 2])


@pytest.mark.parametrize(('people', 'cut'), [('abcd', 'd'), ('ab', 'b')])
def test_validation_share_of_few_subjects_is_one_of_them(people, cut):
    split = split_of([b''] * 8, [0] * 8, subjects=list(people) * (8 // len(people)))
    found = find_validation(split, 0.1)
    assert {x for x, is_cut in zip(split.subjects, found, strict=True) if is_cut} == {cut}
    assert found.sum() == 8 // len(people)


def test_validation_share_of_a_single_subject_is_refused():
    split = split_of([b''] * 3, [0, 1, 2], subjects=['a'] * 3)
    with pytest.raises(UserError, match='validation_share: the split .* has only one subject,'):
        find_validation(split, 0.1)


def test_folds_without_a_share_have_no_validation(folder):
    data = folds_config(folder, folds=3)
    assert not has_validation(data)
    with pytest.raises(UserError, match='only with config.data.validation_share'):
        load_protocol_split(data, 'validation')


def test_held_out_classes_are_all_that_is_tested_and_nothing_that_training_sees(folder):
    data = folds_config(folder, heldout_classes=('b',), validation_share=0.5)
    train, validation, test = (
        load_protocol_split(data, x) for x in ('train', 'validation', 'test')
    )
    assert [sorted(set(part.labels)) for part in (train, validation, test)] == [[0, 2], [0, 2], [1]]
    assert [len(part.labels) for part in (train, validation, test)] == [12, 12, 12]
    assert train.class_names == test.class_names == ['a', 'b', 'c']
    with pytest.raises(UserError, match='expected names of a, b, c, found d'):
        load_protocol_split(data_config('folder', folder, heldout_classes=('d',)), 'train')


def test_part_that_the_set_lacks_is_named(folder):
    with pytest.raises(UserError, match="folder has no split 'test'; it has train; cross-validate"):
        load_protocol_split(data_config('folder', folder), 'test')
