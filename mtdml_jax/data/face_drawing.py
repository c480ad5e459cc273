"""Draws small grey faces that show an expression. Pure NumPy, about two milliseconds a face.

A face has three ingredients: a person (a head with its features), facial action units (the muscle
movements of the Facial Action Coding System) and a picture (pose, light, noise, occlusion). All three
are plain numbers, so that a picture is a pure function of (seed, identity, expression, picture).

In face coordinates, x points to the right, y points down, the origin is between the eyes and the mouth,
and the unit is half the height of the head. Angles are in radians. Grey values go from 0 (black) to 1
(white). A shape is an array of signed distances from its edge, negative inside. All functions that
paint or shade change the canvas in place.

References:
    Ekman, Friesen, Hager, Facial Action Coding System: Investigator's Guide, 2002. It defines the action
    units, and has the table of prototypes and major variants of six emotions that EXPRESSIONS follows.
"""

import functools
import math
from collections import namedtuple

import numpy as np

SIZE = 48  # Height and width of a picture in pixels.
_STEPS = np.arange(SIZE, dtype=np.float32) - (SIZE - 1) / 2  # Pixels from the centre.

# Row or column after and before each one; the edge repeats itself.
_NEXT, _LAST = (np.clip(np.arange(SIZE) + step, 0, SIZE - 1) for step in (1, -1))

# Numbers of the random streams. They differ because NumPy treats [a, b] and [a, b, 0] as the same key.
_IDENTITY_STREAM, _PICTURE_STREAM = 1, 2

# fmt: off
# FACS number -> facial action unit. Number 23 includes 24, and 26 includes 27.
ACTION_UNITS = {
    1: 'inner_brow_raiser', 2: 'outer_brow_raiser', 4: 'brow_lowerer',
    5: 'upper_lid_raiser', 6: 'cheek_raiser', 7: 'lid_tightener', 41: 'lid_droop',
    9: 'nose_wrinkler', 10: 'upper_lip_raiser', 12: 'lip_corner_puller', 15: 'lip_corner_depressor',
    17: 'chin_raiser', 20: 'lip_stretcher', 23: 'lip_tightener', 25: 'lips_part', 26: 'jaw_drop',
}
# Range of the intensity of each unit, from 0 (relaxed) to 1 (maximum). Units that are not listed have
# the range RESTING.
RESTING = (0, 0.06)
EXPRESSIONS = {
    'angry': {4: (0.75, 1), 5: (0.1, 0.5), 7: (0.5, 1), 17: (0.1, 0.6), 23: (0.6, 1)},
    'disgust': {4: (0.2, 0.5), 9: (0.7, 1), 10: (0.7, 1), 15: (0.2, 0.6), 25: (0, 0.7)},
    'fear': {1: (0.7, 1), 2: (0.3, 0.6), 4: (0.5, 0.8), 5: (0.7, 1), 20: (0.7, 1), 25: (0.5, 1),
             26: (0.1, 0.35)},
    'happy': {6: (0.5, 1), 12: (0.65, 1), 25: (0, 1), 26: (0, 0.3)},
    'sad': {1: (0.7, 1), 4: (0.4, 0.7), 15: (0.65, 1), 17: (0.2, 0.7), 41: (0.3, 0.8)},
    'surprise': {1: (0.75, 1), 2: (0.75, 1), 5: (0.4, 0.9), 25: (0.5, 1), 26: (0.6, 1)},
    'neutral': {},
}
# Range of each trait of a person. A beard or glasses exist only if the value is positive.
IDENTITY_RANGES = {
    'head_width': (0.70, 0.84), 'jaw_taper': (0.05, 0.32), 'skin': (0.56, 0.86),
    'eye_distance': (0.32, 0.39), 'eye_height': (-0.17, -0.09), 'eye_width': (0.165, 0.205),
    'eye_opening': (0.085, 0.115), 'eye_slant': (-0.03, 0.03), 'iris': (0.04, 0.18),
    'brow_height': (0.21, 0.27), 'brow_length': (0.19, 0.25), 'brow_thickness': (0.022, 0.050),
    'brow_arch': (0.01, 0.06), 'brow_slant': (-0.025, 0.025), 'wrinkles': (0.5, 1.0),
    'nose_length': (0.33, 0.43), 'nose_width': (0.09, 0.15), 'clothes': (0.1, 0.8),
    'mouth_height': (0.50, 0.57), 'mouth_width': (0.24, 0.31), 'mouth_curve': (-0.015, 0.015),
    'lip_fullness': (0.04, 0.08), 'lip_tone': (0.62, 0.80), 'hair': (0.03, 0.60),
    'hairline': (-0.92, -0.58), 'hair_volume': (0.02, 0.16), 'hair_length': (-0.8, 0.9),
    'parting': (-0.3, 0.3), 'fringe': (0.0, 0.5), 'beard': (-1.6, 0.4), 'glasses': (-0.4, 0.1),
}
# Range of each property of a picture. Shifts, scale, sizes and positions are in pixels.
# A patch or a hand exists only if the value is positive.
PICTURE_RANGES = {
    'shift_x': (-0.8, 0.8), 'shift_y': (-0.8, 0.8), 'scale': (22.0, 24.0), 'roll': (-0.08, 0.08),
    'yaw': (-0.14, 0.14), 'pitch': (-0.06, 0.06), 'gaze_x': (-0.05, 0.05), 'gaze_y': (-0.02, 0.02),
    'brow_skew': (-0.03, 0.03), 'mouth_skew': (-0.03, 0.03), 'background': (0.3, 0.6),
    'background_slope': (-0.15, 0.15), 'light_angle': (0, 2 * math.pi), 'light_slope': (0.0, 0.2),
    'gain': (0.88, 1.08), 'gamma': (0.85, 1.15), 'blur': (0.0, 0.14), 'noise': (0.005, 0.035),
    'patch': (-3.0, 1.0), 'patch_size': (3.5, 6.0), 'patch_tone': (0.0, 1.0), 'hand': (-7.0, 1.0),
    'occluder_x': (-20, 20), 'occluder_y': (-20, 20), 'occluder_angle': (0, 2 * math.pi),
}
# fmt: on
# mypy knows only fields that are written out in the call.
ActionUnits = namedtuple('ActionUnits', ACTION_UNITS.values())  # type: ignore[misc]  # As above.
Identity = namedtuple('Identity', IDENTITY_RANGES)  # type: ignore[misc]  # As above.
Picture = namedtuple('Picture', PICTURE_RANGES)  # type: ignore[misc]  # As above.
# Grey values and face coordinates of the pixels, each [H, W] float32; side of a pixel in face units.
Canvas = namedtuple('Canvas', 'grey x y pixel')


def draw_face(seed: int, identity: int, expression: str, picture: int) -> np.ndarray:
    """Draws one picture of one person.

    Pictures of a person with the same number and different expressions have the same pose, light,
    noise and occlusion.

    Args:
        seed: The seed of the whole data set, an integer >= 0.
        identity: The number of the person, an integer >= 0.
        expression: A key of EXPRESSIONS.
        picture: The number of the picture among those of the person, an integer >= 0.

    Returns:
        Grey values, uint8 [48, 48]. The same arguments give the same bits.

    Raises:
        ValueError: If the expression is unknown or a number is negative.
    """
    if expression not in EXPRESSIONS:
        raise ValueError(f'expected an expression of {list(EXPRESSIONS)}, found {expression!r}')
    person = _person(seed, identity)
    rng = np.random.default_rng([seed, _PICTURE_STREAM, identity, picture])
    view = _draw_numbers(rng, Picture, PICTURE_RANGES.values())
    moved = EXPRESSIONS[expression]
    units = _draw_numbers(rng, ActionUnits, [moved.get(number, RESTING) for number in ACTION_UNITS])
    scene = _scene(view)
    _paint_head(scene, person, units)
    _paint_face(_turn(scene, view), person, view, units)
    _paint_fringe(scene, person)
    _occlude(scene, person, view)
    return _expose(scene, view, rng)


@functools.lru_cache(maxsize=16)  # Most callers draw the pictures of a person one after another.
def _person(seed, identity):
    rng = np.random.default_rng([seed, _IDENTITY_STREAM, identity])
    return _draw_numbers(rng, Identity, IDENTITY_RANGES.values())


def _draw_numbers(rng, kind, ranges):
    # These are Python floats, because NumPy's floats would turn the arrays into float64.
    drawn = rng.random(len(ranges)).tolist()
    return kind(*(low + x * (high - low) for x, (low, high) in zip(drawn, ranges, strict=True)))


def _scene(view):
    """Returns the empty picture in coordinates that are shifted, scaled and rolled with the head."""
    column = (_STEPS - view.shift_x) / view.scale
    row = (_STEPS[:, None] - view.shift_y) / view.scale
    cos, sin = math.cos(view.roll), math.sin(view.roll)
    x, y = column * cos + row * sin, row * cos - column * sin
    grey = view.background + view.background_slope * column + np.zeros_like(x)
    return Canvas(grey, x, y, 1 / view.scale)


def _turn(scene, view):
    """Returns the same picture in coordinates of a face that is turned by yaw and pitch."""
    # The angle on an ellipsoid is arcsin(x / radius), here to third order.
    x, y = scene.x / 1.15, scene.y / 1.6
    x, y = 1.15 * (x + x * x * x / 6 - view.yaw), 1.6 * (y + y * y * y / 6 - view.pitch)
    return scene._replace(x=x, y=y)


def _window(canvas, left, top, right, bottom):
    """Returns the part of the picture that contains a box of face coordinates, to paint less."""
    inside = (canvas.x > left) & (canvas.x < right) & (canvas.y > top) & (canvas.y < bottom)
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return Canvas(canvas.grey[box], canvas.x[box], canvas.y[box], canvas.pixel)


def _halves(canvas):
    """Returns the picture with |x| instead of x, so that everything painted is symmetric."""
    return canvas._replace(x=np.abs(canvas.x))


def _clip(values, low, high):
    # This takes half the time of np.clip on small arrays.
    return np.minimum(np.maximum(values, low), high)


def _length(x, y):
    # This takes a third of the time of np.hypot.
    return np.sqrt(x * x + y * y)


def _both(*shapes):
    """Returns the intersection of shapes."""
    return functools.reduce(np.maximum, shapes)


def _ellipse(canvas, x, y, width, height):
    """Returns an ellipse with half axes `width` and `height`, exact to first order near its edge."""
    u2, v2 = ((canvas.x - x) / width) ** 2, ((canvas.y - y) / height) ** 2
    radius = np.sqrt(u2 + v2) + 1e-6
    return radius * (radius - 1) / np.sqrt(u2 / width**2 + v2 / height**2 + 1e-6)


def _cover(canvas, shape, soft=0.0):
    """Returns the share of each pixel that a shape covers; `soft` widens the edge, in face units."""
    return _clip(0.5 - shape / (canvas.pixel + soft), 0, 1)


def _paint(canvas, tone, cover):
    """Blends a tone into the picture with the opacity `cover`."""
    canvas.grey[...] += cover * (tone - canvas.grey)


def _shade(canvas, amount, shape, soft=0.0):
    """Darkens the pixels of a shape by the share `amount`, or brightens them if it is negative."""
    canvas.grey[...] *= 1 - amount * _cover(canvas, shape, soft)


def _wrinkle(canvas, amount, x0, y0, x1, y1):
    """Shades a straight segment."""
    if amount < 0.03:
        return
    x, y, dx, dy = canvas.x - x0, canvas.y - y0, x1 - x0, y1 - y0
    share = _clip((x * dx + y * dy) / (dx * dx + dy * dy), 0, 1)
    _shade(canvas, amount, _length(x - share * dx, y - share * dy) - 0.012, 0.03)


def _paint_head(scene, person, units):
    """Paints the neck, the clothes, the ears, the hair behind the head, and the head with its beard."""
    x, y, wide = np.abs(scene.x), scene.y, person.head_width + person.hair_volume
    cap = _ellipse(scene, 0, -0.12, wide, 0.86 + person.hair_volume)
    end = 1.2 * person.hair_length if person.hair_length > 0 else -0.05
    hair = _both(np.minimum(cap, _both(x - wide, -0.12 - y)), y - end)
    ears = _ellipse(_halves(scene), person.head_width, 0.02, 0.09, 0.15)
    width = person.head_width * (1 - person.jaw_taper * _clip(y, 0, 1) ** 2)
    radius2 = (x / width) ** 2 + (y / np.where(y > 0, 0.97 + 0.1 * units.jaw_drop, 0.97)) ** 2
    head = (np.sqrt(radius2) - 1) * person.head_width
    _paint(scene, 0.72 * person.skin, _cover(scene, _both(x - 0.42, 0.5 - y)))
    _paint(scene, person.clothes, _cover(scene, 1.12 + 0.35 * x * x - y))
    _paint(scene, 0.82 * person.skin, _cover(scene, ears))
    _paint(scene, person.hair, _cover(scene, hair))
    _paint(scene, person.skin * (1.05 - 0.22 * radius2 * radius2), _cover(scene, head))
    if person.beard > 0:
        beard = _both(head, 0.45 - 0.9 * np.maximum(x - 0.35, 0) - y)
        _paint(scene, 0.8 * person.hair, (0.4 + person.beard) * _cover(scene, beard, 0.08))


def _paint_face(face, person, view, units):
    eye_y = person.eye_height
    _paint_cheeks(_halves(_window(face, -0.85, eye_y - 0.62, 0.85, 0.75)), person, units)
    eyes = _window(face, -0.75, eye_y - 0.55, 0.75, eye_y + 0.3)
    side, eyes = np.sign(eyes.x), _halves(eyes)
    _paint_eyes(eyes, person, units, view.gaze_x * side, view.gaze_y)
    _paint_brows(eyes, person, units, view.brow_skew * side)
    if person.glasses > 0:
        rim = np.abs(_ellipse(eyes, person.eye_distance, eye_y + 0.03, 0.27, 0.21)) - 0.014
        bridge = _both(np.abs(eyes.y - eye_y) - 0.014, eyes.x - 0.11)
        _paint(eyes, 0.12, 0.85 * _cover(eyes, np.minimum(rim, bridge)))
    _paint_nose(_halves(_window(face, -0.3, eye_y - 0.1, 0.3, 0.5)), person, units)
    _paint_mouth(_window(face, -0.75, 0.1, 0.75, 1.2), person, units, view.mouth_skew)


def _paint_cheeks(half, person, units):
    """Shades the eye sockets, the cheeks, and the wrinkles of cheeks, nose and forehead."""
    eye_x, eye_y, deep = person.eye_distance, person.eye_height, person.wrinkles
    smile, nose, up = units.lip_corner_puller, units.nose_wrinkler, units.outer_brow_raiser
    cheek = 0.7 * units.cheek_raiser + 0.3 * smile
    _shade(half, 0.16, _ellipse(half, eye_x, eye_y - 0.05, 0.24, 0.15), 0.15)
    _shade(half, -0.16 * cheek, _ellipse(half, 0.40, 0.20 - 0.04 * cheek, 0.19, 0.11), 0.15)
    fold = deep * (0.12 + 0.45 * max(smile, units.upper_lip_raiser, 0.7 * nose))
    end = person.mouth_width + 0.08 + 0.10 * smile + 0.05 * units.lip_stretcher
    _wrinkle(half, fold, person.nose_width + 0.06, 0.20, end, person.mouth_height - 0.06)
    furrow = deep * 0.6 * max(units.brow_lowerer - 0.3 * units.inner_brow_raiser, 0.8 * nose)
    _wrinkle(half, furrow, 0.055, eye_y - 0.27, 0.065, eye_y - 0.10)
    _wrinkle(half, deep * 0.5 * nose, 0.0, eye_y + 0.07, 0.11, eye_y + 0.13)
    crow = deep * 0.45 * units.cheek_raiser
    _wrinkle(half, crow, eye_x + 0.22, eye_y + 0.02, eye_x + 0.30, eye_y + 0.07)
    raised = deep * 0.2 * (units.inner_brow_raiser + up)
    for height in (eye_y - 0.47, eye_y - 0.57):
        _wrinkle(half, raised, -1.0, height, 0.18 + 0.22 * up, height)


def _paint_eyes(half, person, units, gaze_x, gaze_y):
    squeeze = max(units.cheek_raiser, units.lid_tightener, units.nose_wrinkler)
    raised, droop = units.upper_lid_raiser, units.lid_droop
    upper = person.eye_opening * (1 + 0.65 * raised - 0.2 * squeeze - 0.5 * droop)
    lower = person.eye_opening * (0.8 + 0.15 * raised - 0.55 * squeeze)
    x = half.x - person.eye_distance
    p = x / person.eye_width
    y = half.y - person.eye_height + (person.eye_slant - 0.03 * droop) * p
    arch = np.sqrt(np.maximum(1 - p * p, 0))
    ends = (np.abs(p) - 1) * person.eye_width
    opening = _cover(half, _both(-upper * arch - y, y - lower * arch, ends))
    iris = _length(x - gaze_x, y + 0.02 - gaze_y) - 0.082
    lashes = _both(np.abs(y + upper * arch) - 0.018, ends - 0.02)
    _paint(half, 0.35 + 0.6 * person.skin, opening)
    _paint(half, person.iris, opening * _cover(half, iris))
    _paint(half, 0.25 * person.skin, 0.85 * _cover(half, lashes))
    _shade(half, 0.25 + 0.2 * squeeze, _both(np.abs(y - lower * arch) - 0.008, ends))


def _paint_brows(half, person, units, skew):
    raised, lowered = units.inner_brow_raiser, units.brow_lowerer
    inner = 0.13 * lowered * (1 - 0.7 * raised) + 0.06 * units.nose_wrinkler - 0.15 * raised
    outer = 0.03 * lowered - 0.13 * units.outer_brow_raiser - person.brow_slant
    arch = person.brow_arch + 0.05 * units.outer_brow_raiser - 0.05 * lowered
    t = (half.x - 0.12 + 0.05 * lowered) / person.brow_length - 1
    share = _clip((t + 1) / 2, 0, 1)
    line = person.eye_height - person.brow_height + inner + skew
    line = line + (outer - inner) * share - arch * (1 - t * t)
    thickness = person.brow_thickness * (1 - 0.5 * share)
    brow = _both(np.abs(half.y - line) - thickness, (np.abs(t) - 1) * person.brow_length)
    _paint(half, 0.6 * min(person.hair, 0.8 * person.skin), 0.9 * _cover(half, brow))


def _paint_nose(half, person, units):
    x, y, top = half.x, half.y, person.eye_height
    tip = top + person.nose_length - 0.04 * units.nose_wrinkler
    wing = person.nose_width * (1 + 0.2 * units.nose_wrinkler)
    above = _both(top - y, y - tip)
    flank = np.abs(x - 0.07 - 0.5 * (wing - 0.07) / person.nose_length * (y - top)) - 0.02
    _shade(half, -0.10, _both(x - 0.05, above), 0.06)
    _shade(half, 0.14, _both(flank, above), 0.04)
    _shade(half, 0.6, _ellipse(half, 0.55 * wing, tip + 0.02, 0.42 * wing, 0.026), 0.01)
    _shade(half, 0.25, _both(x - wing, np.abs(y - tip - 0.03) - 0.02), 0.03)


def _paint_mouth(face, person, units, skew):
    y, smile, stretch, jaw = face.y, units.lip_corner_puller, units.lip_stretcher, units.jaw_drop
    tight, frown = units.lip_tightener, units.lip_corner_depressor
    width = person.mouth_width * (1 + 0.3 * smile + 0.35 * stretch - 0.25 * tight - 0.3 * jaw)
    p = face.x / width
    ends = (np.abs(p) - 1) * width
    profile = np.maximum(1 - p * p, 0) ** (0.5 - 0.25 * stretch)
    corners = person.mouth_curve - 0.16 * smile + 0.15 * frown + 0.03 * stretch
    line = person.mouth_height + corners * (np.minimum(p * p, 1.4) - 0.4) + skew * p
    line -= (0.03 * units.chin_raiser + 0.06 * units.upper_lip_raiser) * profile
    parted = units.lips_part * (0.045 + 0.05 * max(smile, stretch))
    top = line - (0.5 * parted + 0.03 * jaw) * profile
    bottom = line + (0.5 * parted + 0.3 * jaw) * profile
    lip = person.lip_fullness * (1 - 0.7 * tight) * profile
    opening = _both(top - y, y - bottom, ends)
    lips = _both(top - lip - y, y - bottom - 1.2 * lip, ends)
    _paint(face, person.lip_tone * person.skin, _cover(face, lips, 0.01))
    _paint(face, 0.06, _cover(face, opening))
    _paint(face, 0.5 + 0.45 * person.skin, 0.9 * _cover(face, _both(opening, y - top - 0.07)))
    if parted + jaw < 0.07:
        _paint(face, 0.1, 0.8 * _cover(face, _both(np.abs(y - line) - 0.014, ends - 0.02)))
    below = _both(np.abs(y - bottom - 1.2 * lip - 0.06) - 0.02, np.abs(face.x) - 0.15)
    _shade(face, 0.12 + 0.2 * units.chin_raiser, below, 0.04)


def _paint_fringe(scene, person):
    head = (_length(scene.x / person.head_width, scene.y / 0.97) - 1) * person.head_width - 0.03
    edge = person.hairline + person.fringe * (scene.x - person.parting) ** 2
    _paint(scene, person.hair, _cover(scene, _both(scene.y - edge, head), 0.03))


def _occlude(scene, person, view):
    """Covers a small part of some pictures: by a patch of any tone, by two fingers, or by both."""
    x, y = scene.x - view.occluder_x * scene.pixel, scene.y - view.occluder_y * scene.pixel
    cos, sin = math.cos(view.occluder_angle), math.sin(view.occluder_angle)
    along, across = x * cos + y * sin, np.abs(y * cos - x * sin)
    if view.patch > 0:
        patch = _both(np.abs(along), across) - view.patch_size * scene.pixel
        _paint(scene, view.patch_tone, _cover(scene, patch))
    if view.hand > 0:
        across = np.abs(across - 0.11)
        fingers = _length(np.minimum(along, 0), across) - 0.11
        _paint(scene, person.skin * (1 - 18 * across * across), _cover(scene, fingers))


def _expose(scene, view, rng):
    """Applies light from one side, gain, gamma, blur and noise; returns the grey values as bytes."""
    toward = math.cos(view.light_angle) * scene.x + math.sin(view.light_angle) * scene.y
    grey = scene.grey * (1 + view.light_slope * _clip(toward, -1.3, 1.3))
    grey = view.gain * _clip(grey, 0, 1.5) ** view.gamma
    neighbours = grey[_NEXT] + grey[_LAST] + grey[:, _NEXT] + grey[:, _LAST]
    grey = grey + view.blur * (neighbours - 4 * grey)
    grey = grey + view.noise * rng.standard_normal(grey.shape, dtype=np.float32)
    return np.round(255 * _clip(grey, 0, 1)).astype(np.uint8)
