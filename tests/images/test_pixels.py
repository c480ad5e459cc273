"""Inference gives the same pixels as the data pipeline, for every kind of image."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from small_data import CONFIG
from test_image_kinds import BROKEN, KINDS, TURNED, write_kinds

from mtdml_jax.config import load_config
from mtdml_jax.data import decode
from mtdml_jax.host.errors import UserError
from mtdml_jax.images import pixels
from mtdml_jax.images.pixels import Preprocessing, load_pixels

SETTINGS = Preprocessing(20, 1, False, 0.0, (0.5,), (0.25,))
NOISE = np.random.default_rng(0).integers(0, 256, (37, 29, 3), np.uint8)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp('kinds') / 'images'
    write_kinds(path)
    return path


def by_tensorflow(encoded, settings, box=(0, 0, 0, 0)):
    """Returns the pixels that the data pipeline gives the network."""
    names = ('image_size', 'channels', 'crop', 'crop_margin', 'mean', 'std')
    config = load_config(CONFIG, [f'--config.data.{x}={getattr(settings, x)}' for x in names])
    box = tf.constant(box, tf.int32)
    found = decode.load_pixels(tf.constant(encoded), box, config.data, settings.image_size)
    return decode.normalize(found, config.data).numpy()


def difference(encoded, settings, box=None):
    """Returns the largest difference between the two, in pixel values from 0 to 255."""
    expected = by_tensorflow(encoded, settings, box or (0, 0, 0, 0))
    found = load_pixels(encoded, settings, box)
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    return 255 * np.abs(found - expected).max() * max(settings.std)


@pytest.mark.parametrize('channels', [1, 3])
def test_every_kind_of_image_is_the_same_as_in_training(folder, channels):
    settings = SETTINGS._replace(channels=channels)
    for name in [*KINDS, *TURNED]:
        assert difference((folder / name).read_bytes(), settings) < 0.01, name


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, 'PNG')
    return file.getvalue()


@pytest.mark.parametrize('side', [1, 5, 29, 48])
@pytest.mark.parametrize('crop', [True, False])
def test_each_size_and_crop_is_the_same_as_in_training(side, crop):
    settings = Preprocessing(side, 3, crop, 0.1, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
    assert difference(png(NOISE), settings) < 0.01
    assert difference(png(NOISE.transpose(1, 0, 2)), settings) < 0.01


@pytest.mark.parametrize('margin', [0.0, 0.3, -0.2])
def test_square_around_a_box_is_the_same_as_in_training(margin):
    settings = SETTINGS._replace(crop=True, crop_margin=margin)
    for box in [(3, 4, 10, 13), (0, 0, 5, 4), (20, 30, 9, 7), (-5, 40, 12, 3), (1, 1, 90, 2)]:
        assert difference(png(NOISE), settings, box) < 0.01, box


def test_box_is_cut_out_also_where_training_did_not_crop():
    cut = load_pixels(NOISE[4:24, 3:23], SETTINGS)
    np.testing.assert_array_equal(load_pixels(NOISE, SETTINGS, (3, 4, 20, 20)), cut)


def test_array_file_bytes_and_pillow_image_are_one_picture(tmp_path):
    path = tmp_path / 'a.png'
    path.write_bytes(png(NOISE))
    settings = SETTINGS._replace(channels=3)
    expected = load_pixels(NOISE, settings)
    for image in (path, str(path), path.read_bytes(), Image.fromarray(NOISE)):
        np.testing.assert_array_equal(load_pixels(image, settings), expected)
    opaque = np.concatenate([NOISE, np.full((37, 29, 1), 7, np.uint8)], axis=2)
    np.testing.assert_array_equal(load_pixels(opaque, settings), expected)
    np.testing.assert_allclose(load_pixels(NOISE / 255, settings), expected, atol=1e-5)
    grey = load_pixels(NOISE / 255, SETTINGS)
    np.testing.assert_allclose(grey, load_pixels(NOISE, SETTINGS), atol=0.5 / 255 / 0.25 + 1e-5)
    np.testing.assert_array_equal(
        load_pixels(NOISE[..., 0], settings), load_pixels(NOISE[..., :1], settings)
    )


@pytest.mark.parametrize(
    ('image', 'message'),
    [
        (NOISE.astype(np.int64), 'found ndarray of int64'),
        (NOISE.astype(float), r'expected floats from 0 to 1, found 0 to 255; an array .* uint8'),
        (np.full((2, 2), np.nan), 'expected floats from 0 to 1, found nan'),
        (NOISE[None], r'expected an image of shape .*, found \(1, 37, 29, 3\)'),
        (NOISE[:0], r'found \(0, 29, 3\)'),
        (NOISE[..., :2], r'found \(37, 29, 2\)'),
        ('nowhere.png', r'nowhere.png: it cannot be read \(No such file or directory\)'),
        ('zero\0byte', 'zero.byte: it cannot be read'),
        ('/', '/: it is not a file'),
        (b'', 'not an image of a known format'),
        (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', 'not an image of a known format'),
        (None, 'found NoneType of object'),
        ([[1, 2], [3]], 'expected an image, found list'),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(image, message):
    with pytest.raises(UserError, match=message) as found:
        load_pixels(image, SETTINGS)
    assert '\n' not in str(found.value)


def test_picture_that_is_upright_is_not_turned_again(folder):
    for name in TURNED:
        with Image.open(folder / name) as image:
            once = pixels.open_image(image)
            size = image.size
            assert pixels.open_image(image).size == once.size  # The caller's image is unchanged.
        assert name[0] in '5678' or once.size == size, name
        np.testing.assert_array_equal(pixels.open_image(once), once, err_msg=name)


def test_broken_files_are_refused_with_their_name(folder):
    for name in BROKEN:
        with pytest.raises(UserError, match=name):
            load_pixels(folder / name, SETTINGS)


def test_picture_that_would_fill_the_memory_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(pixels, 'MAX_PIXELS', NOISE[..., 0].size - 1)
    with pytest.raises(UserError, match='29 x 37 pixels are more than 1,072 in all'):
        load_pixels(png(NOISE), SETTINGS)
    monkeypatch.setattr(pixels, 'MAX_BYTES', 100)
    (tmp_path / 'a.png').write_bytes(png(NOISE))
    with pytest.raises(UserError, match='it is larger than 100 bytes'):
        load_pixels(tmp_path / 'a.png', SETTINGS)
