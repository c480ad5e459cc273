import pytest
from face_trees import read_records, warnings_of, write_corrupt, write_image

from mtdml_jax.data.sets.raf_db import RafDb
from mtdml_jax.host.errors import UserError


def write_list(folder, lines):
    path = folder / 'EmoLabel' / 'list_patition_label.txt'
    path.parent.mkdir(parents=True)
    path.write_text('\n'.join(lines) + '\n')


def aligned(folder, name):
    return folder / 'Image' / 'aligned' / f'{name}_aligned.jpg'


@pytest.fixture
def folder(tmp_path):
    return tmp_path / 'RAF-DB'


def test_list_of_the_set_gives_classes_and_splits(folder):
    write_list(folder, ['train_00001.jpg 5', 'train_00002.jpg 1', 'test_0001.jpg 7'])
    for name in ('train_00001', 'train_00002', 'test_0001'):
        write_image(aligned(folder, name))
    assert read_records('raf_db', folder) == {
        'train': {
            'Image/aligned/train_00001_aligned.jpg': ('Sadness', ''),
            'Image/aligned/train_00002_aligned.jpg': ('Surprise', ''),
        },
        'test': {'Image/aligned/test_0001_aligned.jpg': ('Neutral', '')},
    }


@pytest.mark.parametrize('test', ['valid', 'test'])
def test_class_folders_go_by_names_or_codes(folder, test):
    write_image(folder / 'train' / '4' / 'a.png')
    write_image(folder / 'train' / 'anger' / 'b.png')
    write_image(folder / test / 'Fear' / 'c.png')
    write_image(folder / test / 'Fear' / '.hidden.png')
    assert read_records('raf_db', folder) == {
        'train': {'train/4/a.png': ('Happiness', ''), 'train/anger/b.png': ('Anger', '')},
        'test': {f'{test}/Fear/c.png': ('Fear', '')},
    }


def test_missing_and_corrupt_images_are_left_out_and_named_with_the_counts(folder, caplog):
    write_list(folder, [f'train_0000{i}.jpg 5' for i in range(1, 4)])
    write_corrupt(aligned(folder, 'train_00001'))
    write_image(aligned(folder, 'train_00002'))
    found = read_records('raf_db', folder)
    assert list(found['train']) == ['Image/aligned/train_00002_aligned.jpg']
    _, unusable, counts = warnings_of(caplog)
    assert '2 of 3 images are missing or cannot be decoded' in unusable
    assert 'train_00001_aligned.jpg, Image/aligned/train_00003_aligned.jpg' in unusable
    assert 'raf_db, split train: expected 12,271 faces as published, found 1' in counts
    assert 'Sadness 1,982, found 1;' in counts


@pytest.mark.parametrize('line', ['train_00001.jpg 8', 'train_00001.jpg', 'other_1.jpg 1'])
def test_wrong_line_of_the_list_is_named(folder, line):
    write_list(folder, ['train_00000.jpg 1', line])
    with pytest.raises(
        UserError, match=r'list_patition_label\.txt: line 2: expected a line such as'
    ):
        read_records('raf_db', folder)


def test_extra_class_is_named(folder):
    write_image(folder / 'train' / 'contempt' / 'a.png')
    with pytest.raises(UserError, match='train/contempt: expected a folder for each class'):
        read_records('raf_db', folder)


def test_image_changed_in_its_place_is_prepared_anew(folder):
    write_image(folder / 'train' / 'Fear' / 'a.png')
    image = write_corrupt(folder / 'train' / 'Fear' / 'b.png')
    assert len(read_records('raf_db', folder)['train']) == 1
    write_image(image)
    assert len(read_records('raf_db', folder)['train']) == 2


def test_published_counts_add_up():
    assert sum(RafDb.COUNTS['default']['train']) == 12_271
    assert sum(RafDb.COUNTS['default']['test']) == 3_068


def test_folder_without_the_set_says_what_was_looked_for(folder):
    folder.mkdir()
    with pytest.raises(UserError, match=r'no data in .*looked for EmoLabel.*Ask the authors'):
        read_records('raf_db', folder)
