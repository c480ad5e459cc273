"""Draws a model's predictions for faces into the picture."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from mtdml_jax.inference.answers import Predictions

# Pixels of the longest side; a smaller picture is enlarged to at least this, so that text is readable.
SMALLEST = 640
MOST_CLASSES = 3
# Orange and sky blue of Okabe and Ito, which people with any kind of colour vision can tell apart.
CHOSEN, FRAME, BAR, INK, GROUND = '#e69f00', '#ffffff', '#56b4e9', '#ffffff', (20, 26, 33, 200)

Box = Sequence[float]
# A text, and the share from 0 to 1 that a bar beside it shows; None for no bar.
Row = tuple[str, float | None]


def annotate(image: Image.Image, boxes: Sequence[Box], predictions: Predictions) -> Image.Image:
    """Returns a copy of a picture with a frame around each face and its most probable classes beside it.

    Args:
      image: the picture, of any mode and size; a small one is enlarged by an integer factor.
      boxes: left, top, width and height of each face in pixels, [N, 4].
      predictions: predictions for the N faces.

    Returns:
      An image of mode RGB.
    """
    panels = []
    for shares in predictions.probabilities:
        best = (-shares).argsort(kind='stable')[:MOST_CLASSES]
        panels.append([(predictions.class_names[i], float(shares[i])) for i in best])
    return _draw(image, boxes, panels, None)


def draw_boxes(
    image: Image.Image, boxes: Sequence[Box], captions: Sequence[str], chosen: int | None = None
) -> Image.Image:
    """Returns a copy of a picture with a frame and a caption at each face, in the style of `annotate`.

    Args:
      image: see `annotate`.
      boxes: see `annotate`.
      captions: one line for each face, [N].
      chosen: number of the face whose frame is highlighted; None for no highlight.
    """
    return _draw(image, boxes, [[(caption, None)] for caption in captions], chosen)


def _draw(image, boxes, panels, chosen):
    factor = -(-SMALLEST // max(image.size))
    canvas = image.convert('RGB')
    if factor > 1:
        canvas = canvas.resize([factor * length for length in image.size], Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(canvas, 'RGBA')
    frames = [
        tuple(round(factor * x) for x in (left, top, left + width, top + height))
        for left, top, width, height in boxes
    ]
    for number, frame in enumerate(frames):
        _draw_frame(draw, frame, CHOSEN if number == chosen else FRAME, max(canvas.size) // 200)
    taken = list(frames)
    for frame, rows in zip(frames, panels, strict=True):
        taken.append(_draw_panel(draw, canvas.size, frame, rows, taken))
    return canvas


def _draw_frame(draw, frame, colour, width):
    """Draws a line with a dark line on each side, which is visible on any background."""
    left, top, right, bottom = frame
    for inset, thickness, fill in ((0, 2 * width, GROUND), (width // 2, width, colour)):
        corners = left + inset, top + inset, right - 1 - inset, bottom - 1 - inset
        if corners[0] < corners[2] and corners[1] < corners[3]:
            draw.rectangle(corners, outline=fill, width=thickness)


def _draw_panel(draw, size, frame, rows: list[Row], taken):
    """Draws the rows beside the frame; returns the rectangle that they cover."""
    longest, height = max(size), frame[3] - frame[1]
    em = int(min(max(height / 8, longest / 44), longest / 28))
    font = ImageFont.load_default(em)
    pad, line, bar = em // 3, round(1.35 * em), 4 * em
    texts = max(draw.textlength(text, font) for text, _ in rows)
    has_bars = rows[0][1] is not None
    numbers = draw.textlength('100 %', font) if has_bars else 0
    width = round(texts + has_bars * (bar + 2 * pad) + numbers) + 2 * pad
    place = _find_place(size, frame, (width, line * len(rows) + pad), taken, not has_bars)
    left, top = place[0] + pad, place[1] + pad // 2
    draw.rectangle((place[0], place[1], place[2] - 1, place[3] - 1), fill=GROUND)
    for number, (text, share) in enumerate(rows):
        middle = top + line * number + line // 2
        draw.text((left, middle), text, INK, font, anchor='lm')
        if share is not None:
            start = round(left + texts + pad)
            half = em // 4
            draw.rectangle((start, middle - half, start + bar, middle + half), fill='#ffffff40')
            if share > 0:
                end = start + round(bar * share)
                draw.rectangle((start, middle - half, end, middle + half), fill=BAR)
            draw.text((place[2] - pad, middle), f'{100 * share:.0f} %', INK, font, 'rm')
    return place


def _find_place(size, frame, panel, taken, above_first):
    """Returns the corners of a panel beside the frame that overlaps least with the taken rectangles."""
    left, top, right, bottom = frame
    width, height = panel
    beside = [(right, top), (left - width, top)]
    above = [(left, top - height), (left, bottom)]
    inside = [(left, bottom - height)]
    found = []
    for x, y in (above + beside if above_first else beside + above) + inside:
        x, y = (
            max(min(start, most - length), 0)
            for start, most, length in zip((x, y), size, panel, strict=True)
        )
        found.append((x, y, x + width, y + height))
    return min(found, key=lambda place: sum(_overlap(place, other) for other in taken))


def _overlap(one, other):
    """Returns the area of the overlap of two rectangles, in pixels."""
    sides = (min(one[i + 2], other[i + 2]) - max(one[i], other[i]) for i in (0, 1))
    width, height = (max(side, 0) for side in sides)
    return width * height
