"""Text files that list faces: one reader for csv files and lists, as people and programs leave them."""

import csv
import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from mtdml_jax.host.errors import UserError

# What people take for a comma.
_OTHER_SEPARATORS = {';': 'semicolons', '\t': 'tabs', '|': 'bars'}


def read_csv(
    path: Path,
    columns: Sequence[str],
    *,
    header: Sequence[str] | None = None,
    others: bool = True,
) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a csv file, with their numbers.

    Blank rows are passed over, and spaces around values. A quoted value ends in its row.

    Args:
      path: the file; gzipped if it ends in .gz.
      columns: names of the columns that must be there.
      header: the names of all columns, of a file that may lack the row with them; with None the first
        row has them.
      others: whether there may be other columns.

    Yields:
      (row number, counted from 1 as editors do; name of the column -> text).

    Raises:
      UserError: a file that is no such table; names the row.
    """
    for number, line in _filled_lines(path):
        try:
            row = [text.strip() for text in next(csv.reader([line], strict=True))]
        except csv.Error as error:
            raise UserError(f'{path}: row {number}: no row of a csv file ({error})') from error
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
    return f'; values are to be separated by commas, not {found[0]}' if found else ''


def read_words(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The words of each line that has any, between spaces or tabs, with the line's number from 1.

    Raises:
      UserError: a file that is no text.
    """
    for number, line in _filled_lines(path):
        yield number, line.split()


def parse_pixels(texts: Sequence[str]) -> tuple[int, ...]:
    """Numbers of pixels, such as a box's; what is behind a decimal point is cut off.

    Raises:
      ValueError: no numbers, or none that 32 bits hold.
    """
    try:
        numbers = tuple(int(float(text)) for text in texts)
    except OverflowError as error:  # Of 'inf'.
        raise ValueError(str(error)) from error
    if max(map(abs, numbers)) >= 2**31:
        raise ValueError(f'expected numbers of 32 bits, found {max(numbers, key=abs)}')
    return numbers


def parse_box(texts: Sequence[str], where: str) -> tuple[int, ...] | None:
    """Left, top, width and height of a face in pixels; None where all four are empty.

    Args:
      texts: of the columns x, y, w and h.
      where: the file and row, for errors.

    Raises:
      UserError: no numbers of pixels, or a box without a width and height.
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
    """The text of a small file, without spaces and line ends around it.

    Raises:
      UserError: a file that is no text.
    """
    return '\n'.join(line for _, line in _lines(path)).strip()


def _filled_lines(path):
    """`_lines` that are not blank; there has to be one."""
    is_empty = True
    for number, line in _lines(path):
        if line.strip():
            is_empty = False
            yield number, line
    if is_empty:
        raise UserError(f'{path}: expected a list, found an empty file')


def _lines(path):
    """(number from 1, line) of a text file: UTF-8 with or without mark, whatever ends its lines.

    Bytes that are no UTF-8 stay what they are, as in names of files (`os.fsdecode`).
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
