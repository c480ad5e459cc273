import numpy as np
import pytest
from PIL import Image, ImageColor

from mtdml_jax.inference.answers import Predictions
from mtdml_jax.inference.drawing import BAR, CHOSEN, FRAME, annotate, draw_boxes

NAMES = ('sad', 'happy', 'neutral', 'angry')
GREY = 128


def predictions(*shares):
    shares = np.array(shares, np.float32)
    return Predictions(NAMES, shares.argmax(axis=1), shares, shares[:, None], shares)


def grey(width, height, mode='RGB'):
    return Image.new('L', (width, height), GREY).convert(mode)


def places(image, colour):
    """(rows, columns) of the pixels of a colour."""
    return np.nonzero(np.all(np.asarray(image) == ImageColor.getrgb(colour), axis=2))


def bar_lengths(image):
    """Number of pixels of each bar, from top to bottom; bars are apart by a row at least."""
    rows, _ = places(image, BAR)
    tops = [row for row in np.unique(rows) if row - 1 not in rows]
    return [np.sum(rows == top) for top in tops]


def touched(image):
    """Left, top, right and bottom of what is drawn on a grey picture."""
    rows, columns = np.nonzero(np.any(np.asarray(image) != GREY, axis=2))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def test_frame_lies_on_the_edge_of_the_box_and_leaves_the_face_and_the_original_alone():
    image = grey(800, 600)
    found = np.asarray(draw_boxes(image, [(100, 150, 300, 200)], ['happy']))
    rows, columns = places(found, FRAME)
    inside = (rows > 150) & (rows < 350)
    assert 100 <= columns[inside].min() <= 104
    assert 395 <= columns[inside].max() < 400
    assert np.all(found[165:335, 115:385] == GREY)
    assert np.all(np.asarray(image) == GREY)


def test_chosen_face_alone_has_the_colour_of_choice():
    boxes = [(50, 200, 100, 100), (400, 200, 100, 100)]
    found = draw_boxes(grey(800, 600), boxes, ['1', '2'], chosen=1)
    assert places(found, CHOSEN)[1].min() >= 400
    assert places(draw_boxes(grey(800, 600), boxes, ['1', '2']), CHOSEN)[0].size == 0


def test_bars_of_the_three_most_probable_classes_are_as_long_as_their_probabilities():
    found = annotate(grey(1000, 800), [(100, 100, 300, 400)], predictions([0.25, 0.5, 0.05, 0.2]))
    lengths = bar_lengths(found)
    assert len(lengths) == 3
    np.testing.assert_allclose(np.divide(lengths[1:], lengths[0]), [0.5, 0.4], atol=0.03)


def test_class_of_probability_zero_has_no_bar():
    found = annotate(grey(1000, 800), [(100, 100, 300, 400)], predictions([0, 1, 0, 0]))
    assert len(bar_lengths(found)) == 1


def test_tiny_picture_is_enlarged_by_a_whole_number_with_its_box():
    found = annotate(grey(48, 40), [(12, 10, 12, 12)], predictions([0.1, 0.9, 0, 0]))
    assert found.size == (48 * 14, 40 * 14)
    rows, columns = places(found, FRAME)
    edge = columns[(rows > 145) & (rows < 300)]
    assert 168 <= edge.min() <= 171
    assert draw_boxes(grey(1, 1), [(0, 0, 1, 1)], ['sad']).size == (640, 640)


def test_picture_of_20_megapixels_keeps_its_size_and_its_bars_can_be_seen():
    found = annotate(grey(5400, 3700), [(100, 100, 90, 90)], predictions([0.1, 0.9, 0, 0]))
    assert found.size == (5400, 3700)
    rows, _ = places(found, BAR)
    # Of two bars; on a screen of 1000 pixels each is 5 pixels high.
    assert len(np.unique(rows)) >= 2 * 5 * 5


@pytest.mark.parametrize(
    ('box', 'other'),
    [
        ((100, 200, 200, 200), (300, 200, 200, 200)),
        ((600, 10, 190, 200), (300, 10, 290, 200)),
        ((300, 395, 200, 200), (510, 395, 250, 200)),
    ],
)
def test_panel_stays_in_the_picture_and_off_every_face(box, other):
    left, top, width, height = other
    alone = annotate(grey(800, 600), [box, other], predictions([1, 0, 0, 0], [0, 1, 0, 0]))
    found = np.asarray(alone)
    assert np.all(found[top + 12 : top + height - 12, left + 12 : left + width - 12] == GREY)
    left, top, width, height = box
    assert np.all(found[top + 12 : top + height - 12, left + 12 : left + width - 12] == GREY)
    assert len(bar_lengths(alone)) >= 1


def test_caption_of_a_face_stands_above_it_or_below_at_the_upper_edge():
    assert touched(draw_boxes(grey(800, 600), [(100, 200, 200, 200)], ['sad']))[1] < 200
    assert touched(draw_boxes(grey(800, 600), [(100, 0, 200, 200)], ['sad']))[3] > 200


@pytest.mark.parametrize('mode', ['L', 'RGBA', 'P', '1', 'LA'])
def test_picture_of_any_mode_becomes_rgb(mode):
    found = annotate(grey(640, 640, mode), [(9.4, 9.6, 300, 300)], predictions([0.2, 0.8, 0, 0]))
    assert found.mode == 'RGB'
    assert len(bar_lengths(found)) == 2


def test_boxes_without_predictions_are_refused():
    with pytest.raises(ValueError, match='shorter'):
        annotate(grey(640, 640), [(0, 0, 9, 9), (0, 0, 5, 5)], predictions([1, 0, 0, 0]))
