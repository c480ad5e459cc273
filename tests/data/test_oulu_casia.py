import pytest
from face_trees import read_records, warnings_of, write_corrupt, write_image, write_oulu_casia

from mtdml_jax.host.errors import UserError


@pytest.fixture
def folder(tmp_path):
    return tmp_path / 'Oulu-CASIA'


def test_last_frames_of_each_sequence_are_taken_with_their_subject(folder):
    write_oulu_casia(folder)
    found = read_records('oulu_casia', folder)['train']
    assert len(found) == 2 * 6 * 3
    frames = [name for name in found if '/P002/Happiness/' in name]
    assert sorted(frames) == [
        f'OriginalImg/VL/Strong/P002/Happiness/00{frame}.jpeg' for frame in (1, 2, 3)
    ]
    assert {found[name] for name in frames} == {('Happiness', 'P002')}
    found = read_records('oulu_casia', folder, num_frames=1)['train']
    assert len(found) == 2 * 6
    assert all(name.endswith('003.jpeg') for name in found)


@pytest.mark.parametrize(
    ('variant', 'source'),
    [
        ('VL_Weak', 'OriginalImg/VL/Weak'),
        ('VL_Dark', 'OriginalImg/VL/Dark'),
        ('NI_Strong', 'OriginalImg/NI/Strong'),
        ('NI_Weak', 'OriginalImg/NI/Weak'),
        ('NI_Dark', 'OriginalImg/NI/Dark'),
        ('VL_Strong_cropped', 'PreProcess_Img/VL_Acropped/Strong'),
        ('NI_Dark_cropped', 'PreProcess/NI_Acropped/Dark'),
    ],
)
def test_variants_are_camera_light_and_crop(folder, variant, source):
    write_image(folder / 'OriginalImg' / 'VL' / 'Strong' / 'P001' / 'Fear' / '000.jpeg')
    write_image(folder / source / 'P001' / 'Anger' / '000.jpeg')
    found = read_records('oulu_casia', folder, variant=variant)
    assert found == {'train': {f'{source}/P001/Anger/000.jpeg': ('Anger', 'P001')}}


def test_missing_sequence_and_corrupt_frame_show_in_the_counts(folder, caplog):
    write_oulu_casia(folder)
    sequence = folder / 'OriginalImg' / 'VL' / 'Strong' / 'P001' / 'Anger'
    write_corrupt(sequence / '003.jpeg')
    for path in (sequence.parent / 'Fear').iterdir():
        path.unlink()
    found = read_records('oulu_casia', folder)['train']
    assert len([name for name in found if '/P001/Anger/' in name]) == 2
    _, unusable, counts = warnings_of(caplog)
    assert '1 of 33 images' in unusable
    assert 'P001/Anger/003.jpeg' in unusable
    assert 'oulu_casia, split train: expected 1,440 faces as published, found 32' in counts


def test_extra_class_is_named(folder):
    write_image(folder / 'OriginalImg' / 'VL' / 'Strong' / 'P001' / 'Contempt' / '000.jpeg')
    with pytest.raises(UserError, match="P001/Contempt: expected .*found 'Contempt'"):
        read_records('oulu_casia', folder)


def test_folder_that_is_no_subject_is_named(folder):
    write_image(folder / 'OriginalImg' / 'VL' / 'Strong' / 'Anger' / '000.jpeg')
    with pytest.raises(UserError, match=r"expected a folder for each subject .*found 'Anger'"):
        read_records('oulu_casia', folder)


def test_missing_camera_names_the_variant_that_is_there(folder):
    write_image(folder / 'OriginalImg' / 'NI' / 'Dark' / 'P001' / 'Anger' / '000.jpeg')
    with pytest.raises(UserError, match=r'There is data for config.data.variant=NI_Dark\.'):
        read_records('oulu_casia', folder)


def test_no_frames_are_refused(folder):
    write_oulu_casia(folder)
    with pytest.raises(UserError, match='num_frames: expected at least 1, found 0'):
        read_records('oulu_casia', folder, num_frames=0)
