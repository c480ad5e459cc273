import numpy as np
import pytest
import tensorflow_datasets as tfds
from sklearn import datasets

from mtdml_jax.data.sets.digits import Digits


@pytest.fixture(scope='module')
def records(tmp_path_factory):
    builder = Digits(data_dir=tmp_path_factory.mktemp('digits'))
    builder.download_and_prepare()
    splits = ('train', 'validation', 'test')
    return {name: list(tfds.as_numpy(builder.as_dataset(name))) for name in splits}


def test_each_digit_of_scikit_learn_is_in_one_split_with_its_label(records):
    images, labels = datasets.load_digits(return_X_y=True)
    names = [record['file_name'].decode() for split in records.values() for record in split]
    assert sorted(names) == [f'digit{row:04d}' for row in range(1797)]
    for record in records['test'][:20]:
        row = int(record['file_name'].decode().removeprefix('digit'))
        assert record['label'] == labels[row]
        pixels = images[row].reshape(8, 8, 1) * 255 / 16
        np.testing.assert_allclose(record['image'], pixels, atol=0.5)


@pytest.mark.parametrize(('split', 'share'), [('train', 0.6), ('validation', 0.2), ('test', 0.2)])
def test_splits_have_their_share_of_each_digit(records, split, share):
    _, labels = datasets.load_digits(return_X_y=True)
    found = np.bincount([record['label'] for record in records[split]])
    np.testing.assert_allclose(found, share * np.bincount(labels), atol=1)
