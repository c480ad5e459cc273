"""Every file in a folder is either read, reported or deliberately ignored."""

import itertools
import os

import pytest
from face_trees import data_config, read_records, warnings_of, write_image

from mtdml_jax.data.prepare import make_builder, prepare
from mtdml_jax.host.errors import UserError
from mtdml_jax.images.folders import image_files, natural_order


@pytest.fixture
def folder(tmp_path):
    return tmp_path / 'faces'


def write_images(folder, *names):
    """Writes images, each with another grey value."""
    for value, name in enumerate(names):
        write_image(folder / name, 10 * value)


def faces_of(folder, name='folder', **options):
    """Returns split -> names of its faces."""
    found = make_builder(data_config(name, folder, **options)).find_faces(folder)
    return {split: [face.name for face in faces] for split, faces in found.items()}


def test_natural_order_is_that_of_people():
    names = ['b1', 'a10', 'a9', 'a1b2', 'a1b10', 'a', '10', '9', 'a09']
    expected = ['9', '10', 'a', 'a1b2', 'a1b10', 'a09', 'a9', 'a10', 'b1']
    for shuffled in (names, names[::-1]):
        assert sorted(shuffled, key=natural_order) == expected


@pytest.mark.parametrize(
    ('name', 'pattern', 'chosen'),
    [
        ('oulu_casia', 'OriginalImg/VL/Strong/P001/Anger/{}.jpeg', (10, 11, 12)),
        ('mmi', 'Sessions/1/{}.png', (5, 6, 7)),
        ('ck_plus', 'cohn-kanade-images/S005/001/S005_001_{}.png', (10, 11, 12)),
        ('ck_plus', 'CK+48/anger/S005_001_{}.png', (10, 11, 12)),
    ],
)
def test_frames_of_a_sequence_are_in_natural_order(folder, name, pattern, chosen):
    write_images(folder, *(pattern.format(number) for number in range(1, 13)))
    if name == 'mmi':
        session = folder / 'Sessions' / '1'
        (session / 'session.xml').write_text('<session><track view="0"/></session>')
        (session / 'S001-001.xml').write_text('<Clip><Metatag Name="Emotion" Value="1"/></Clip>')
    if 'cohn-kanade' in pattern:
        label = folder / 'Emotion' / 'S005' / '001' / 'S005_001_12_emotion.txt'
        label.parent.mkdir(parents=True)
        label.write_text('1.0')
    # MMI uses the frames in the middle, the other sets use the last frames.
    assert faces_of(folder, name)['train'] == [pattern.format(number) for number in chosen]


def test_images_of_all_names_and_depths_are_read(folder):
    names = ['_1.jpg', '2.jfif', '3.webp', '4.JPE', '5.PNG', 's01/6.jpg', 's01/take/7.bmp']
    write_images(folder, *(f'train/happy/{name}' for name in names))
    assert faces_of(folder)['train'] == sorted(
        (f'train/happy/{name}' for name in names), key=lambda name: name.partition('happy/')[2]
    )


def test_what_is_left_out_is_counted_and_named_once(folder, caplog):
    write_images(
        folder, 'train/happy/1.png', 'train/sad/1.png', 'train/2.png', '3.png', 'new/x/4.png'
    )
    write_images(folder, 'train/happy/.hidden.png', '.ipynb_checkpoints/5.png', 'more/6.png')
    (folder / 'train' / 'happy' / 'notes.txt').touch()
    (folder / 'train' / 'happy' / 'Thumbs.db').touch()
    (folder / 'train' / 'angry').mkdir()
    assert faces_of(folder) == {
        'train': ['train/happy/1.png', 'train/sad/1.png'],
        'new': ['new/x/4.png'],
    }
    strays, others, empty = (text.removeprefix(f'{folder}: ') for text in warnings_of(caplog))
    number, names = strays.split(' left out: images in no class folder of a split: ')
    assert number == '3'
    assert set(names.split(', ')) == {'3.png', 'train/2.png', 'more/6.png'}
    assert others == '1 left out: files that are not images: train/happy/notes.txt'
    assert empty == '1 left out: folders without images: train/angry'


def test_folder_without_images_is_no_class(folder):
    write_images(folder, 'happy/1.png', 'sad/2.png')
    (folder / 'angry').mkdir()
    builder = make_builder(data_config('folder', folder))
    assert builder.info.features['label'].names == ['happy', 'sad']


def test_classes_of_a_set_without_images_are_named(folder, caplog):
    write_images(folder, 'train/happy/1.png')
    prepare(data_config('fer2013', folder))
    assert warnings_of(caplog)[0] == (
        'fer2013: no images of the classes Angry, Disgust, Fear, Sad, Surprise, Neutral'
    )


@pytest.mark.parametrize('name', ['folder', 'raf_db', 'fer2013'])
def test_two_folders_for_one_split_are_refused(folder, name):
    for first, second in (('val', 'valid'), ('train', 'Training'), ('test', 'testing')):
        root = folder / first
        write_images(root, f'{first}/fear/1.png', f'{second}/fear/2.png')
        with pytest.raises(UserError, match=f'for the split .*found .*{second}|found {second} and'):
            faces_of(root, name)


def test_empty_folder_is_no_second_folder_for_a_split(folder):
    write_images(folder, 'val/fear/1.png', 'train/fear/1.png')
    (folder / 'valid' / 'fear').mkdir(parents=True)
    assert set(faces_of(folder)) == {'train', 'validation'}


@pytest.mark.parametrize(
    ('names', 'expected'),
    [
        (('train', 'val'), {'train': 'train', 'test': 'val'}),
        (('train', 'valid'), {'train': 'train', 'test': 'valid'}),
        (('train', 'val', 'test'), {'train': 'train', 'validation': 'val', 'test': 'test'}),
    ],
)
def test_raf_db_reads_every_folder_of_a_split(folder, names, expected):
    write_images(folder, *(f'{name}/fear/1.png' for name in names))
    found = faces_of(folder, 'raf_db')
    assert found == {split: [f'{name}/fear/1.png'] for split, name in expected.items()}


def test_image_beside_class_folders_of_a_split_does_not_make_splits_classes(folder):
    write_images(folder, 'train/happy/1.png', 'train/sad/2.png', 'train/readme.png')
    assert faces_of(folder) == {'train': ['train/happy/1.png', 'train/sad/2.png']}


def test_file_whose_name_is_no_utf_8_is_left_out_and_named(folder, caplog):
    write_images(folder, 'happy/1.png', 'happy/2.png')
    os.rename(folder / 'happy' / '2.png', os.fsencode(folder / 'happy') + b'/caf\xe9.png')
    assert set(read_records('folder', folder)['train']) == {'happy/1.png'}
    assert warnings_of(caplog) == [
        'folder: 1 files whose names are not UTF-8 are left out: happy/caf\\udce9.png'
    ]


@pytest.mark.parametrize('name', [b'caf\xe9', b'a\nb', b' happy'])
def test_class_whose_name_cannot_be_written_down_is_refused(folder, name):
    write_images(folder, 'happy/1.png', 'sad/2.png')
    os.rename(folder / 'sad', os.fsencode(folder) + b'/' + name)
    with pytest.raises(
        UserError, match=r'expected names of classes in UTF-8, without spaces'
    ) as error:
        faces_of(folder)
    assert '\n' not in str(error.value)


def test_links_are_followed_and_those_that_lead_nowhere_or_around_are_not(folder, tmp_path, caplog):
    write_images(folder, 'happy/1.png', 'sad/2.png')
    write_image(tmp_path / 'elsewhere' / '3.png', 77)
    (folder / 'happy' / 'more').symlink_to(tmp_path / 'elsewhere')
    (folder / 'happy' / 'around').symlink_to(folder / 'happy')
    (folder / 'sad' / 'gone.png').symlink_to(tmp_path / 'gone.png')
    found = read_records('folder', folder)['train']
    assert set(found) == {'happy/1.png', 'happy/more/3.png', 'sad/2.png'}
    (unusable,) = warnings_of(caplog)
    assert unusable.endswith('1 of 4 images are missing or cannot be decoded: sad/gone.png')


def test_folder_that_is_called_as_images_are_is_none(tmp_path):
    write_image(tmp_path / 'a.png')
    (tmp_path / 'b.png').mkdir()
    assert [path.name for path in image_files(tmp_path)] == ['a.png']


def test_classes_that_differ_by_case_alone_are_warned_of(folder, caplog):
    write_images(folder, *map('/'.join, itertools.product(('A', 'a'), ('1.png', '2.png'))))
    faces_of(folder)
    assert warnings_of(caplog) == ['folder: A and a are two classes that differ only in case']
