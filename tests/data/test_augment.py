import numpy as np
import pytest
import tensorflow as tf
from ml_collections import ConfigDict

from mtdml_jax.data.augment import NUM_DRAWS, augment, draw_uniforms

NOTHING = {
    'flip': 0.0,
    'rotation': 0.0,
    'scale': 0.0,
    'shift': 0.0,
    'brightness': 0.0,
    'contrast': 0.0,
    'erasing': 0.0,
    'erasing_area': 0.2,
}
FLIP, ROTATION, SCALE, SHIFT_X, SHIFT_Y, BRIGHTNESS, CONTRAST, ERASE, ERASE_X, ERASE_Y = range(10)


def augment_one(image, draws=None, **strength):
    """Augments one image [H, W] with given random numbers; the others are 0.5, the neutral draw."""
    uniforms = np.full((1, NUM_DRAWS), 0.5, np.float32)
    for number, value in (draws or {}).items():
        uniforms[0, number] = value
    config = ConfigDict({**NOTHING, **strength})
    return augment(tf.constant(image[None, :, :, None]), tf.constant(uniforms), config)[
        0, :, :, 0
    ].numpy()


@pytest.fixture
def image():
    return np.random.default_rng(0).random((8, 8), np.float32)


def test_without_strength_nothing_changes(image):
    draws = dict.fromkeys(range(NUM_DRAWS), 0.01)
    np.testing.assert_array_equal(augment_one(image, draws), image)


def test_flip_mirrors_left_and_right_below_its_probability(image):
    np.testing.assert_allclose(augment_one(image, {FLIP: 0.2}, flip=0.3), image[:, ::-1], atol=1e-6)
    np.testing.assert_allclose(augment_one(image, {FLIP: 0.4}, flip=0.3), image, atol=1e-6)


def test_shift_moves_by_a_share_of_the_side_and_repeats_the_border(image):
    moved = augment_one(image, {SHIFT_X: 1.0}, shift=0.25)
    np.testing.assert_allclose(moved[:, :6], image[:, 2:], atol=1e-5)
    np.testing.assert_allclose(moved[:, 6:], image[:, [7, 7]], atol=1e-5)
    moved = augment_one(image, {SHIFT_Y: 1.0}, shift=0.25)
    np.testing.assert_allclose(moved[:6], image[2:], atol=1e-5)
    np.testing.assert_allclose(moved[6:], image[[7, 7]], atol=1e-5)


def test_rotation_by_ninety_degrees_turns_the_picture_about_its_centre(image):
    turned = augment_one(image, {ROTATION: 1.0}, rotation=90.0)
    np.testing.assert_allclose(turned, np.rot90(image, 1), atol=1e-4)
    both = augment_one(image, {ROTATION: 1.0, FLIP: 0.0}, rotation=90.0, flip=0.5)
    np.testing.assert_allclose(both, np.rot90(image)[:, ::-1], atol=1e-4)


def test_scale_enlarges_or_shrinks_about_the_centre():
    ramp = np.tile(np.arange(9, dtype=np.float32) / 8, (9, 1))
    larger = augment_one(ramp, {SCALE: 1.0}, scale=1.0)
    np.testing.assert_allclose(larger[4], 0.5 + (ramp[4] - 0.5) / 2, atol=1e-5)
    smaller = augment_one(ramp, {SCALE: 0.0}, scale=1.0)
    np.testing.assert_allclose(smaller[4], np.clip(0.5 + (ramp[4] - 0.5) * 2, 0, 1), atol=1e-5)


def test_brightness_adds_and_contrast_stretches_about_the_mean():
    image = np.array([[0.4, 0.6], [0.4, 0.6]], np.float32)
    brighter = augment_one(image, {BRIGHTNESS: 1.0}, brightness=0.1)
    np.testing.assert_allclose(brighter, image + 0.1, atol=1e-6)
    stretched = augment_one(image, {CONTRAST: 1.0}, contrast=0.5)
    np.testing.assert_allclose(stretched, [[0.35, 0.65], [0.35, 0.65]], atol=1e-6)
    flattened = augment_one(image, {CONTRAST: 0.0}, contrast=0.5)
    np.testing.assert_allclose(flattened, [[0.45, 0.55], [0.45, 0.55]], atol=1e-6)


def test_pixels_stay_between_0_and_1(image):
    changed = augment_one(image, {BRIGHTNESS: 1.0, CONTRAST: 1.0}, brightness=0.9, contrast=0.9)
    assert changed.min() >= 0
    assert changed.max() == 1


def test_erasing_fills_a_square_of_the_drawn_area_with_the_mean(image):
    # A choice of 0.1 with a probability of 0.2 gives half of the largest area: a square of 4 pixels.
    draws = {ERASE: 0.1, ERASE_X: 0.5, ERASE_Y: 0.25}
    erased = augment_one(image, draws, erasing=0.2, erasing_area=0.5)
    expected = image.copy()
    expected[0:4, 2:6] = image.mean()
    np.testing.assert_allclose(erased, expected, atol=1e-6)


def test_erasing_spares_images_above_its_probability(image):
    np.testing.assert_array_equal(augment_one(image, {ERASE: 0.9}, erasing=0.8), image)


def test_random_numbers_depend_on_seed_and_step_alone():
    first = draw_uniforms(4, seed=1, step=tf.constant(7, tf.int64))
    np.testing.assert_array_equal(first, draw_uniforms(4, seed=1, step=tf.constant(7, tf.int64)))
    assert np.all(first != draw_uniforms(4, seed=1, step=tf.constant(8, tf.int64)))
    assert np.all(first != draw_uniforms(4, seed=2, step=tf.constant(7, tf.int64)))
