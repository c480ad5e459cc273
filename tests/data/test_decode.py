import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from small_data import CONFIG

from mtdml_jax.config import load_config
from mtdml_jax.data.decode import crop_square, decode_image, load_pixels, normalize

UNKNOWN = (0, 0, 0, 0)


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def data_of(**options):
    return load_config(
        CONFIG, [f'--config.data.{key}={value}' for key, value in options.items()]
    ).data


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('mode', ['L', 'RGB', 'P'])
@pytest.mark.parametrize('kind', ['PNG', 'TIFF', 'BMP', 'GIF'])
def test_formats_without_loss_are_decoded_to_the_pixels_that_were_saved(kind, mode, channels):
    grey = np.arange(0, 240, 4, np.uint8).reshape(6, 10)
    image = Image.fromarray(grey).convert(mode)
    pixels = decode_image(tf.constant(encode(image, kind)), channels)
    np.testing.assert_array_equal(pixels, np.repeat(grey[:, :, None], channels, axis=2))


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('mode', ['L', 'RGB'])
def test_jpeg_is_decoded_to_nearly_the_pixels_that_were_saved(mode, channels):
    image = Image.new(mode, (16, 8), 90 if mode == 'L' else (90, 90, 90))
    pixels = decode_image(tf.constant(encode(image, 'JPEG')), channels)
    assert pixels.shape == (8, 16, channels)
    np.testing.assert_allclose(pixels, 90, atol=2)


@pytest.mark.parametrize('channels', [1, 3])
def test_grey_of_16_bits_keeps_its_upper_8(channels):
    grey = np.array([[0, 255, 256], [25_600, 32_768, 65_535]], np.uint16)
    found = decode_image(encode(Image.fromarray(grey), 'TIFF'), channels)
    expected = np.array([[0, 0, 1], [100, 128, 255]])[..., None]
    np.testing.assert_array_equal(found, np.broadcast_to(expected, (2, 3, channels)))


def test_red_becomes_the_grey_of_its_luminance():
    red = Image.new('RGB', (2, 2), (255, 0, 0))
    for kind in ('PNG', 'BMP'):
        np.testing.assert_allclose(decode_image(tf.constant(encode(red, kind)), 1), 76, atol=1)


@pytest.mark.parametrize(
    ('size', 'box', 'margin', 'expected'),
    [
        # (height, width), then (top, left, side).
        ((20, 30), UNKNOWN, 0.0, (0, 5, 20)),
        ((31, 20), UNKNOWN, 0.0, (5, 0, 20)),
        ((20, 30), UNKNOWN, -0.1, (2, 7, 16)),
        ((20, 30), UNKNOWN, 0.5, (0, 5, 20)),
        # Left 4, top 6, width 8, height 4: the center is x = 8, y = 8.
        ((20, 30), (4, 6, 8, 4), 0.0, (4, 4, 8)),
        ((20, 30), (4, 6, 8, 4), 0.25, (2, 2, 12)),
        # The crop crosses the left and the upper edge, so it is moved inside.
        ((20, 30), (0, 0, 8, 8), 0.25, (0, 0, 12)),
        ((20, 30), (24, 14, 6, 6), 0.5, (8, 18, 12)),
        # The crop is larger than the image.
        ((20, 30), (5, 2, 18, 10), 0.5, (0, 4, 20)),
    ],
)
def test_square_is_centred_on_the_face_inside_the_image(size, box, margin, expected):
    rows, columns = np.indices(size)
    pixels = np.stack([rows, columns], axis=-1)
    cropped = crop_square(tf.constant(pixels), tf.constant(box), margin).numpy()
    top, left, side = expected
    np.testing.assert_array_equal(cropped, pixels[top : top + side, left : left + side])


def test_image_is_stretched_or_cropped_then_resized():
    # The image is 9 x 27: the left third is black, the middle third grey, the right third white.
    pixels = np.repeat(np.repeat(np.array([0, 100, 255], np.uint8), 9)[None], 9, axis=0)
    encoded = tf.constant(encode(Image.fromarray(pixels), 'PNG'))
    stretched = load_pixels(encoded, tf.constant(UNKNOWN), data_of(), 3)
    np.testing.assert_allclose(stretched[:, :, 0] * 255, [[0, 100, 255]] * 3, atol=25)
    cropped = load_pixels(encoded, tf.constant(UNKNOWN), data_of(crop=True), 3)
    np.testing.assert_allclose(cropped * 255, 100, rtol=1e-6)


def test_each_channel_is_normalised_by_its_own_mean_and_deviation():
    data = data_of(mean=(0.5, 0.0, 1.0), std=(0.25, 1.0, 2.0))
    found = normalize(tf.constant([[[1.0, 0.5, 0.0]]]), data)
    np.testing.assert_allclose(found, [[[2.0, 0.5, -0.5]]])
