"""Reads text files that list faces: csv files and lists, whichever program wrote them."""

import csv
import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from mtdml_jax.host.errors import UserError

# Characters that people use instead of a comma.
_OTHER_SEPARATORS = {';': 'semicolons', '\t': 'tabs', '|': 'bars'}


def read_csv(
    path: Path,
    columns: Sequence[str],
    *,
    header: Sequence[str] | None = None,
    others: bool = True,
) -> Iterator[tuple[int, dict[str, str]]]:
    """Reads the rows of a csv file, with their numbers.

    Skips blank rows and spaces around values. A quoted value must end in its own row.

    Args:
      path: the file; gzipped if it ends in .gz.
      columns: names of the columns that must be there.
      header: the names of all columns, for a file that may have no header row; None if the first row
        is the header.
      others: whether other columns are allowed.

    Yields:
      (row number, counted from 1 like in an editor; name of the column -> text).

    Raises:
      UserError: if the file is not such a table; the message names the row.
    """
    for number, line in _filled_lines(path):
        try:
            row = [text.strip() for text in next(csv.reader([line], strict=True))]
        except csv.Error as error:
            raise UserError(f'{path}: row {number}: not a row of a csv file ({error})') from error
        if not any(row):
            continue
        if header is None or row[0] == header[0]:
            header = _check_header(f'{path}: row {number}', row, columns, others)
        elif len(row) != len(header):
            few = 'too few columns' if len(row) < len(header) else 'too many columns'
            raise UserError(
                f'{path}: row {number}: {few}: expected {len(header)} ({", ".join(header)}), found '
                f'{len(row)}{_describe_separator(line)}'
            )
        else:
            yield number, dict(zip(header, row, strict=True))


def _check_header(where, row, columns, others):
    lacking = [name for name in columns if name not in row]
    if lacking:
        raise UserError(
            f'{where}: the header lacks {", ".join(lacking)}; it has '
            f'{", ".join(row)}{_describe_separator(row[0])}'
        )
    twice = {name for name in row if name and row.count(name) > 1}
    if twice:
        raise UserError(
            f'{where}: expected each column once, found {", ".join(sorted(twice))} again'
        )
    unknown = [name for name in row if name not in columns]
    if unknown and not others:
        raise UserError(
            f'{where}: expected {",".join(columns)}, found {",".join(row)} ({len(unknown)} more)'
        )
    return row


def _describe_separator(line):
    found = [name for mark, name in _OTHER_SEPARATORS.items() if mark in line]
    return f'; values must be separated by commas, not {found[0]}' if found else ''


def read_words(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields the line number (from 1) and the words of each line that is not blank.

    Words are separated by spaces or tabs.

    Raises:
      UserError: if the file is not text.
    """
    for number, line in _filled_lines(path):
        yield number, line.split()


def parse_pixels(texts: Sequence[str]) -> tuple[int, ...]:
    """Parses numbers of pixels, such as those of a box; drops the digits after a decimal point.

    Raises:
      ValueError: if a text is not a number, or the number does not fit into 32 bits.
    """
    try:
        numbers = tuple(int(float(text)) for text in texts)
    except OverflowError as error:  # int('inf') raises this.
        raise ValueError(str(error)) from error
    if max(map(abs, numbers)) >= 2**31:
        raise ValueError(f'expected numbers of 32 bits, found {max(numbers, key=abs)}')
    return numbers


def parse_box(texts: Sequence[str], where: str) -> tuple[int, ...] | None:
    """Returns left, top, width and height of a face in pixels; None if all four texts are empty.

    Args:
      texts: the texts in the columns x, y, w and h.
      where: the file and row, for errors.

    Raises:
      UserError: if a text is not a number of pixels, or the width or height is below 1.
    """
    if not any(texts):
        return None
    try:
        box = parse_pixels(texts)
    except ValueError as error:
        raise UserError(
            f'{where}: expected numbers of pixels as x, y, w, h, found {texts}'
        ) from error
    if min(box[2:]) < 1:
        raise UserError(f'{where}: expected a box with a width and height, found {texts}')
    return box


def read_text(path: Path) -> str:
    """Returns the text of a small file, without leading and trailing white space.

    Raises:
      UserError: if the file is not text.
    """
    return '\n'.join(line for _, line in _lines(path)).strip()


def _filled_lines(path):
    """Yields the `_lines` that are not blank; raises UserError if there are none."""
    is_empty = True
    for number, line in _lines(path):
        if line.strip():
            is_empty = False
            yield number, line
    if is_empty:
        raise UserError(f'{path}: expected a list, found an empty file')


def _lines(path):
    """Yields (number from 1, line) of a UTF-8 file, with or without a byte order mark.

    Line ends may be of any system. Bytes that are not UTF-8 are kept as `os.fsdecode` keeps them.
    """
    opener = gzip.open if path.suffix == '.gz' else open
    try:
        with opener(path, 'rt', encoding='utf-8-sig', errors='surrogateescape') as file:
            for number, line in enumerate(file, start=1):
                if '\0' in line or line.startswith(('\udcff\udcfe', '\udcfe\udcff')):
                    raise UserError(
                        f'{path}: line {number}: expected text in UTF-8, found something else'
                    )
                yield number, line.rstrip('\n')
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f'{path}: it cannot be read ({error})') from error
