"""Preparing reports leaks between splits, and counts that suggest another order of the labels."""

import numpy as np
import pytest
from face_trees import read_records, warnings_of, write_image
from small_data import write_csv

from mtdml_jax.data.findings import describe_counts
from mtdml_jax.data.sets.affectnet import NAMES, TRAIN, Affectnet
from mtdml_jax.host.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """Returns a folder with 5 train faces, of which 3 are also in test or validation by other names."""
    folder = tmp_path / 'faces'
    images = {
        'train/a/1.png': 10,
        'train/a/2.png': 20,
        'train/b/3.png': 30,
        'train/b/4.png': 40,
        'train/b/5.png': 50,
        'val/a/6.png': 60,
        'val/a/7.png': 10,
        'test/a/8.png': 30,
        'test/b/9.png': 40,
    }
    for name, value in images.items():
        write_image(folder / name, value)
    return folder


def test_images_that_train_shares_with_other_splits_are_counted_and_named(folder, caplog):
    found = read_records('folder', folder)
    assert len(found['train']) == 5
    assert warnings_of(caplog) == [
        'folder, split train: 3 of its images are in another split too, byte for byte: train/a/1.png, '
        'train/b/3.png, train/b/4.png; config.data.drop_leaks=True leaves them out'
    ]


@pytest.mark.parametrize('in_memory', [True, False])
def test_images_that_train_shares_are_left_out_of_it_alone(folder, caplog, in_memory):
    found = read_records('folder', folder, drop_leaks=True, in_memory=in_memory)
    assert set(found['train']) == {'train/a/2.png', 'train/b/5.png'}
    assert [len(found[split]) for split in ('validation', 'test')] == [2, 2]
    assert warnings_of(caplog)[0].endswith('train/b/4.png; left out')


def test_pixels_of_a_csv_file_leak_like_files(tmp_path, caplog):
    faces = {'Training': (1, 2, 3), 'PrivateTest': (3,)}
    rows = [(0, ' '.join([str(i)] * 2304), usage) for usage, x in faces.items() for i in x]
    write_csv(tmp_path / 'faces' / 'fer2013.csv', rows)
    found = read_records('fer2013', tmp_path / 'faces', drop_leaks=True)
    assert set(found['train']) == {'fer2013.csv:2', 'fer2013.csv:3'}
    assert 'fer2013, split train: 1 of its images are in another split' in '\n'.join(
        warnings_of(caplog)
    )


def test_train_split_of_another_name_is_the_one_that_loses_leaks(folder):
    found = read_records('folder', folder, drop_leaks=True, train_split='validation[:50%]')
    assert set(found['validation']) == {'val/a/6.png'}
    assert len(found['train']) == 5


def test_split_of_which_nothing_is_left_is_refused(folder):
    for name in ('train/a/2.png', 'train/b/5.png'):
        (folder / name).unlink()
    with pytest.raises(UserError, match='split train: none of its 3 images can be used'):
        read_records('folder', folder, drop_leaks=True)


def counts_of(codes_of_names):
    """Returns the counts by label if the codes have these names."""
    return [TRAIN[NAMES.index(name)] for name in codes_of_names]


ALPHABET = sorted(NAMES)


def test_published_numbers_of_affectnet_add_up():
    counts = {variant: Affectnet.COUNTS[variant]['train'] for variant in ('7', '8')}
    assert {variant: sum(x) for variant, x in counts.items()} == {'7': 283_901, '8': 287_651}


@pytest.mark.parametrize('variant', ['7', '8'])
def test_labels_in_the_order_of_the_alphabet_are_recognised_by_their_counts(variant):
    classes = int(variant)
    found = counts_of(ALPHABET)[:classes]
    expected, published = TRAIN[:classes], dict(zip(NAMES, TRAIN, strict=True))
    # Some images are missing, as in most copies of the data set.
    text = describe_counts(np.array(found) - 20, expected, NAMES[:classes], published)
    read_as = zip(NAMES[:classes], ALPHABET, strict=False)
    order = ', '.join(
        f'what is read as {name} is {other}' for name, other in read_as if name != other
    )
    assert text.endswith(f'The numbers fit labels in another order: {order}')


def test_missing_images_are_no_other_order():
    published = dict(zip(NAMES, TRAIN, strict=True))
    for lost in (1, 50, 1000):
        found = [number - lost for number in TRAIN]
        text = describe_counts(found, TRAIN, NAMES, published)
        assert 'expected 287,651 faces as published' in text
        assert 'another order' not in text
    assert describe_counts(TRAIN, TRAIN, NAMES, published) == ''
