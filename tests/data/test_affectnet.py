import os

import numpy as np
import pytest
from face_trees import (
    data_config,
    read_records,
    warnings_of,
    write_affectnet,
    write_annotated,
    write_corrupt,
    write_image,
)

from mtdml_jax.data.pipeline import load_split
from mtdml_jax.host.errors import UserError

HEADER = (
    'subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,'
    'valence,arousal'
)


def write_list(folder, name, rows, header=HEADER):
    """Writes a list of images (name, box, code) and the images."""
    lines = [header] if header else []
    for image, box, code in rows:
        lines.append(f'{image},{box},1.5;2.5,{code},-0.5,0.1')
        write_image(folder / 'Manually_Annotated_Images' / image)
    path = folder / 'Manually_Annotated_file_lists' / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(lines) + '\n')


@pytest.fixture
def folder(tmp_path):
    return tmp_path / 'AffectNet'


@pytest.mark.parametrize(('variant', 'classes'), [('', 7), ('7', 7), ('8', 8)])
def test_annotation_files_give_7_or_8_classes(folder, variant, classes):
    write_affectnet(folder)
    for code in (8, 9, 10):
        write_annotated(folder / 'train_set', 100 + code, code)
    found = read_records('affectnet', folder, variant=variant)
    sizes = {split: len(faces) for split, faces in found.items()}
    assert sizes == {'train': 3 * classes, 'test': classes}
    assert found['train']['train_set/images/10.jpg'] == ('Happy', '')
    assert found['test']['val_set/images/60.jpg'] == ('Anger', '')


@pytest.mark.parametrize('code', ['1', 1, 1.0, np.array([1])])
def test_stored_expression_is_a_text_or_a_number(folder, code):
    write_annotated(folder / 'train_set', 5, code)
    assert read_records('affectnet', folder)['train'] == {'train_set/images/5.jpg': ('Happy', '')}


@pytest.mark.parametrize('header', [HEADER, '', HEADER.replace('face_x,face_y', 'face_y,face_x')])
def test_lists_give_classes_and_boxes_with_and_without_a_header(folder, header):
    write_list(folder, 'training.csv', [('1/a.jpg', '1,2,30,40', 6)])
    rows = [('2/b.jpg', '10,20,30,40', 4), ('2/c.jpg', '1,2,3,4', 7), ('2/d.png', '1,2,3,4', 10)]
    write_list(folder, 'validation.csv', rows, header)
    assert read_records('affectnet', folder) == {
        'train': {'Manually_Annotated_Images/1/a.jpg': ('Anger', '')},
        'test': {'Manually_Annotated_Images/2/b.jpg': ('Fear', '')},
    }
    box = load_split(data_config('affectnet', folder), 'test').boxes
    x, y = (20, 10) if header.find('face_y') == header.find('face_x') - 7 else (10, 20)
    np.testing.assert_array_equal(box, [[x, y, 30, 40]])


def test_box_that_the_list_lacks_is_unknown(folder):
    write_list(folder, 'training.csv', [('a.jpg', 'NULL,NULL,30,40', 0)])
    boxes = load_split(data_config('affectnet', folder), 'train').boxes
    np.testing.assert_array_equal(boxes, [[0, 0, 0, 0]])


def test_paths_alone_are_prepared_when_images_stay_on_disk(folder):
    write_list(folder, 'training.csv', [('1/a.jpg', '1,2,30,40', 6)])
    split = load_split(data_config('affectnet', folder, in_memory=False), 'train')
    assert split.encoded_image(0) == (folder / split.file_names[0]).read_bytes()
    np.testing.assert_array_equal(split.boxes, [[1, 2, 30, 40]])


def test_missing_and_corrupt_images_are_left_out_and_named_with_the_counts(folder, caplog):
    for number in range(3):
        write_annotated(folder / 'train_set', number, '0')
    write_corrupt(folder / 'train_set' / 'images' / '0.jpg')
    (folder / 'train_set' / 'images' / '1.jpg').unlink()
    assert list(read_records('affectnet', folder)['train']) == ['train_set/images/2.jpg']
    classes, unusable, counts = warnings_of(caplog)
    assert classes.startswith('affectnet: no images of the classes Happy, Sad, ')
    assert '2 of 3 images are missing or cannot be decoded' in unusable
    assert 'train_set/images/0.jpg, train_set/images/1.jpg' in unusable
    assert 'affectnet, split train: expected 283,901 faces as published, found 1' in counts


def test_image_that_comes_later_is_found_without_a_look_at_each_file(folder):
    write_annotated(folder / 'train_set', 1, '0')
    image = write_annotated(folder / 'train_set', 2, '0')
    image.unlink()
    assert len(read_records('affectnet', folder)['train']) == 1
    write_image(image)
    os.utime(image.parent, (0, 0))  # The clock may be too coarse to tell two changes apart.
    assert len(read_records('affectnet', folder)['train']) == 2


@pytest.mark.parametrize(
    ('rows', 'message'),
    [
        ([('a.jpg', '1,2,3,4', 11)], r"row 3: expected an expression from 0 to 10, found '11'"),
        ([('a.jpg', '1,2,3,4', '')], r"row 3: expected an expression from 0 to 10, found ''"),
        ([('a.jpg', '1,2', 5)], r'row 3: too few columns: expected 9'),
        ([('a.jpg', '1,2,x,4', 5)], r'row 3: expected numbers as face_x.*found .*x'),
        (
            [('a.jpg', '1,2,3,2147483648', 5)],
            r'row 3: expected numbers as face_x.*found .*2147483648',
        ),
        ([('a.jpg', '1,2,3,inf', 5)], r'row 3: expected numbers as face_x.*found .*inf'),
    ],
)
def test_wrong_line_of_a_list_is_named(folder, rows, message):
    write_list(folder, 'training.csv', [('z.jpg', '1,2,3,4', 0), *rows])
    with pytest.raises(UserError, match=r'training\.csv: ' + message):
        read_records('affectnet', folder)


@pytest.mark.parametrize('code', ['11', -1, 'happy'])
def test_wrong_annotation_is_named(folder, code):
    write_annotated(folder / 'train_set', 5, code)
    with pytest.raises(UserError, match=r'5_exp\.npy: expected an expression from 0 to 10, found'):
        read_records('affectnet', folder)


@pytest.mark.parametrize('content', [b'', b'no array'])
def test_corrupt_annotation_is_named(folder, content):
    write_annotated(folder / 'train_set', 5, 1)
    (folder / 'train_set' / 'annotations' / '5_exp.npy').write_bytes(content)
    with pytest.raises(UserError, match=r'5_exp\.npy: expected one expression saved by NumPy'):
        read_records('affectnet', folder)


def test_images_without_a_list_are_no_data(folder):
    write_image(folder / 'Manually_Annotated_Images' / '1' / 'a.jpg')
    with pytest.raises(UserError, match='affectnet: found no faces in'):
        read_records('affectnet', folder)
