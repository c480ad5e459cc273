import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from face_trees import data_config, read_records, write_image
from small_data import csv_rows, write_csv

from mtdml_jax.data.prepare import prepare
from mtdml_jax.data.sets.fer2013 import Fer2013, read_rows
from mtdml_jax.host.errors import UserError

REAL = Path(__file__).parents[3] / 'shared' / 'data' / 'fer2013.csv.gz'
GOOD = ' '.join(['7'] * 2304)


@pytest.mark.parametrize(
    ('name', 'header'),
    [
        ('fer2013.csv', 'emotion,pixels,Usage'),
        ('fer2013.csv.gz', 'emotion,pixels,Usage'),
        ('icml_face_data.csv', 'emotion, Usage, pixels'),
    ],
)
def test_builder_reads_each_layout_that_users_have(tmp_path, name, header):
    rows = csv_rows({'Training': 2, 'PublicTest': 1, 'PrivateTest': 1})
    if header.endswith('pixels'):
        rows = [(emotion, usage, pixels) for emotion, pixels, usage in rows]
    write_csv(tmp_path / 'data' / name, rows, header)
    builder = prepare(data_config('fer2013', tmp_path / 'data'))
    sizes = {split: info.num_examples for split, info in builder.info.splits.items()}
    assert sizes == {'train': 14, 'validation': 7, 'test': 7}
    examples = {
        example['file_name'].decode(): example
        for example in tfds.as_numpy(builder.as_dataset('train'))
    }
    first = examples[f'{name}:2']
    pixels = rows[0][2] if header.endswith('pixels') else rows[0][1]
    np.testing.assert_array_equal(first['image'].ravel(), [int(value) for value in pixels.split()])
    assert first['image'].shape == (48, 48, 1)
    assert sorted(example['label'] for example in examples.values()) == sorted([*range(7)] * 2)


def test_class_folders_go_by_names_or_codes(tmp_path):
    folder = tmp_path / 'data'
    write_image(folder / 'train' / 'happy' / 'a.jpg', size=(48, 48), mode='L')
    write_image(folder / 'test' / '6' / 'b.jpg', size=(48, 48), mode='L')
    assert read_records('fer2013', folder) == {
        'train': {'train/happy/a.jpg': ('Happy', '')},
        'test': {'test/6/b.jpg': ('Neutral', '')},
    }


def test_file_without_private_rows_lacks_the_test_split(tmp_path):
    write_csv(tmp_path / 'data' / 'fer2013.csv', csv_rows({'Training': 1, 'PublicTest': 1}))
    builder = prepare(data_config('fer2013', tmp_path / 'data'))
    assert sorted(builder.info.splits) == ['train', 'validation']


@pytest.mark.parametrize(
    ('row', 'message'),
    [
        ((3, ' '.join(['7'] * 2303), 'Training'), 'expected 2304 pixels, found 2303'),
        ((3, GOOD[:-1] + '300', 'Training'), 'expected pixel values from 0 to 255, found 300'),
        ((3, GOOD[:-1] + '-1', 'Training'), 'expected pixel values from 0 to 255, found -1'),
        (
            (3, GOOD[:-1] + '9' * 30, 'Training'),
            'expected pixel values from 0 to 255, found one beyond 64',
        ),
        ((3, GOOD[:-1] + 'x', 'Training'), "invalid literal for int.*'x'"),
        ((9, GOOD, 'Training'), "expected a label from 0 to 6, found '9'"),
        ((3, GOOD, 'Validation'), "expected a usage of .*, found 'Validation'"),
        ((3, GOOD), 'too few columns'),
    ],
)
def test_wrong_row_is_named_with_its_file(tmp_path, row, message):
    path = write_csv(tmp_path / 'fer2013.csv', [(0, GOOD, 'Training'), row])
    with pytest.raises(UserError, match=f'fer2013.csv: row 3: {message}'):
        list(read_rows(path))


def test_header_without_a_column_is_named(tmp_path):
    path = write_csv(tmp_path / 'fer2013.csv', [], header='emotion,pixels')
    with pytest.raises(UserError, match='row 1: the header lacks Usage; it has emotion, pixels'):
        list(read_rows(path))


def test_missing_file_says_where_and_what_was_looked_for(tmp_path):
    with pytest.raises(UserError) as error:
        Fer2013.find_sources(tmp_path)
    for part in (str(tmp_path), 'fer2013.csv', 'fer2013.csv.gz', 'icml_face_data.csv', 'Kaggle'):
        assert part in str(error.value)


@pytest.mark.skipif(not REAL.is_file(), reason=f'the real faces are not at {os.fspath(REAL)}')
def test_real_file_starts_with_a_face_of_the_training_split():
    split, number, label, pixels = next(read_rows(REAL))
    assert (split, number) == ('train', 2)
    assert label in range(7)
    assert pixels.std() > 10
