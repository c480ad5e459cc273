import sys

import av
import numpy as np
import pytest
import tensorflow_datasets as tfds
from face_trees import (
    data_config,
    read_records,
    warnings_of,
    write_corrupt,
    write_image,
    write_mmi_session,
)

from mtdml_jax.data.prepare import prepare
from mtdml_jax.host.errors import UserError


@pytest.fixture
def folder(tmp_path):
    return tmp_path / 'MMI'


def write_avi(path, values):
    """Writes a lossless avi of 32x24 pixels that has one frame for each grey value."""
    with av.open(path, 'w') as container:
        stream = container.add_stream('ffv1', rate=24)
        stream.width, stream.height, stream.pix_fmt = 32, 24, 'gray'
        for value in values:
            frame = av.VideoFrame.from_ndarray(np.full((24, 32), value, np.uint8), format='gray')
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_middle_frames_of_frontal_expressions_are_taken(folder):
    # There are 12 frames, 0.png to 11.png. Sorted as text, 10.png would come before 2.png.
    write_mmi_session(folder, 7, 'S053-001', 4, num_frames=12)
    write_mmi_session(folder, 8, 'S054-002', 1, view=2, num_frames=3, tag='METATAG')
    write_mmi_session(folder, 9, 'S054-003', 1, view=1)
    write_mmi_session(folder, 10, 'S054-004', None)
    write_mmi_session(folder, 11, 'S054-005', 7)
    assert read_records('mmi', folder) == {
        'train': {
            'Sessions/7/4.png': ('happy', 'S053'),
            'Sessions/7/5.png': ('happy', 'S053'),
            'Sessions/7/6.png': ('happy', 'S053'),
            'Sessions/8/0.png': ('anger', 'S054'),
            'Sessions/8/1.png': ('anger', 'S054'),
            'Sessions/8/2.png': ('anger', 'S054'),
        }
    }


def test_frames_may_lie_one_folder_below_and_emotion_and_subject_in_session_xml(folder):
    session = write_mmi_session(folder, 1, 'clip', None, num_frames=0)
    (session / 'session.xml').write_text(
        '<Session><subject id="12"/><Track view="0"/><metatag name="emotion" value=" 6 "/></Session>'
    )
    write_image(session / 'frames' / '0001.jpg')
    found = read_records('mmi', folder, num_frames=1)
    assert found == {'train': {'Sessions/1/frames/0001.jpg': ('surprise', '12')}}


def test_frames_of_an_avi_are_decoded_beside_extracted_ones(folder, caplog):
    write_avi(write_mmi_session(folder, 1, 'S001-001', 2, num_frames=0) / 'S001-001.avi', range(7))
    write_mmi_session(folder, 2, 'S002-001', 3, num_frames=3)
    builder = prepare(data_config('mmi', folder, num_frames=2))
    images = {
        example['file_name'].decode(): example['image']
        for example in tfds.as_numpy(builder.as_dataset('train'))
    }
    # These are the two frames in the middle of 0, ..., 6.
    expected = {'Sessions/1/S001-001.avi:2': 2, 'Sessions/1/S001-001.avi:3': 3}
    expected |= {'Sessions/2/0.png': 90, 'Sessions/2/1.png': 91}
    assert images.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(images[name], np.full_like(images[name], value))
    assert images['Sessions/1/S001-001.avi:2'].shape == (24, 32, 3)
    warning, classes = warnings_of(caplog)
    assert 'whole frames of 1 videos are used' in warning
    assert 'ffmpeg -i S001-001.avi %04d.png' in warning
    assert classes == 'mmi: no images of the classes anger, happy, sadness, surprise'


def test_missing_and_corrupt_frames_and_videos_are_left_out_and_named(folder, caplog):
    session = write_mmi_session(folder, 1, 'S001-001', 2, num_frames=3)
    write_corrupt(session / '1.png')
    write_mmi_session(folder, 2, 'S002-001', 3, num_frames=0)
    broken = write_mmi_session(folder, 3, 'S003-001', 3, num_frames=0) / 'S003-001.avi'
    broken.write_bytes(b'RIFF, and no more')
    write_mmi_session(folder, 4, 'S004-001', 3, num_frames=2)
    found = read_records('mmi', folder)
    assert set(found['train']) == {'Sessions/1/0.png', 'Sessions/1/2.png'}
    short, _, _, unusable = warnings_of(caplog)
    assert short == 'mmi: 1 sequences are left out because they have fewer than 3 frames: 4'
    assert unusable.endswith(
        '3 of 5 images are missing or cannot be decoded: Sessions/1/1.png, '
        'Sessions/2/S002-001.avi, Sessions/3/S003-001.avi'
    )


def test_video_without_pyav_says_what_to_install(folder, monkeypatch):
    write_avi(write_mmi_session(folder, 1, 'S001-001', 2, num_frames=0) / 'S001-001.avi', [1])
    monkeypatch.setitem(sys.modules, 'av', None)
    with pytest.raises(UserError, match=r'S001-001\.avi: .*pip install av; or .*ffmpeg -i S001'):
        read_records('mmi', folder)


def test_video_has_no_files_to_read_as_needed(folder):
    write_avi(write_mmi_session(folder, 1, 'S001-001', 2, num_frames=0) / 'S001-001.avi', [1])
    with pytest.raises(
        UserError, match=r'in_memory=False: expected image files, found .*\.avi; ex'
    ):
        read_records('mmi', folder, in_memory=False)


@pytest.mark.parametrize(
    ('name', 'text', 'message'),
    [
        ('S001-001.xml', '<Clip', r'S001-001\.xml: expected XML'),
        ('b.xml', '<a><Metatag Name="Emotion" Value="5"/></a>', 'expected one emotion, found 2, 5'),
    ],
)
def test_wrong_xml_is_named(folder, name, text, message):
    session = write_mmi_session(folder, 1, 'S001-001', 2)
    (session / name).write_text(text)
    with pytest.raises(UserError, match=f'Sessions/1.*{message}'):
        read_records('mmi', folder)


def test_session_without_a_subject_is_named(folder):
    write_mmi_session(folder, 1, 'clip', 2)
    with pytest.raises(UserError, match=r'Sessions/1: expected a file such as S053-001\.xml'):
        read_records('mmi', folder)


def test_frames_in_two_folders_are_named(folder):
    session = write_mmi_session(folder, 1, 'S001-001', 2)
    write_image(session / 'faces' / '0001.png')
    with pytest.raises(UserError, match='Sessions/1: expected the frames in one folder'):
        read_records('mmi', folder)


def test_sessions_without_expressions_are_refused(folder):
    write_mmi_session(folder, 1, 'S001-001', 2, view=1)
    with pytest.raises(UserError, match='expected sessions with an emotion from 1 to 6 and a view'):
        read_records('mmi', folder)
