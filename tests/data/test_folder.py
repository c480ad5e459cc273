import pytest
from face_trees import data_config, read_records, write_image

from mtdml_jax.data.prepare import prepare
from mtdml_jax.data.sets.folder import find_subject
from mtdml_jax.host.errors import UserError


def test_class_folders_are_one_split_with_sorted_classes(tmp_path):
    for name in ('sad/2.png', 'happy/1.jpg', '.cache/x/3.png'):
        write_image(tmp_path / 'faces' / name)
    (tmp_path / 'faces' / 'sad' / 'notes.txt').write_text('not an image')
    assert read_records('folder', tmp_path / 'faces') == {
        'train': {'happy/1.jpg': ('happy', ''), 'sad/2.png': ('sad', '')}
    }


def test_split_folders_go_by_the_usual_names_and_may_lack_classes(tmp_path):
    for name in ('training/b/1.png', 'training/a/1.png', 'val/b/1.png', 'test/c/1.png'):
        write_image(tmp_path / 'faces' / name)
    assert read_records('folder', tmp_path / 'faces') == {
        'train': {'training/a/1.png': ('a', ''), 'training/b/1.png': ('b', '')},
        'validation': {'val/b/1.png': ('b', '')},
        'test': {'test/c/1.png': ('c', '')},
    }
    builder = prepare(data_config('folder', tmp_path / 'faces'))
    assert builder.info.features['label'].names == ['a', 'b', 'c']


def test_classes_that_differ_in_case_are_two(tmp_path):
    for name in ('A/1.png', 'a/2.png'):
        write_image(tmp_path / 'faces' / name)
    found = read_records('folder', tmp_path / 'faces')['train']
    assert found == {'A/1.png': ('A', ''), 'a/2.png': ('a', '')}


@pytest.mark.parametrize(
    ('pattern', 'subject'), [(r'S\d+', 'S12'), (r'/(\w+?)_', 'S12'), (r'_(\d)\.', '3'), ('', '')]
)
def test_subject_is_what_the_pattern_finds_in_the_path(pattern, subject):
    assert find_subject('train/happy/S12_3.png', pattern) == subject


def test_pattern_that_is_wrong_or_finds_nothing_is_named_with_the_path(tmp_path):
    write_image(tmp_path / 'faces' / 'a' / 'x.png')
    for pattern, message in ((r'S\d+', "finds no subject in 'a/x.png'"), ('(', 'unterminated')):
        with pytest.raises(UserError, match=f'config.data.subject_pattern: .*{message}'):
            read_records('folder', tmp_path / 'faces', subject_pattern=pattern)


def test_folder_without_images_in_class_folders_is_refused(tmp_path):
    write_image(tmp_path / 'faces' / 'x.png')
    (tmp_path / 'faces' / 'empty').mkdir()
    with pytest.raises(UserError, match='expected <split>/<class>/<image> or <class>/<image>'):
        read_records('folder', tmp_path / 'faces')
