import numpy as np
import pytest
from face_trees import data_config, read_records, warnings_of, write_image

from mtdml_jax.data.pipeline import load_split
from mtdml_jax.data.prepare import prepare
from mtdml_jax.host.errors import UserError


@pytest.fixture
def folder(tmp_path):
    return tmp_path / 'faces'


def write_list(folder, *rows, name='list.csv'):
    """Writes a csv file, and an image of its own grey value for each row that begins with `x.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text('\n'.join(rows) + '\n')
    paths = {row.split(',')[0] for row in rows[1:]}
    for value, path in enumerate(sorted(paths)):
        if path.endswith('.png') and '/' not in path:
            write_image(folder / path, 20 * value)


def test_paths_and_labels_alone_are_the_train_split(folder):
    write_list(folder, 'label,path', 'sad,in/a.png', 'happy,b.png')
    for name in ('in/a.png', 'b.png'):
        write_image(folder / name)
    assert read_records('image_list', folder) == {
        'train': {'in/a.png': ('sad', ''), 'b.png': ('happy', '')}
    }


def test_columns_go_by_the_names_in_the_config(folder):
    write_list(
        folder,
        'file,emotion,part,who,age',
        'a.png,sad,Training,anna,3',
        'b.png,sad,valid,bert,4',
        'c.png,happy,test,,5',
        name='faces.csv',
    )
    names = {'path': 'file', 'label': 'emotion', 'split': 'part', 'subject': 'who'}
    options = {f'columns.{meant}': name for meant, name in names.items()}
    assert read_records('image_list', folder, list='faces.csv', **options) == {
        'train': {'a.png': ('sad', 'anna')},
        'validation': {'b.png': ('sad', 'bert')},
        'test': {'c.png': ('happy', '')},
    }


def test_path_goes_from_the_list_or_else_from_the_folder(folder, tmp_path):
    write_list(tmp_path / 'lists', 'path,label', 'x.png,a', '../faces/y.png,b', 'z.png,b')
    for path in ('y.png', 'z.png'):
        write_image(folder / path)
    (tmp_path / 'lists' / 'z.png').unlink()
    found = read_records('image_list', folder, list=tmp_path / 'lists' / 'list.csv')
    outside = (tmp_path / 'lists' / 'x.png').as_posix()
    assert found['train'] == {outside: ('a', ''), 'y.png': ('b', ''), 'z.png': ('b', '')}


def test_image_outside_of_the_folder_is_read_as_needed(folder, tmp_path):
    write_list(tmp_path / 'lists', 'path,label', 'x.png,a')
    folder.mkdir()
    options = {'list': tmp_path / 'lists' / 'list.csv', 'in_memory': False}
    split = load_split(data_config('image_list', folder, **options), 'train')
    assert split.encoded_image(0) == (tmp_path / 'lists' / 'x.png').read_bytes()


@pytest.mark.parametrize(
    ('given', 'expected'),
    [('()', ['2', '9', '10']), ("('10', '9', '2', '1')", ['10', '9', '2', '1'])],
)
def test_classes_are_those_of_the_list_as_people_count_or_those_given(folder, given, expected):
    write_list(folder, 'path,label', 'a.png,10', 'b.png,9', 'c.png,2')
    builder = prepare(data_config('image_list', folder, class_names=given))
    assert builder.info.features['label'].names == expected


def test_two_faces_of_one_photograph_have_a_box_each(folder):
    write_list(
        folder, 'path,label,x,y,w,h', 'a.png,sad,1,2,3,4', 'a.png,happy,5,6.9,3,2', 'b.png,sad,,,,'
    )
    split = load_split(data_config('image_list', folder), 'train')
    found = dict(zip(zip(split.file_names, split.labels, strict=True), split.boxes, strict=True))
    np.testing.assert_array_equal(found['a.png', 1], [1, 2, 3, 4])
    np.testing.assert_array_equal(found['a.png', 0], [5, 6, 3, 2])
    np.testing.assert_array_equal(found['b.png', 1], [0, 0, 0, 0])


def test_queries_and_gallery_are_those_of_the_list(folder):
    write_list(folder, 'path,label,query', 'a.png,x,1', 'b.png,x,0', 'c.png,y,True', 'd.png,y,no')
    split = load_split(data_config('image_list', folder), 'train')
    queries = {name for name, role in zip(split.file_names, split.is_query, strict=True) if role}
    assert queries == {'a.png', 'c.png'}
    assert split.is_gallery.all()
    assert split.take(np.flatnonzero(split.is_query)).is_query.all()


def test_missing_image_and_one_listed_twice_are_named(folder, caplog):
    write_list(folder, 'path,label', 'a.png,x', 'gone/b.png,x', './a.png,x')
    assert set(read_records('image_list', folder)['train']) == {'a.png'}
    repeated, missing = warnings_of(caplog)
    assert 'image_list: 1 images are listed again: a.png (' in repeated
    assert 'list.csv: row 2 and ' in repeated
    assert 'list.csv: row 4)' in repeated
    assert missing.endswith('1 of 2 images are missing or cannot be decoded: gone/b.png')


def test_image_that_changed_is_another_data_set(folder):
    write_list(folder, 'path,label', 'a.png,x')
    before = prepare(data_config('image_list', folder)).data_path
    assert prepare(data_config('image_list', folder)).data_path == before
    write_image(folder / 'a.png', size=(20, 20))
    assert prepare(data_config('image_list', folder)).data_path != before


@pytest.mark.parametrize(
    ('rows', 'message'),
    [
        (('path,class', 'a.png,x'), r'row 1: the header lacks label; it has path, class'),
        (
            ('path;label', 'a.png;x'),
            r'header lacks path, label; it has path;label; .* not semicolons',
        ),
        (('path,label',), r'list\.csv: expected rows of images, found none'),
        (('path,label', ',x'), r'row 2: expected a value for path, found none'),
        (('path,label,split', 'a.png,x,'), r'row 2: expected a value for split, found none'),
        (
            ('path,label,split', 'a.png,x,a/b'),
            r"expected splits of letters and digits, found 'a/b'",
        ),
        (
            ('path,label', 'a.png,x', 'a.png,y'),
            r'found 1 listed with two: a\.png \(.*row 2 and .*row 3',
        ),
        (('path,label,split', 'a.png,x,train', 'a.png,x,val'), r'found 1 listed with two: a\.png'),
        (('path,label,x,y', 'a.png,x,1,2'), r'expected all of the columns for x, y, w, h or none'),
        (
            ('path,label,x,y,w,h', 'a.png,x,1,2,3,z'),
            r'row 2: expected numbers of pixels as x, y, w, h',
        ),
        (
            ('path,label,x,y,w,h', 'a.png,x,1,-2147483648,3,4'),
            r'row 2: expected numbers of pixels as x, y, w, h',
        ),
        (
            ('path,label,x,y,w,h', 'a.png,x,1,2,3,0'),
            r'row 2: expected a box with a width and height',
        ),
        (('path,label,query', 'a.png,x,maybe'), r"row 2: expected 1 or 0 as query, found 'maybe'"),
    ],
)
def test_wrong_list_is_refused_with_its_row(folder, rows, message):
    write_list(folder, *rows)
    with pytest.raises(UserError, match=message):
        read_records('image_list', folder)


def test_label_that_is_none_of_the_given_classes_is_refused(folder):
    write_list(folder, 'path,label', 'a.png,x', 'b.png,z')
    with pytest.raises(
        UserError, match=r"row 3: expected a label of x, y .*class_names\), found 'z'"
    ):
        read_records('image_list', folder, class_names="('x', 'y')")


def test_list_that_is_not_there_is_named(folder):
    with pytest.raises(
        UserError, match=r'config\.data\.list: no file .*faces/list\.csv\. Write a csv'
    ):
        read_records('image_list', folder)
