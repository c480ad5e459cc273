import re

import pytest
from face_trees import (
    data_config,
    read_records,
    warnings_of,
    write_ck_sequence,
    write_corrupt,
    write_image,
)

from mtdml_jax.data.prepare import prepare
from mtdml_jax.data.sets.ck_plus import SEQUENCES, CkPlus
from mtdml_jax.host.errors import UserError


@pytest.fixture
def folder(tmp_path):
    return tmp_path / 'CK+'


def frame(subject, sequence, number):
    return f'cohn-kanade-images/{subject}/{sequence}/{subject}_{sequence}_{number:08}.png'


def label_file(folder, subject, sequence, number=4):
    return folder / f'Emotion/{subject}/{sequence}/{subject}_{sequence}_{number:08}_emotion.txt'


def test_last_frames_of_labelled_sequences_are_taken(folder):
    write_ck_sequence(folder, 'S005', '001', 3)
    write_ck_sequence(folder, 'S010', '002', 7, num_frames=11)
    write_ck_sequence(folder, 'S010', '003', None)
    # Some systems put hidden files beside the files of the data set.
    hidden = label_file(folder, 'S005', '001')
    hidden.with_name(f'._{hidden.name}').write_bytes(b'\x00')
    assert read_records('ck_plus', folder, num_frames=2) == {
        'train': {
            frame('S005', '001', 3): ('disgust', 'S005'),
            frame('S005', '001', 4): ('disgust', 'S005'),
            frame('S010', '002', 10): ('surprise', 'S010'),
            frame('S010', '002', 11): ('surprise', 'S010'),
        }
    }


@pytest.mark.parametrize(
    ('variant', 'expected'),
    [
        ('7', {3: 'anger', 4: 'anger'}),
        ('6', {3: 'anger', 4: 'anger'}),
        ('7+neutral', {1: 'neutral', 3: 'anger', 4: 'anger'}),
        ('6+neutral', {1: 'neutral', 3: 'anger', 4: 'anger'}),
    ],
)
def test_variants_differ_in_contempt_and_neutral(folder, variant, expected):
    write_ck_sequence(folder, 'S005', '001', 1)
    write_ck_sequence(folder, 'S005', '002', 2)
    wanted = {frame('S005', '001', number): (name, 'S005') for number, name in expected.items()}
    if variant.startswith('7'):
        wanted |= {
            frame('S005', '002', number): (name.replace('anger', 'contempt'), 'S005')
            for number, name in expected.items()
        }
    found = read_records('ck_plus', folder, variant=variant, num_frames=2)
    assert found == {'train': wanted}


def test_first_frame_is_neutral_even_if_it_is_among_the_last(folder):
    write_ck_sequence(folder, 'S005', '001', 1, num_frames=2)
    found = read_records('ck_plus', folder, variant='7+neutral', num_frames=3)['train']
    assert found[frame('S005', '001', 1)] == ('neutral', 'S005')
    assert found[frame('S005', '001', 2)] == ('anger', 'S005')


@pytest.mark.parametrize('root', ['CK+48', '.'])
def test_class_folders_give_subject_and_sequence_by_file_name(folder, root):
    for name, subject in (('anger', 'S010'), ('contempt', 'S130')):
        for sequence in ('004', '005'):
            for number in (16, 17, 18):
                write_image(folder / root / name / f'{subject}_{sequence}_{number:08}.png')
    found = read_records('ck_plus', folder, num_frames=1)
    below = '' if root == '.' else f'{root}/'
    assert found == {
        'train': {
            f'{below}anger/S010_004_00000018.png': ('anger', 'S010'),
            f'{below}anger/S010_005_00000018.png': ('anger', 'S010'),
            f'{below}contempt/S130_004_00000018.png': ('contempt', 'S130'),
            f'{below}contempt/S130_005_00000018.png': ('contempt', 'S130'),
        }
    }
    six = read_records('ck_plus', folder, variant='6')
    assert {name for name, _ in six['train'].values()} == {'anger'}
    assert len(six['train']) == 6


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'num_frames': 4}, 'num_frames: CK.48 has the last 3 frames of each sequence, found 4'),
        ({'num_frames': 0}, 'num_frames: expected at least 1, found 0'),
        ({'variant': '6+neutral'}, r'variant=6\+neutral: CK.48 has no neutral frames'),
        ({'variant': '8'}, r"variant: ck_plus has 7, 6, 7\+neutral, 6\+neutral, found '8'"),
    ],
)
def test_what_class_folders_lack_is_named(folder, options, message):
    write_image(folder / 'CK+48' / 'anger' / 'S010_004_00000017.png')
    with pytest.raises(UserError, match=message):
        read_records('ck_plus', folder, **options)


@pytest.mark.parametrize(
    ('path', 'message'),
    [
        ('happiness/S010_004_00000017.png', 'happiness: expected a folder for each class'),
        ('happy/0017.png', r"happy/0017\.png: expected a name such as .*found '0017\.png'"),
    ],
)
def test_extra_class_and_name_without_subject_are_named(folder, path, message):
    write_image(folder / 'CK+48' / path)
    with pytest.raises(UserError, match=message):
        read_records('ck_plus', folder)


@pytest.mark.parametrize('text', ['8.0000000e+00', '-1', '2.5', 'nan', 'happy', ''])
def test_wrong_label_is_named_with_its_file(folder, text):
    write_ck_sequence(folder, 'S005', '001', 3)
    label_file(folder, 'S005', '001').write_text(text)
    message = rf"_00000004_emotion\.txt: expected a label from 0 to 7 .*found '{re.escape(text)}'"
    with pytest.raises(UserError, match=message):
        read_records('ck_plus', folder)


def test_second_label_of_a_sequence_is_named(folder):
    write_ck_sequence(folder, 'S005', '001', 3)
    label_file(folder, 'S005', '001', 5).write_text('1.0')
    with pytest.raises(UserError, match=r'00000005_emotion\.txt: expected one label.*00000004_emo'):
        read_records('ck_plus', folder)


def test_images_without_labels_are_refused(folder):
    write_ck_sequence(folder, 'S005', '001', None)
    with pytest.raises(UserError, match='Emotion: expected labels such as S005/001/.*found none'):
        read_records('ck_plus', folder)


def test_missing_and_corrupt_frames_are_left_out_and_named_with_the_counts(folder, caplog):
    for subject in ('S005', 'S010', 'S011'):
        write_ck_sequence(folder, subject, '001', 6)
    (folder / frame('S005', '001', 4)).unlink()
    write_corrupt(folder / frame('S010', '001', 3))
    for number in range(1, 5):
        (folder / frame('S011', '001', number)).unlink()
    found = read_records('ck_plus', folder, num_frames=2)
    assert set(found['train']) == {frame('S005', '001', 3), frame('S010', '001', 4)}
    _, unusable, counts = warnings_of(caplog)
    missing = [frame('S005', '001', 4), frame('S010', '001', 3), frame('S011', '001', 4)]
    assert unusable == (
        f'ck_plus, split train: 3 of 5 images are missing or cannot be decoded: {", ".join(missing)}'
    )
    assert 'expected 654 faces as published, found 2 (anger 90, found 0' in counts


@pytest.mark.parametrize(
    ('variant', 'num_frames', 'expected'),
    [
        ('7', 3, (135, 54, 177, 75, 207, 84, 249)),
        ('6', 1, (45, 59, 25, 69, 28, 83)),
        ('7+neutral', 3, (327, 135, 54, 177, 75, 207, 84, 249)),
        ('6+neutral', 2, (309, 90, 118, 50, 138, 56, 166)),
    ],
)
def test_published_counts_follow_variant_and_frames(folder, variant, num_frames, expected):
    write_ck_sequence(folder, 'S005', '001', 1)
    data = data_config('ck_plus', folder, variant=variant, num_frames=num_frames)
    assert prepare(data).published_counts('train') == expected


def test_published_sequences_add_up():
    assert sum(SEQUENCES.values()) == 327
    assert list(CkPlus.CLASS_NAMES) == ['7', '6', '7+neutral', '6+neutral']
