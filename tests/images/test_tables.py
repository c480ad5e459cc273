"""Every reader reads lists and csv files as editors, spreadsheets and scripts write them."""

import gzip

import numpy as np
import pytest
from face_trees import FERPLUS_HEADER, data_config, write_image

from mtdml_jax.data.prepare import make_builder
from mtdml_jax.host.errors import UserError
from mtdml_jax.images.tables import read_csv, read_text, read_words

PIXELS = ' '.join(map(str, np.arange(2304) % 250))
VOTES = '0,9,0,1,0,0,0,0,0,0'
# Set -> (file that is read, its lines).
FILES = {
    'fer2013': (
        'fer2013.csv',
        ['emotion,pixels,Usage', f'3,{PIXELS},Training', f'4,{PIXELS},PublicTest'],
    ),
    'ferplus': (
        'fer2013new.csv',
        [FERPLUS_HEADER, f'Training,fer0.png,{VOTES}', f'PublicTest,fer1.png,{VOTES}'],
    ),
    'ferplus_folders': (
        'FER2013Train/label.csv',
        [f'fer0.png,"(0, 0, 48, 48)",{VOTES}', f'fer1.png,"(0, 0, 48, 48)",{VOTES}'],
    ),
    'raf_db': ('EmoLabel/list_patition_label.txt', ['train_00001.jpg 5', 'test_0001.jpg 7']),
    'affectnet': (
        'Manually_Annotated_file_lists/training.csv',
        ['1/a.jpg,1,2,30,40,0;1,6,0.1,0.2', '2/b.jpg,1,2,30,40,0;1,3,0.1,0.2'],
    ),
    'image_list': ('list.csv', ['path,label', 'a.png,happy', 'b.png,sad']),
}
# Changes that programs make to a file; the faces stay the same.
SAME = {
    'byte order mark': lambda text: '\ufeff' + text,
    'ends of lines of Windows': lambda text: text.replace('\n', '\r\n'),
    'ends of lines of old Macs': lambda text: text.replace('\n', '\r'),
    'no last end of line': lambda text: text.rstrip('\n'),
    'blank last lines': lambda text: text + '\n  \n\n',
    'blank line in the middle': lambda text: text.replace('\n', '\n\n', 1),
    'spaces at the ends': lambda text: text.replace('\n', '  \n'),
}
REFUSED = {
    'nothing': lambda text: '',
    'UTF-16': lambda text: text.encode('utf-16'),
    'zeros': lambda text: text + '\0\0\0\n',
    'junk': lambda text: text + '\x89PNG\x1a\x0b\n',
    'half a row': lambda text: text.rstrip('\n')[:-4] + '\n',
    'semicolons': lambda text: text.replace(',', ';'),
    'unclosed quote': lambda text: text.replace('\n', '\n"', 1) + 'x' * 200_000,
}


def write(folder, name, text):
    path = folder / FILES[name][0]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    if name == 'ferplus':
        (folder / 'fer2013.csv').write_text('\n'.join(FILES['fer2013'][1]))
    return path


def faces_of(folder, name):
    found = make_builder(data_config(name.partition('_folders')[0], folder)).find_faces(folder)
    return {
        split: [(face.name, face.label, np.asarray(face.image).tolist()) for face in faces]
        for split, faces in found.items()
        if faces
    }


@pytest.mark.parametrize('name', FILES)
def test_every_reader_takes_a_text_however_it_was_saved(tmp_path, name):
    text = '\n'.join(FILES[name][1]) + '\n'
    write(tmp_path / 'plain', name, text)
    expected = str(faces_of(tmp_path / 'plain', name))
    assert expected.count("', '") >= 2
    for kind, change in SAME.items():
        folder = tmp_path / kind
        write(folder, name, change(text))
        found = str(faces_of(folder, name)).replace(str(folder), str(tmp_path / 'plain'))
        if kind == 'blank line in the middle':  # The names of FER2013's faces contain the row.
            found = found.replace('csv:3', 'csv:2').replace('csv:4', 'csv:3')
        assert found == expected, kind


@pytest.mark.parametrize('name', FILES)
def test_every_reader_refuses_what_is_no_list_in_one_line_that_names_the_file(tmp_path, name):
    text = '\n'.join(FILES[name][1]) + '\n'
    for kind, change in REFUSED.items():
        if (
            change(text) == text
        ):  # This change does not apply, such as one of commas to a list with spaces.
            continue
        folder = tmp_path / kind
        path = write(folder, name, change(text))
        with pytest.raises(UserError) as error:
            pytest.fail(f'{kind}: {faces_of(folder, name)}')
        assert path.name in str(error.value)
        assert '\n' not in str(error.value)
        assert len(str(error.value)) < 600


def test_list_between_tabs_or_several_spaces_is_read(tmp_path):
    write(tmp_path / 'a', 'raf_db', 'train_00001.jpg\t5\n  test_0001.jpg   7 \n')
    write(tmp_path / 'b', 'raf_db', '\n'.join(FILES['raf_db'][1]))
    found, expected = (str(faces_of(tmp_path / x, 'raf_db')) for x in 'ab')
    assert found.replace(str(tmp_path / 'a'), str(tmp_path / 'b')) == expected


def test_rows_are_counted_as_editors_do(tmp_path):
    path = tmp_path / 'x.csv'
    path.write_text('\na,b\n\n1,2\n , \n3,4\n')
    assert list(read_csv(path, ('a',))) == [(4, {'a': '1', 'b': '2'}), (6, {'a': '3', 'b': '4'})]
    assert list(read_words(path))[-1] == (6, ['3,4'])
    assert read_text(path) == 'a,b\n\n1,2\n , \n3,4'


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('a,b\n1,2,3\n', r'row 2: too many columns: expected 2 \(a, b\), found 3'),
        ('a,b\n\n1\n', r'row 3: too few columns: expected 2 \(a, b\), found 1'),
        (
            'a;b\n1;2\n',
            r'row 1: the header lacks a; it has a;b; values must .* commas, not semicolons',
        ),
        ('a\tb\n1\t2\n', r'row 1: the header lacks a; .*not tabs'),
        ('a,a\n1,2\n', r'row 1: expected each column once, found a again'),
        ('a,b\n1,"2\n3,4\n', r'row 2: not a row of a csv file \(unexpected end of data\)'),
        ('a,b\n1,"2"x\n', r'row 2: not a row of a csv file'),
        ('\n \n', r'expected a list, found an empty file'),
    ],
)
def test_wrong_row_is_named(tmp_path, text, message):
    (tmp_path / 'x.csv').write_text(text)
    with pytest.raises(UserError, match=r'x\.csv: ' + message):
        list(read_csv(tmp_path / 'x.csv', ('a',)))


def test_broken_compression_is_named(tmp_path):
    path = tmp_path / 'x.csv.gz'
    whole = gzip.compress(b'a,b\n' + b'1,2\n' * 9999)
    for content in (whole[: len(whole) // 2], b'a,b\n1,2\n', whole[:20] + b'\0' * 40):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r'x\.csv\.gz: it cannot be read'):
            list(read_csv(path, ('a',)))


def test_label_of_a_sequence_is_read_with_a_byte_order_mark(tmp_path):
    folder = tmp_path / 'Emotion' / 'S005' / '001'
    folder.mkdir(parents=True)
    (folder / 'S005_001_00000011_emotion.txt').write_bytes(b'\xef\xbb\xbf   3.0000000e+00\r\n\r\n')
    write_image(tmp_path / 'cohn-kanade-images' / 'S005' / '001' / 'S005_001_00000011.png')
    (face,) = make_builder(data_config('ck_plus', tmp_path)).find_faces(tmp_path)['train']
    assert face.label == 'disgust'


def test_file_name_that_is_no_utf_8_is_that_of_the_disk(tmp_path):
    (tmp_path / 'x.txt').write_bytes(b'caf\xe9.png 1\n')
    ((_, words),) = read_words(tmp_path / 'x.txt')
    assert words == ['caf\udce9.png', '1']
