"""Pieces of HTML for reports. Cells and tiles are HTML; commands and terms are plain text."""

import re
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from string import Template


def fill_page(name: str, content: dict[str, str], *, classified: bool = True) -> str:
    """Fills a template, and adds the style that all pages share.

    Args:
      name: file name of the template in the folder of this module.
      content: values of the template's $placeholders.
      classified: whether there are classifiers to show; if not, the template's parts on classifiers are
        left out.
    """
    folder = resources.files(__package__)
    template = folder.joinpath(name).read_text('utf-8')
    if not classified:
        template = re.sub('<!-- if classified -->.*?<!-- end -->', '', template, flags=re.DOTALL)
    style = folder.joinpath('report.css').read_text('utf-8')
    return Template(template).substitute(content, style=style)


def percent(share: float | None) -> str:
    """Formats a share from 0 to 1 as per cent; None becomes a dash."""
    return '–' if share is None else f'{100 * share:.1f} %'


def definitions(items: dict[str, str]) -> str:
    """Returns a list of terms and their texts."""
    rows = (f'<dt>{escape(term)}</dt><dd>{escape(text)}</dd>' for term, text in items.items())
    return f'<dl>{"".join(rows)}</dl>'


def table(header: Sequence[str], rows: Iterable[Sequence[str]], best: int | None = None) -> str:
    """Returns a scrollable table; cells are HTML, and the first cell of each row is its heading."""
    head = ''.join(f'<th scope="col">{cell}</th>' for cell in header)
    lines = []
    for index, (first, *cells) in enumerate(rows):
        mark = ' class="best"' if index == best else ''
        content = ''.join(f'<td>{cell}</td>' for cell in cells)
        lines.append(f'<tr{mark}><th scope="row">{first}</th>{content}</tr>')
    table = f'<thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody>'
    return f'<div class="scroll"><table>{table}</table></div>'


def tiles(numbers: list[tuple[str, str]]) -> str:
    """Returns tiles that each show a number and its name."""
    tiles = (f'<div class="tile"><b>{n}</b><span>{name}</span></div>' for n, name in numbers)
    return f'<div class="tiles">{"".join(tiles)}</div>'


def command(command: str) -> str:
    """Returns a command whose lines can break only between arguments."""
    return ' '.join(f'<span>{escape(part)}</span>' for part in command.split())


def plot(name: str, uri: str | None) -> str:
    """Returns a figure, given its data URI; a note if there is no figure."""
    if uri is None:
        return '<p class="note">Nothing to draw: this run has no such numbers.</p>'
    return f'<img src="{uri}" alt="Figure: {name.replace("_", " ")}">'
