"""Drawn faces are reproducible and balanced, show their expressions, and no person is in two splits."""

import collections
import itertools

import numpy as np
import pytest
import tensorflow_datasets as tfds
from sklearn.neighbors import KNeighborsClassifier

from mtdml_jax.data import face_drawing
from mtdml_jax.data.face_drawing import EXPRESSIONS, draw_face
from mtdml_jax.data.sets.synthetic_faces import SyntheticFaces

NAMES = ['angry', 'disgust', 'fear', 'happy', 'sad', 'surprise', 'neutral']
PERSONS = {
    'train': 110,
    'validation': 3,
    'test': 30,
}  # The data set of these tests has fewer persons.


@pytest.fixture(scope='module')
def changes():
    """Returns expression -> mean change from neutral over 60 persons in picture 0, float [48, 48]."""
    means = {
        name: np.mean([draw_face(0, person, name, 0) for person in range(60)], axis=0)
        for name in EXPRESSIONS
    }
    return {name: mean - means['neutral'] for name, mean in means.items()}


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    """Prepares the data set with fewer persons; returns split -> records."""
    with pytest.MonkeyPatch.context() as patch:
        persons = {name: SyntheticFaces.IDENTITIES[name][:count] for name, count in PERSONS.items()}
        patch.setattr(SyntheticFaces, 'IDENTITIES', persons)
        builder = SyntheticFaces(data_dir=tmp_path_factory.mktemp('tfds'))
        builder.download_and_prepare()
    return {name: list(tfds.as_numpy(builder.as_dataset(split=name))) for name in PERSONS}


def darkest_row(change, rows, columns):
    """Returns the row in the range `rows` where `columns` darkened most."""
    return rows.start + int(change[rows, columns].mean(axis=1).argmin())


def test_same_arguments_give_the_same_bits_in_any_order():
    pictures = list(itertools.product([3], range(3), NAMES[:2], range(2)))
    first = {picture: draw_face(*picture) for picture in pictures}
    face_drawing._person.cache_clear()
    for picture in reversed(pictures):
        np.testing.assert_array_equal(draw_face(*picture), first[picture])
        assert first[picture].dtype == np.uint8
        assert first[picture].shape == (48, 48)


@pytest.mark.parametrize(
    'other', [(1, 0, 'sad', 0), (0, 1, 'sad', 0), (0, 0, 'fear', 0), (0, 0, 'sad', 1)]
)
def test_every_argument_matters(other):
    assert np.mean(draw_face(0, 0, 'sad', 0) != draw_face(*other)) > 0.02


def test_expression_changes_the_face_but_not_the_picture_around_it():
    neutral = draw_face(0, 7, 'neutral', 0).astype(int)
    for name in NAMES[:-1]:
        change = np.abs(draw_face(0, 7, name, 0).astype(int) - neutral)
        assert change[:, :3].max() == 0
        assert change[12:42, 12:36].mean() > 2


def test_corners_of_a_smile_lie_higher_than_its_middle_and_those_of_a_frown_lower(changes):
    mouth, middle = slice(31, 44), slice(22, 26)
    for corner in (slice(14, 17), slice(31, 34)):
        smile, frown = (
            darkest_row(changes[name], mouth, corner) - darkest_row(changes[name], mouth, middle)
            for name in ('happy', 'sad')
        )
        assert smile < 0 < frown


def test_open_jaw_makes_the_mouth_dark(changes):
    mouth = {name: change[32:46, 16:32] for name, change in changes.items()}
    darkened = {name: np.sum(change < -15) for name, change in mouth.items()}
    assert darkened['surprise'] > darkened['fear'] > darkened['angry']
    assert mouth['surprise'].min() < 2 * mouth['fear'].min()


def test_brows_come_down_in_anger_and_go_up_in_surprise(changes):
    brows = slice(8, 20)
    for inner in (slice(17, 20), slice(28, 31)):
        angry, surprise = (
            darkest_row(changes[name], brows, inner) for name in ('angry', 'surprise')
        )
        assert angry > surprise + 3


def test_unknown_expression_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"expected an expression of \['angry'.*found 'bored'"):
        draw_face(0, 0, 'bored', 0)


def test_negative_number_is_refused():
    with pytest.raises(ValueError, match='non-negative'):
        draw_face(0, 0, 'sad', -1)


def test_no_person_is_in_two_splits():
    persons = [set(numbers) for numbers in SyntheticFaces.IDENTITIES.values()]
    assert len(set.union(*persons)) == sum(map(len, persons))


def test_classes_are_balanced_and_every_person_shows_every_expression(prepared):
    for split, records in prepared.items():
        shown = collections.Counter((record['subject'], record['label']) for record in records)
        assert len(shown) == 7 * PERSONS[split]
        assert set(shown.values()) == {2}


def test_record_holds_the_face_that_its_file_name_tells(prepared):
    record = prepared['test'][0]
    split, name = record['file_name'].decode().removesuffix('.png').split('/')
    subject, expression, picture = name.split('_')
    face = draw_face(SyntheticFaces.SEED, int(subject[2:]), expression, int(picture))
    np.testing.assert_array_equal(record['image'], face[..., np.newaxis])
    assert split == 'test'
    assert record['subject'].decode() == subject
    assert NAMES[record['label']] == expression


def test_features_name_the_seven_expressions_in_order(tmp_path):
    features = SyntheticFaces(data_dir=tmp_path).info.features
    assert features['label'].names == NAMES == list(EXPRESSIONS)
    assert features['image'].shape == (None, None, 1)
    assert set(features) == {'image', 'label', 'subject', 'file_name'}


def test_nearest_neighbours_on_raw_pixels_are_better_than_chance_but_stay_under_60_percent(
    prepared,
):
    pixels, labels = {}, {}
    for split, records in prepared.items():
        pixels[split] = np.stack([record['image'].ravel() for record in records]) / 255
        labels[split] = np.array([record['label'] for record in records])
    classifier = KNeighborsClassifier(n_neighbors=5).fit(pixels['train'], labels['train'])
    accuracy = classifier.score(pixels['test'], labels['test'])
    assert 1 / 7 + 0.05 < accuracy < 0.6
