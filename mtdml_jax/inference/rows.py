"""Writes what was found in pictures: as CSV, JSON, a table for people, or an array of embeddings."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from mtdml_jax.host.errors import UserError, one_line
from mtdml_jax.inference.answers import Predictions
from mtdml_jax.inference.media import Picture

BOX = ('x', 'y', 'w', 'h')
# The error in the row of a picture that was read but has no face.
NO_FACE = 'no face found'


class Row(NamedTuple):
    """A face in a picture, or the reason why there is none.

    Attributes:
      picture: the picture.
      box: left, top, width and height of the face in pixels; None if the whole picture is the face.
      found: `Predictions` of this one face; None if there is an error.
      error: the reason why there is no face; '' if there is a face.
    """

    picture: Picture
    box: Sequence[int] | None
    found: Predictions | None
    error: str = ''


class CsvWriter:
    """Writes the columns path, frame, time, x, y, w, h (the box), class, one per class, and error."""

    def __init__(self, file: IO[str], class_names: Sequence[str]):
        self._writer = csv.writer(file, lineterminator='\n')
        self._num_classes = len(class_names)
        self._writer.writerow(['path', 'frame', 'time', *BOX, 'class', *class_names, 'error'])

    def write(self, row: Row) -> None:
        """Writes a row."""
        path, _, frame, time, *_ = row.picture
        values = [''] * (1 + self._num_classes)
        if row.found:
            values = [row.found.names[0], *(f'{p:.6f}' for p in row.found.probabilities[0])]
        # The csv writer writes None as an empty cell.
        box: Sequence[int | None] = row.box or [None] * len(BOX)
        self._writer.writerow([one_line(path), frame, _rounded(time), *box, *values, row.error])


class JsonWriter:
    """Writes one object per line: path, frame, time, box, class, probabilities by class, and error.

    A missing value is null.
    """

    def __init__(self, file: IO[str], class_names: Sequence[str]):
        self._file, self._class_names = file, class_names

    def write(self, row: Row) -> None:
        """Writes a row."""
        path, _, frame, time, *_ = row.picture
        probabilities = None
        if row.found:
            values = (round(float(p), 6) for p in row.found.probabilities[0])
            probabilities = dict(zip(self._class_names, values, strict=True))
        content = {
            'path': one_line(path),
            'frame': frame,
            'time': _rounded(time),
            'box': None if row.box is None else list(row.box),
            'class': row.found.names[0] if row.found else None,
            'probabilities': probabilities,
            'error': row.error or None,
        }
        self._file.write(json.dumps(content, ensure_ascii=False) + '\n')


class TableWriter:
    """Writes a table for people: where the face is, its class, and a bar of its probability."""

    WIDTH, BAR = 44, 20

    def __init__(self, file: IO[str], class_names: Sequence[str]):
        self._file = file
        self._name_width = max(map(len, class_names))

    def write(self, row: Row) -> None:
        """Writes a row."""
        path, _, frame, time, *_ = row.picture
        where = one_line(path)
        if frame is not None:
            where += f' #{frame}' + ('' if time is None else f' {time:.2f} s')
        if row.box is not None:
            where += ' at {},{} {}x{}'.format(*row.box)
        if len(where) > self.WIDTH:
            where = '…' + where[1 - self.WIDTH :]
        self._file.write(f'{where:{self.WIDTH}s}  {self._describe(row)}\n')

    def _describe(self, row):
        if not row.found:
            return row.error
        share = row.found.probabilities[0].max()
        return f'{row.found.names[0]:{self._name_width}s} {share:6.1%}  {"█" * round(self.BAR * share)}'


WRITERS = {'table': TableWriter, 'csv': CsvWriter, 'jsonl': JsonWriter}


class EmbeddingWriter:
    """Writes a .npy file row by row, float32 [rows, E]; a row without a face is NaN."""

    def __init__(self, path: Path, size: int):
        self._file = open_output(path, 'wb')
        self._size, self._count = size, 0
        self._write_header()

    def _write_header(self):
        # NumPy reserves space in the header, so that the first axis can grow.
        np.lib.format.write_array_header_1_0(
            self._file,
            {'descr': '<f4', 'fortran_order': False, 'shape': (self._count, self._size)},
        )

    def write(self, row: Row) -> None:
        """Writes a row."""
        values = row.found.embeddings[0] if row.found else np.full(self._size, np.nan)
        self._file.write(values.astype('<f4').tobytes())
        self._count += 1

    def close(self) -> None:
        """Completes the file."""
        self._file.seek(0)
        self._write_header()
        self._file.close()


def open_output(path: Path, mode: str = 'w') -> IO:
    """Opens a file for writing, by default as UTF-8 text.

    Raises:
      UserError: the file cannot be written.
    """
    try:
        return path.open(mode) if 'b' in mode else path.open(mode, encoding='utf-8', newline='')
    except OSError as error:
        raise UserError(f'{path}: it cannot be written ({error.strerror or error})') from error


def _rounded(time):
    return None if time is None else round(time, 3)
