import numpy as np
import pytest
from face_trees import (
    data_config,
    read_records,
    warnings_of,
    write_corrupt,
    write_image,
    write_jaffe,
)

from mtdml_jax.data.pipeline import eval_batches, load_split
from mtdml_jax.host.errors import UserError


@pytest.fixture
def folder(tmp_path):
    return tmp_path / 'jaffe'


def test_names_in_any_folder_give_class_and_subject(folder):
    write_image(folder / 'KA.AN1.39.tiff', mode='L')
    write_image(folder / 'images' / 'YM.SU3.60.tiff', mode='L')
    write_image(folder / 'images' / '._YM.SU3.60.tiff', mode='L')
    assert read_records('jaffe', folder) == {
        'train': {
            'KA.AN1.39.tiff': ('Anger', 'KA'),
            'images/YM.SU3.60.tiff': ('Surprise', 'YM'),
        }
    }


def test_tiff_files_reach_the_batches(folder):
    write_jaffe(folder)
    data = data_config('jaffe', folder, image_size=8, mean=(0,), std=(1,))
    split = load_split(data, 'train')
    (batch,) = eval_batches(split, data, 21)
    grey = [30 * label / 255 for label in split.labels]
    np.testing.assert_allclose(batch['image'][:, 0, 0, 0], grey, atol=1e-6)


def test_corrupt_image_is_left_out_and_named_with_the_counts(folder, caplog):
    write_image(folder / 'KA.AN1.39.tiff', mode='L')
    write_corrupt(folder / 'KA.AN2.40.tiff')
    assert list(read_records('jaffe', folder)['train']) == ['KA.AN1.39.tiff']
    _, unusable, counts = warnings_of(caplog)
    assert '1 of 2 images are missing or cannot be decoded: KA.AN2.40.tiff' in unusable
    assert 'jaffe, split train: expected 213 faces as published, found 1' in counts


@pytest.mark.parametrize('name', ['KA.CO1.39.tiff', 'KA.AN.tiff', 'other.tif'])
def test_wrong_name_is_named(folder, name):
    write_image(folder / 'KA.AN1.39.tiff', mode='L')
    write_image(folder / name, mode='L')
    with pytest.raises(UserError, match=f"class of AN, DI, FE, HA, NE, SA, SU, found '{name}'"):
        read_records('jaffe', folder)


def test_folder_without_the_set_says_what_was_looked_for(folder):
    write_image(folder / 'a.png')
    with pytest.raises(UserError, match=r'no data in .*looked for \*\*/\*\.tiff.*Ask the authors'):
        read_records('jaffe', folder)
