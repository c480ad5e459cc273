"""Pieces of HTML for the demo page. Names are escaped, so they never act as HTML."""

import base64
import io
import math
from collections.abc import Sequence
from html import escape

from PIL import Image

from mtdml_jax.inference.answers import Predictions
from mtdml_jax.inference.verdicts import Verdict
from mtdml_jax.loss.distances import from_squares
from mtdml_jax.models.model_file import Settings

EXPLANATION = (
    'Every slice of the embedding has learned at a threshold of its own: a face is to be nearer to its '
    'expression than to any other, by at least the threshold. <span class="own key"></span> is the '
    'distance to the expression that the slice names, <span class="rival key"></span> to the next one, '
    'and the <span class="reach key"></span> bar is as long as the threshold. Where the ring lies '
    'beyond the bar, the slice is sure.'
)
STYLE = """
.face-page { --own: #0072b2; --rival: #b4460f; --reach: #9cc3de; --kept: #00734f;
  --muted: #5d6b7a; font-variant-numeric: tabular-nums; line-height: 1.5; }
.dark .face-page { --own: #56b4e9; --rival: #f0a35e; --reach: #2d5f7d; --kept: #4fc79d;
  --muted: #a9b4bf; }
.face-page h1 { margin: 4px 0 4px; font-size: 28px; line-height: 1.2; font-weight: 650;
  letter-spacing: -.01em; }
.face-page h2 { margin: 4px 0 6px; font-size: 17px; font-weight: 640; }
.face-page p { margin: 0 0 8px; max-width: 100ch; color: var(--muted); }
.face-page img { display: block; margin: 0 auto; max-width: 100%; max-height: 560px;
  border-radius: 8px; }
.face-page .message { margin: 0; padding: 8px 12px; border-left: 4px solid var(--own);
  border-radius: 4px; background: var(--background-fill-secondary); color: var(--body-text-color);
  overflow-wrap: anywhere; }
.face-page .alarm { border-left-color: var(--rival); }
.face-page .scroll { overflow-x: auto; }
.face-page table { width: 100%; border-collapse: collapse; font-size: 15px; }
.face-page th, .face-page td { padding: 5px 14px 5px 0; text-align: left; white-space: nowrap; border: 0;
  font-weight: 400; }
.face-page tbody tr + tr > * { border-top: 1px solid var(--border-color-primary); }
.face-page thead th { color: var(--muted); font-size: 13.5px; }
.face-page .number { text-align: right; }
.face-page .best > * { font-weight: 680; }
.face-page .wide { width: 100%; }
.face-page .bar { height: 10px; min-width: 60px; border-radius: 5px; overflow: hidden;
  background: var(--border-color-primary); }
.face-page .bar i { display: block; height: 100%; background: var(--own); }
.face-page .track { position: relative; height: 20px; min-width: 220px;
  background: linear-gradient(var(--border-color-primary), var(--border-color-primary))
  center / 100% 2px no-repeat; }
.face-page .track > * { position: absolute; }
.face-page .reach { top: 5px; height: 10px; border-radius: 2px; background: var(--reach); }
.face-page .own, .face-page .rival { top: 3px; width: 14px; height: 14px; margin-left: -7px;
  border-radius: 50%; border: 3px solid var(--own); background: var(--own); }
.face-page .rival { border-color: var(--rival); background: var(--body-background-fill); }
.face-page .key { display: inline-block; margin: 0 2px; vertical-align: -2px; }
.face-page .reach.key { width: 26px; height: 10px; vertical-align: 0; }
.face-page .kept { color: var(--kept); font-weight: 640; }
.face-page .broken { color: var(--rival); font-weight: 640; }
"""


def show_header(settings: Settings) -> str:
    """Returns the style of the page, its title, and notes on the model and on uploaded pictures."""
    names = ', '.join(map(escape, settings.class_names))
    return f'<style>{STYLE}</style>' + _section(
        f'<h1>Facial expressions</h1><p>The model tells {names}, from an embedding of '
        f'{len(settings.thresholds)} slices. It sees a face, not a feeling, and it errs. Pictures are '
        f'deleted as soon as they are read.</p>'
    )


def show_message(text: str, *, is_error: bool = False) -> str:
    """Returns a message to the visitor; '' for an empty text."""
    kind = 'message alarm' if is_error else 'message'
    return _section(f'<p class="{kind}">{escape(text)}</p>') if text else ''


def show_picture(image: Image.Image, captions: Sequence[str]) -> str:
    """Returns the picture, embedded in the page, so that no file is written."""
    file = io.BytesIO()
    image.save(file, 'JPEG', quality=88)
    uri = f'data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}'
    said = escape(', '.join(captions)) or 'no face'
    return _section(f'<img src="{uri}" alt="Your picture, with a frame around each face: {said}">')


def show_probabilities(predictions: Predictions, row: int) -> str:
    """Returns a bar for the probability of each class, the most probable class first."""
    shares = predictions.probabilities[row]
    order = (-shares).argsort(kind='stable')
    lines = ''.join(
        f'<tr{" class=best" if place == 0 else ""}><th scope="row">{escape(predictions.class_names[i])}'
        f'</th><td class="wide"><div class="bar"><i style="width:{100 * shares[i]:.1f}%"></i></div></td>'
        f'<td class="number">{100 * shares[i]:.0f} %</td></tr>'
        for place, i in enumerate(order)
    )
    return _section(f'<h2>Expression</h2><table><tbody>{lines}</tbody></table>')


def show_nearest(found: Sequence[tuple[str, str, float]]) -> str:
    """Returns a table of enrolled faces with label, name and distance."""
    if not found:
        return _section('<h2>Nearest enrolled faces</h2><p>No face is enrolled yet.</p>')
    lines = ''.join(
        f'<tr><th scope="row">{escape(label)}</th><td class="wide">{escape(name) or "–"}</td>'
        f'<td class="number">{distance:.2f}</td></tr>'
        for label, name, distance in found
    )
    head = '<th scope="col">Expression</th><th scope="col">Name</th><th scope="col">Distance</th>'
    return _section(f'<h2>Nearest enrolled faces</h2>{_table(head, lines)}')


def show_verdicts(verdicts: Sequence[Verdict], distance: str) -> str:
    """Returns a table with a line for each slice: its prediction, its distances and its threshold."""
    kept = sum(verdict.keeps_threshold for verdict in verdicts)
    largest = float(from_squares(4.0, distance))  # The largest distance between unit slices.
    lines = ''.join(_verdict(verdict, largest) for verdict in verdicts)
    head = ''.join(
        f'<th scope="col"{kind}>{title}</th>'
        for title, kind in (
            ('Threshold', ' class="number"'),
            ('Slice says', ''),
            ('Distance to it; to the next', ''),
            ('Both, from 0 to the largest possible', ''),
            ('Lead', ''),
        )
    )
    return _section(
        f'<h2>Slices: {kept} of {len(verdicts)} are sure</h2><p>{EXPLANATION}</p>{_table(head, lines)}'
    )


def _verdict(verdict, largest):
    said = f'{escape(verdict.label)} {100 * verdict.probability:.0f} %'
    track, distances, lead = '', 'nothing is known of it', '–'
    if math.isfinite(verdict.distance):
        start = 100 * verdict.distance / largest
        reach = min(100 * verdict.threshold / largest, 100 - start)
        distances = f'{verdict.distance:.2f}'
        track = f'<span class="reach" style="left:{start:.1f}%;width:{reach:.1f}%"></span>'
        if math.isfinite(verdict.rival_distance):
            place = 100 * verdict.rival_distance / largest
            distances += f', {escape(verdict.rival)} {verdict.rival_distance:.2f}'
            track += f'<span class="rival" style="left:{place:.1f}%"></span>'
            mark, kind = ('✓', 'kept') if verdict.keeps_threshold else ('✗', 'broken')
            said_lead = f'{verdict.lead:.2f}'.replace('-', '−')
            lead = f'<span class="{kind}">{mark} {said_lead}</span>'
        track += f'<span class="own" style="left:{start:.1f}%"></span>'
    return (
        f'<tr><th scope="row" class="number">{verdict.threshold:.2f}</th><td>{said}</td>'
        f'<td>{distances}</td><td class="wide"><div class="track" aria-hidden="true">{track}</div></td>'
        f'<td>{lead}</td></tr>'
    )


def _table(head, lines):
    table = f'<thead><tr>{head}</tr></thead><tbody>{lines}</tbody>'
    return f'<div class="scroll"><table>{table}</table></div>'


def _section(content):
    return f'<div class="face-page">{content}</div>'
