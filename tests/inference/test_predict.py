import csv
import io
import json
import os
import socket
import struct
import sys
from fractions import Fraction
from pathlib import Path

import av
import matplotlib
import numpy as np
import pytest
from PIL import Image
from small_model import NAMES, faces, model_data

from mtdml_jax.__main__ import main
from mtdml_jax.host.errors import UserError
from mtdml_jax.images.pixels import open_image
from mtdml_jax.images.videos import open_video, timed_frames
from mtdml_jax.inference.faces import find_faces
from mtdml_jax.inference.media import Picture, read_pictures
from mtdml_jax.inference.model import Model
from mtdml_jax.inference.rows import Row, TableWriter

pytestmark = pytest.mark.usefixtures('resnet4')


@pytest.fixture(scope='module')
def model(resnet4):
    return Model(model_data())


@pytest.fixture(scope='module')
def file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp('model') / 'm.safetensors'
    model.save(path)
    return path


@pytest.fixture
def pictures(tmp_path):
    """Two images, one in a folder below, a file that is none, and one of another kind."""
    folder = tmp_path / 'pictures'
    (folder / 'below').mkdir(parents=True)
    first, second = faces(2)
    Image.fromarray(first).save(folder / 'below' / 'face10.png')
    Image.fromarray(second).save(folder / 'below' / 'face9.png')
    (folder / 'broken.png').write_text('text')
    (folder / 'notes.txt').write_text('text')
    return folder


# Options of x264 under which a frame is stored before three that are shown before it.
B_FRAMES = {'x264-params': 'bframes=3:b-adapt=0:scenecut=0'}


def write_video(path, frames, rate=25, codec='mpeg4'):
    """A video of frames [H, W, 3]."""
    with av.open(str(path), 'w') as container:
        stream = container.add_stream(
            codec, rate=rate, options=B_FRAMES if codec != 'mpeg4' else {}
        )
        stream.height, stream.width = frames[0].shape[:2]
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())


def coarse_frames(count):
    """Frames of large squares, which compression leaves as they are."""
    squares = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 1), np.uint8)
    return list(np.kron(squares, np.ones((1, 16, 16, 3), np.uint8)))


def predict(file, *arguments):
    return main(['predict', f'--model={file}', *map(str, arguments)])


def read_rows(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_rows_are_what_the_model_predicts_and_broken_files_say_so(model, file, pictures, capsys):
    assert predict(file, pictures) == 0
    printed = capsys.readouterr()
    nine, ten, broken = read_rows(printed.out)
    assert (nine['path'], ten['path']) == (
        str(pictures / 'below' / 'face9.png'),
        str(pictures / 'below' / 'face10.png'),
    )
    found = model.predict([nine['path'], ten['path']])
    for row, name, probabilities in zip((nine, ten), found.names, found.probabilities, strict=True):
        assert row['class'] == name
        np.testing.assert_allclose([float(row[x]) for x in NAMES], probabilities, atol=1e-5)
        assert row['error'] == row['frame'] == row['time'] == row['x'] == ''
    assert broken['path'] == str(pictures / 'broken.png')
    assert broken['error'] == 'it is not an image of a known format'
    assert broken['class'] == broken['sad'] == ''
    assert printed.err.splitlines()[-1] == '2 faces in 2 pictures; 1 could not be read'


def test_nothing_that_can_be_read_is_exit_code_2(file, pictures, capsys):
    assert predict(file, pictures / 'broken.png', pictures / 'missing.png') == 2
    printed = capsys.readouterr()
    assert [row['error'] for row in read_rows(printed.out)] == [
        'it is not an image of a known format',
        'it cannot be read (No such file or directory)',
    ]
    assert printed.err.splitlines()[-1] == '0 faces in 0 pictures; 2 could not be read'


def test_json_lines_and_embeddings_have_a_row_for_each_picture(model, file, pictures, tmp_path):
    out, array = tmp_path / 'rows.jsonl', tmp_path / 'e.npy'
    assert predict(file, pictures, f'--out={out}', f'--embeddings={array}') == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row['error'] for row in rows] == [None, None, 'it is not an image of a known format']
    found = model.predict([row['path'] for row in rows[:2]])
    for row, probabilities in zip(rows, found.probabilities, strict=False):
        assert list(row['probabilities']) == list(NAMES)
        np.testing.assert_allclose(list(row['probabilities'].values()), probabilities, atol=1e-5)
        assert row['box'] is row['frame'] is None
    assert rows[2]['class'] is rows[2]['probabilities'] is None
    embeddings = np.load(array)
    np.testing.assert_allclose(embeddings[:2], found.embeddings, atol=1e-5)
    assert embeddings.shape == (3, 12)
    assert np.isnan(embeddings[2]).all()


def test_every_third_frame_of_a_video_with_its_time(file, tmp_path, capsys):
    frames, path = coarse_frames(8), tmp_path / 'v.mp4'
    write_video(path, frames)
    assert predict(file, path, '--every=3') == 0
    rows = read_rows(capsys.readouterr().out)
    assert [(row['frame'], row['time']) for row in rows] == [
        ('0', '0.0'),
        ('3', '0.12'),
        ('6', '0.24'),
    ]
    for picture, number in zip(read_pictures([str(path)], every=3), (0, 3, 6), strict=True):
        # Compressed, so nearly.
        difference = np.asarray(picture.image, int) - frames[number]
        assert np.abs(difference).mean() < 5
        assert picture.frame == number


@pytest.mark.parametrize('suffix', ['.mp4', '.mkv', '.avi', '.ts', '.flv'])
def test_seconds_count_from_the_first_frame_though_others_are_decoded_first(tmp_path, suffix):
    path = tmp_path / f'v{suffix}'
    # The grey of a frame tells its number.
    frames = [np.full((32, 32, 3), 12 * number, np.uint8) for number in range(20)]
    write_video(path, frames, codec='libx264')
    with av.open(str(path)) as container:
        kinds = {frame.pict_type for frame in container.decode(video=0)}
    assert av.video.frame.PictureType.B in kinds
    with open_video(path) as container:
        found = [(frame.to_ndarray(format='gray')[9, 9], t) for frame, t in timed_frames(container)]
    greys, times = zip(*found, strict=True)
    np.testing.assert_allclose(greys, 12 * np.arange(20), atol=6)
    np.testing.assert_allclose(times, np.arange(20) / 25, atol=0.002)


@pytest.mark.parametrize('suffix', ['.mp4', '.mkv'])
def test_frames_of_varying_length_have_their_own_times(tmp_path, suffix):
    path, ticks = tmp_path / f'v{suffix}', np.cumsum([3, 1, 7, 2, 2, 30, 1])
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('libx264', rate=25, options=B_FRAMES)
        stream.height = stream.width = 32
        for tick in ticks:
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 4 * tick, np.uint8))
            frame.pts, frame.time_base = int(tick), Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    found = [picture.time for picture in read_pictures([str(path)])]
    np.testing.assert_allclose(found, (ticks - 3) / 25, atol=0.002)


def test_video_is_turned_as_its_telephone_was_held(tmp_path):
    frame, path = np.zeros((32, 48, 3), np.uint8), tmp_path / 'v.mp4'
    frame[:16, :16] = 255  # Bright in the upper left corner.
    write_video(path, [frame])
    (lying,) = read_pictures([str(path)])
    assert lying.image.size == (48, 32)
    # The matrix of the track, by which it is turned to the right.
    upright, turned = (
        struct.pack('>9i', a * 2**16, b * 2**16, 0, c * 2**16, d * 2**16, 0, 0, 0, 2**30)
        for a, b, c, d in ((1, 0, 0, 1), (0, 1, -1, 0))
    )
    content = path.read_bytes()
    place = content.index(upright, content.index(b'tkhd'))
    path.write_bytes(content[:place] + turned + content[place + len(turned) :])
    (standing,) = read_pictures([str(path)])
    assert standing.image.size == (32, 48)
    grey = np.asarray(standing.image.convert('L'))
    assert grey[:8, 24:].min() > 200  # Now in the upper right one.
    assert grey[32:].max() < 50


def test_video_that_breaks_off_keeps_its_frames_and_says_where(file, tmp_path, capsys):
    path = tmp_path / 'v.avi'
    noise = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), np.uint8)
    write_video(path, list(noise))
    path.write_bytes(path.read_bytes()[:30000])
    (tmp_path / 'none.mp4').write_bytes(b'no video')
    assert predict(file, path, tmp_path / 'none.mp4') == 0
    rows = read_rows(capsys.readouterr().out)
    assert 1 <= sum(bool(row['class']) for row in rows) < 20
    assert rows[-1]['path'] == str(tmp_path / 'none.mp4')
    assert rows[-1]['error'].startswith('it cannot be decoded (')


def test_list_on_standard_input_patterns_and_folders_name_pictures(pictures, monkeypatch):
    below = pictures / 'below'
    lines = f'{below / "face9.png"}\r\n\n{below}/face1*.png\n'.encode()
    monkeypatch.setattr(sys, 'stdin', io.TextIOWrapper(io.BytesIO(lines)))
    found = [picture.path for picture in read_pictures(['-', f'{pictures}/**/face*.png'])]
    nine, ten = str(below / 'face9.png'), str(below / 'face10.png')
    assert found == [nine, ten, nine, ten]


def test_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path):
    path = tmp_path / 'face[1].png'
    Image.fromarray(faces(1)[0]).save(path)
    assert [picture.image for picture in read_pictures([str(path)])] == [path]


@pytest.mark.parametrize(
    ('make', 'error'),
    [
        (lambda x: x.mkdir(), 'no image and no video in this folder'),
        (lambda x: x.with_name('*.bmp'), 'no image and no video at this pattern'),
        (lambda x: x.symlink_to('nowhere'), 'it cannot be read (No such file or directory)'),
        (os.mkfifo, 'it is not a file'),
    ],
)
def test_place_without_a_picture_is_a_row_that_says_so(file, tmp_path, capsys, make, error):
    path = make(tmp_path / 'place') or tmp_path / 'place'
    assert predict(file, path) == 2
    (row,) = read_rows(capsys.readouterr().out)
    assert (row['path'], row['error']) == (str(path), error)


def test_names_with_a_colon_are_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / 'v.mp4', coarse_frames(2))
    names = ['a:b.mp4', '2024-05-01T12:30:00.mp4', 'file:x.mp4']
    for name in names:
        (tmp_path / name).write_bytes((tmp_path / 'v.mp4').read_bytes())
    found = [(picture.path, picture.frame, picture.error) for picture in read_pictures(names)]
    assert found == [(name, frame, '') for name in names for frame in (0, 1)]


@pytest.fixture
def server():
    """A port that takes connections."""
    with socket.create_server(('127.0.0.1', 0)) as found:
        found.settimeout(0.05)
        yield found


@pytest.mark.parametrize('name', ['v.mp4', 'i.jpg', 'none'])
def test_address_is_refused_and_nothing_is_sent(file, server, capsys, name):
    address = f'http://127.0.0.1:{server.getsockname()[1]}/{name}'
    assert predict(file, address) == 2
    (row,) = read_rows(capsys.readouterr().out)
    assert row['error'].startswith(
        'it is an address, but files and folders must be on this machine'
    )
    with pytest.raises(UserError, match='is an address'):
        open_image(address)
    with pytest.raises(TimeoutError):
        server.accept()


def test_list_of_addresses_under_the_name_of_a_video_is_not_followed(server, tmp_path):
    address, path = f'http://127.0.0.1:{server.getsockname()[1]}/a.ts', tmp_path / 'v.mp4'
    path.write_text(f'#EXTM3U\n#EXTINF:10,\n{address}\n#EXT-X-ENDLIST\n')
    (picture,) = read_pictures([str(path)])
    assert picture.error.startswith('it cannot be decoded')
    with pytest.raises(TimeoutError):
        server.accept()


def test_video_without_pyav_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'av', None)
    (picture,) = read_pictures([str(tmp_path / 'v.mp4')])
    assert 'pip install' in picture.error


def test_table_tells_the_place_the_class_and_the_probability(model, tmp_path):
    text = io.StringIO()
    writer = TableWriter(text, NAMES)
    found = model.predict(faces(1)[0])._replace(
        labels=np.array([1]), probabilities=np.array([[0.25, 0.75]])
    )
    writer.write(Row(Picture('a.mp4', frame=7, time=0.28), (1, 2, 3, 4), found))
    writer.write(Row(Picture('/long' * 20 + '/b.png'), None, None, 'no face found'))
    first, second = text.getvalue().splitlines()
    assert first.split() == [
        'a.mp4',
        '#7',
        '0.28',
        's',
        'at',
        '1,2',
        '3x4',
        'happy',
        '75.0%',
        '█' * 15,
    ]
    assert second.startswith('…')
    assert '/b.png  no face found' in second


def test_faces_that_a_file_lists_are_rows_of_their_own(model, file, pictures, capsys):
    below, boxes = pictures / 'below', pictures / 'boxes.csv'
    boxes.write_text(
        'path,x,y,w,h\nbelow/face9.png,1,2,9,9\nbelow/face9.png,4,4,12,12\n'
        f'{below}/face10.png,,,,\n'
    )
    assert predict(file, below, f'--faces={boxes}') == 0
    printed = capsys.readouterr()
    first, second, none = read_rows(printed.out)
    nine = below / 'face9.png'
    found = model.predict([nine, nine], boxes=[(1, 2, 9, 9), (4, 4, 12, 12)])
    for row, box, probabilities in zip(
        (first, second), ('1 2 9 9', '4 4 12 12'), found.probabilities, strict=True
    ):
        assert row['path'] == str(nine)
        assert ' '.join(row[x] for x in 'xywh') == box
        np.testing.assert_allclose([float(row[x]) for x in NAMES], probabilities, atol=1e-5)
    assert (none['path'], none['error']) == (str(below / 'face10.png'), 'no face found')
    assert printed.err.splitlines()[-1] == '2 faces in 2 pictures, 1 of them without a face'


def test_faces_are_detected_in_photographs(model, file, tmp_path, capsys):
    photograph = Path(matplotlib.get_data_path()) / 'sample_data' / 'grace_hopper.jpg'
    Image.new('L', (90, 60)).save(tmp_path / 'dark.png')
    assert predict(file, photograph, tmp_path / 'dark.png', '--faces=detect') == 0
    face, dark = read_rows(capsys.readouterr().out)
    box = find_faces(open_image(photograph))[0]
    assert [int(face[x]) for x in 'xywh'] == list(box)
    expected = model.predict(photograph, boxes=[box]).probabilities[0]
    np.testing.assert_allclose([float(face[x]) for x in NAMES], expected, atol=1e-5)
    assert dark['error'] == 'no face found'


def test_annotated_copies_stand_where_their_pictures_do(file, pictures, tmp_path):
    other, video, copies = tmp_path / 'face9.png', tmp_path / 'v.mp4', tmp_path / 'copies'
    Image.fromarray(faces(1)[0]).save(other)
    write_video(video, coarse_frames(3))
    nine = pictures / 'below' / 'face9.png'
    arguments = [pictures, other, nine, video, '--every=2', f'--annotate={copies}']
    assert predict(file, *arguments, f'--out={tmp_path / "rows.csv"}') == 0
    found = sorted(path.relative_to(copies).as_posix() for path in copies.rglob('*.jpg'))
    assert found == [
        'below/face10.jpg',
        'below/face9.jpg',
        'face9-2.jpg',
        'face9.jpg',
        'v.mp4/000000.jpg',
        'v.mp4/000002.jpg',
    ]
    # Larger than the picture, so that bars can be read.
    assert min(open_image(copies / 'face9.jpg').size) > 48


@pytest.mark.parametrize(
    ('argument', 'message'),
    [
        ('--every=0', '--every: expected at least 1, found 0'),
        ('--out=rows.txt', '--out: expected a name that ends in .csv or .jsonl'),
        ('--out=/nowhere/rows.csv', 'it cannot be written (No such file'),
        ('--embeddings=/nowhere/e.npy', 'it cannot be written (No such file'),
        ('--faces=all', "--faces: expected none, detect or a csv file, found 'all'"),
        ('--by=knn', 'no face is enrolled'),
        ('--flip', "unexpected argument '--flip'"),
    ],
)
def test_wrong_argument_is_refused_in_one_line(file, pictures, capsys, argument, message):
    assert predict(file, pictures, argument) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith('mtdml_jax: ')]
    assert message in line


def test_paths_may_stand_before_and_after_options(file, pictures, capsys):
    nine, ten = pictures / 'below' / 'face9.png', pictures / 'below' / 'face10.png'
    assert main(['predict', str(nine), '--model', str(file), str(ten)]) == 0
    rows = read_rows(capsys.readouterr().out)
    assert [row['path'] for row in rows] == [str(nine), str(ten)]


def test_reader_that_goes_away_ends_the_command_quietly(file, pictures, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, 'w') as stdout:
        monkeypatch.setattr(sys, 'stdout', stdout)
        assert predict(file, pictures) == 0
        print('and what comes later goes nowhere', flush=True)
