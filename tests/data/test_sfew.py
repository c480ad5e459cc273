import pytest
from face_trees import read_records, warnings_of, write_corrupt, write_image, write_sfew

from mtdml_jax.host.errors import UserError


@pytest.fixture
def folder(tmp_path):
    return tmp_path / 'SFEW'


def test_published_validation_set_is_the_test_split(folder):
    write_sfew(folder)
    found = read_records('sfew', folder)
    assert {split: len(faces) for split, faces in found.items()} == {'train': 21, 'test': 7}
    assert found['train']['Train_Aligned_Faces/Sad/film_0.png'] == ('Sad', '')
    assert found['test']['Val_Aligned_Faces_new/Angry/film_3.png'] == ('Angry', '')


def test_variants_tell_the_originals_from_the_aligned_faces_among_them(folder):
    write_image(folder / 'Train' / 'Fear' / 'a.png')
    write_image(folder / 'Train' / 'Train_Aligned_Faces' / 'Happy' / 'b.png')
    write_image(folder / 'Val' / 'Sad' / 'c.png')
    assert read_records('sfew', folder, variant='original') == {
        'train': {'Train/Fear/a.png': ('Fear', '')},
        'test': {'Val/Sad/c.png': ('Sad', '')},
    }
    assert read_records('sfew', folder) == {
        'train': {'Train/Train_Aligned_Faces/Happy/b.png': ('Happy', '')}
    }


def test_new_alignment_goes_before_the_old_one(folder):
    write_image(folder / 'Val_Aligned_Faces' / 'Fear' / 'old.png')
    write_image(folder / 'Val_Aligned_Faces_new' / 'Fear' / 'new.png')
    assert list(read_records('sfew', folder)['test']) == ['Val_Aligned_Faces_new/Fear/new.png']


def test_missing_alignment_names_the_variant_that_is_there(folder):
    write_image(folder / 'Train' / 'Fear' / 'a.png')
    with pytest.raises(
        UserError, match='Train_Aligned_Faces.*There is data for config.data.variant=original'
    ):
        read_records('sfew', folder)


def test_corrupt_image_is_left_out_and_named_with_the_counts(folder, caplog):
    write_image(folder / 'Train_Aligned_Faces' / 'Angry' / 'a.png')
    write_corrupt(folder / 'Train_Aligned_Faces' / 'Angry' / 'b.png')
    found = read_records('sfew', folder)
    assert list(found['train']) == ['Train_Aligned_Faces/Angry/a.png']
    _, unusable, counts = warnings_of(caplog)
    assert '1 of 2 images are missing or cannot be decoded: Train_Aligned_Faces/Angry/b.png' in (
        unusable
    )
    assert 'sfew, split train: expected 958 faces as published, found 1' in counts


def test_extra_class_is_named(folder):
    write_image(folder / 'Train_Aligned_Faces' / 'Contempt' / 'a.png')
    with pytest.raises(UserError, match="expected a folder for each class .*found 'Contempt'"):
        read_records('sfew', folder)
