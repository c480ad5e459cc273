import functools
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from face_trees import data_config, read_records, write_corrupt, write_image
from filelock import FileLock
from small_data import csv_rows, write_csv

from mtdml_jax.data.pipeline import load_split
from mtdml_jax.data.prepare import check_builder, make_builder, prepare
from mtdml_jax.host.errors import UserError


@pytest.fixture
def folder(tmp_path):
    for name in ('a/1.png', 'a/2.png', 'b/1.png'):
        write_image(tmp_path / 'faces' / name)
    return tmp_path / 'faces'


def test_unknown_data_set_is_named_with_the_nearest(tmp_path):
    with pytest.raises(UserError, match="no data set 'fer2031'; did you mean 'fer2013'"):
        prepare(data_config('fer2031', tmp_path))


def test_set_whose_docstring_is_gone_is_prepared(folder, monkeypatch):
    """Docstrings are None under `python -OO`."""
    monkeypatch.setattr(tfds.builder_cls('folder'), '__doc__', None)
    assert prepare(data_config('folder', folder)).info.description == 'folder'


def test_second_preparation_finds_the_first(folder, monkeypatch):
    first = prepare(data_config('folder', folder))
    monkeypatch.setattr(tfds.core.DatasetBuilder, 'download_and_prepare', None)
    assert prepare(data_config('folder', folder)).data_path == first.data_path


@pytest.mark.parametrize(
    ('change', 'count'), [('another image', 3), ('a new image', 4), ('fewer images', 2)]
)
def test_changed_source_files_are_another_data_set(folder, change, count):
    before = prepare(data_config('folder', folder))
    match change:
        case 'another image':
            write_image(folder / 'a' / '1.png', size=(20, 20))
        case 'a new image':
            write_image(folder / 'b' / '2.png')
        case 'fewer images':
            (folder / 'a' / '2.png').unlink()
    after = prepare(data_config('folder', folder))
    assert after.data_path != before.data_path
    assert after.info.splits['train'].num_examples == count


def test_option_that_changes_the_records_is_another_data_set(folder):
    in_memory, on_disk = (
        prepare(data_config('folder', folder, in_memory=value)) for value in (True, False)
    )
    assert 'image' in in_memory.info.features
    assert 'image' not in on_disk.info.features
    assert in_memory.data_path != on_disk.data_path


def test_user_is_told_where_images_go_and_nothing_of_a_download(folder, tmp_path, capsys):
    prepare(data_config('folder', folder, prepared_dir=str(tmp_path)))
    printed = capsys.readouterr()
    assert printed.out == ''
    assert f'folder: preparing its images once, in {tmp_path}' in printed.err


def test_sets_that_are_no_image_files_cannot_be_read_from_disk(tmp_path):
    with pytest.raises(UserError, match='synthetic_faces is not read from image files'):
        prepare(data_config('synthetic_faces', tmp_path, in_memory=False))


def test_unknown_variant_is_named_with_those_that_exist(folder):
    with pytest.raises(UserError, match="config.data.variant: folder has default, found '7'"):
        prepare(data_config('folder', folder, variant='7'))


@pytest.mark.slow
def test_killed_preparation_leaves_nothing_that_the_next_takes_for_a_data_set(folder):
    script = textwrap.dedent(f"""
        import os, pathlib, signal
        from face_trees import data_config
        from mtdml_jax.data import image_files, prepare

        def read_one(images):
            yield b'half'
            os.kill(os.getpid(), signal.SIGKILL)

        image_files.read_images = read_one
        prepare.prepare(data_config('folder', pathlib.Path({str(folder)!r})))
    """)
    killed = subprocess.run(
        [sys.executable, '-c', script], cwd=Path(__file__).parents[1] / 'helpers', check=False
    )
    assert killed.returncode == -signal.SIGKILL
    half_done = list((folder.parent / 'prepared').rglob('incomplete.*'))
    assert half_done
    assert sorted(read_records('folder', folder)['train']) == ['a/1.png', 'a/2.png', 'b/1.png']
    assert not list((folder.parent / 'prepared').rglob('incomplete.*'))


def test_preparation_waits_for_another_of_the_same_set(folder, monkeypatch):
    """File locks also work within one process. Here the wait has a timeout of 0."""
    data = data_config('folder', folder)
    place = Path(make_builder(data).data_path).parent
    place.mkdir(parents=True)
    monkeypatch.setattr('mtdml_jax.data.prepare.FileLock', functools.partial(FileLock, timeout=0))
    with FileLock(place / '.lock'), pytest.raises(UserError, match='lock'):
        prepare(data)
    assert prepare(data).data_path.exists()


def test_interrupted_preparation_removes_what_it_had_written(folder, monkeypatch):
    def interrupt(images):
        yield b'half'
        raise KeyboardInterrupt

    monkeypatch.setattr('mtdml_jax.data.image_files.read_images', interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare(data_config('folder', folder))
    assert not [x for x in (folder.parent / 'prepared').rglob('*') if x.is_file() and x.suffix]


def test_damage_to_what_was_prepared_is_told_with_how_to_mend_it(folder):
    data = data_config('folder', folder)
    path = Path(prepare(data).data_path)
    (records,) = path.glob('*.tfrecord*')
    for file in (records, path / 'dataset_info.json'):
        content = file.read_bytes()
        for damage in (lambda file, half: file.write_bytes(half), lambda file, half: file.unlink()):
            damage(file, content[: len(content) // 2])
            with pytest.raises(
                UserError, match='folder.*cannot be read .*; remove them, and .* again$'
            ):
                load_split(data, 'train')
        file.write_bytes(content)
    assert len(load_split(data, 'train').labels) == 3


def test_corrupt_images_of_a_set_from_elsewhere_are_named(tmp_path):
    image = write_corrupt(tmp_path / 'corrupt.png').read_bytes()

    features = {'image': tfds.features.Image(), 'label': tfds.features.ClassLabel(num_classes=2)}
    records = tf.data.Dataset.from_tensor_slices({'image': [image] * 2, 'label': [0, 1]})
    tfds.dataset_builders.store_as_tfds_dataset(
        name='elsewhere',
        version='1.0.0',
        features=tfds.features.FeaturesDict(features),
        split_datasets={'train': records},
        data_dir=tmp_path,
    )
    builder = tfds.builder('elsewhere', data_dir=tmp_path)
    with pytest.raises(UserError, match='train: 2 of 2 images .*cannot be decoded: row 0, row 1'):
        check_builder(builder)


def test_fer2013_file_that_changed_is_prepared_again(tmp_path):
    for number in (2, 3):
        write_csv(tmp_path / 'data' / 'fer2013.csv', csv_rows({'Training': number}, seed=1))
        assert len(read_records('fer2013', tmp_path / 'data')['train']) == 7 * number
