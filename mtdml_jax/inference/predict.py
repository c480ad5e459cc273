"""The work of `python -m mtdml_jax predict`: it classifies faces, writes the rows, and counts them."""

import contextlib
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from mtdml_jax.host.errors import UserError
from mtdml_jax.images.pixels import open_image
from mtdml_jax.inference.answers import join_predictions
from mtdml_jax.inference.media import read_pictures
from mtdml_jax.inference.model import load
from mtdml_jax.inference.rows import NO_FACE, WRITERS, EmbeddingWriter, Row, open_output
from mtdml_jax.inference.stream import find_boxes, predict_rows

# Time between two updates of the progress line.
SECONDS_BETWEEN = 0.2


class Counts(NamedTuple):
    """Numbers of faces, of pictures that were read, of those without a face, and of unreadable ones."""

    faces: int = 0
    pictures: int = 0
    without: int = 0
    failed: int = 0

    def add(self, rows: Sequence[Row]) -> 'Counts':
        """Returns the counts with one more picture, given all its rows."""
        error = rows[0].error
        return Counts(
            self.faces + sum(row.found is not None for row in rows),
            self.pictures + (not error or error == NO_FACE),
            self.without + (error == NO_FACE),
            self.failed + (bool(error) and error != NO_FACE),
        )

    def describe(self) -> str:
        """Describes the counts for people, in one line."""
        text = f'{_count(self.faces, "face")} in {_count(self.pictures, "picture")}'
        if self.without:
            text += f', {self.without:,} of them without a face'
        return text + (f'; {self.failed:,} could not be read' if self.failed else '')


def _count(number, what):
    return f'{number:,} {what}' + 's' * (number != 1)


def predict_files(
    names: Iterable[str],
    model: str,
    *,
    faces: str = 'none',
    by: str | None = None,
    every: int = 1,
    style: str | None = None,
    out: Path | None = None,
    embeddings: Path | None = None,
    annotate: Path | None = None,
) -> Counts:
    """Writes a model's predictions for the pictures at the given paths, and returns the counts.

    Args:
      names: see `media.read_pictures`.
      model: see `model.load`.
      faces: see `stream.find_boxes`.
      by: see `Model.predict`.
      every: reads every n-th frame of a video.
      style: 'table', 'csv' or 'jsonl'. By default the ending of the output file decides; without a file
        it is a table on a terminal, and csv elsewhere.
      out: the output file; by default standard output.
      embeddings: .npy file for the embedding of each row.
      annotate: folder for copies of the pictures with the faces marked.

    Raises:
      UserError: an argument is wrong, or a file cannot be written.
    """
    if every < 1:
        raise UserError(f'--every: expected at least 1, found {every}')
    writer = WRITERS[style or _choose_style(out)]
    boxes, loaded = find_boxes(faces), load(model)
    classifier = loaded.make_classifier(by)
    rows = predict_rows(
        loaded,
        read_pictures(names, every),
        boxes,
        classifier,
        keep_frames=annotate is not None,
        # The rows keep their video frames until the copies are written, so batches are small.
        batch_size=8 if annotate else 64,
    )
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open_output(out)) if out else sys.stdout
        writers: list = [writer(file, classifier.class_names)]
        if embeddings:
            writers.append(EmbeddingWriter(embeddings, loaded.settings.network.embedding_size))
            stack.callback(writers[-1].close)
        return write_rows(rows, writers, Annotator(annotate) if annotate else None)


def _choose_style(out):
    if out is None:
        return 'table' if sys.stdout.isatty() else 'csv'
    style = out.suffix.lower().lstrip('.')
    if style not in WRITERS:
        raise UserError(f'--out: expected a name that ends in .csv or .jsonl, found {out}')
    return style


def write_rows(
    rows: Iterable[Row], writers: Sequence, annotator: 'Annotator | None' = None
) -> Counts:
    """Writes rows and annotated copies, shows progress on a terminal, and returns the counts.

    Args:
      rows: the rows; all rows of a picture follow one another.
      writers: objects with a method `write` that takes a row.
      annotator: writes the copies; it needs rows of `predict_rows(keep_frames=True)`.
    """
    counts, last, shows = Counts(), time.monotonic(), sys.stderr.isatty()
    for group in _by_picture(rows):
        for writer in writers:
            for row in group:
                writer.write(row)
        if annotator and group[0].found:
            annotator.write(group)
        counts = counts.add(group)
        if shows and time.monotonic() - last > SECONDS_BETWEEN:
            last = time.monotonic()
            print(f'\r{counts.describe()}', end='', file=sys.stderr, flush=True)
    if shows:
        print('\r\033[K', end='', file=sys.stderr)
    return counts


def _by_picture(rows):
    """Yields a list of the rows of each picture."""
    group: list[Row] = []
    for row in rows:
        if group and row.picture is not group[0].picture:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


class Annotator:
    """Writes copies of pictures with their faces marked, as JPEG files in a folder.

    A copy has the same relative path below this folder as its picture has below the folder that the user
    named. The copy of a video frame is named by the number of the frame, in a folder named after the
    video.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._written: set[Path] = set()

    def write(self, rows: Sequence[Row]) -> None:
        """Writes the copy of a picture, given all its rows.

        Raises:
          UserError: the copy cannot be written.
        """
        from mtdml_jax.inference.drawing import annotate

        picture = rows[0].picture
        if picture.image is None:
            raise ValueError(f'{picture.path}: its image was not kept')
        image = open_image(picture.image)
        boxes = [row.box or (0, 0, *image.size) for row in rows]
        copy = annotate(image, boxes, join_predictions([row.found for row in rows if row.found]))
        path = self._choose_path(picture)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            copy.convert('RGB').save(path, quality=90)
        except OSError as error:
            raise UserError(f'{path}: it cannot be written ({error.strerror or error})') from error

    def _choose_path(self, picture):
        name = picture.name if picture.frame is None else f'{picture.name}/{picture.frame:06d}'
        stem, number = self._folder / Path(name).with_suffix(''), 1
        if picture.frame is not None:
            stem = self._folder / name
        path = Path(f'{stem}.jpg')
        while (
            path in self._written
        ):  # A picture of the same name from another folder took the path.
            number += 1
            path = Path(f'{stem}-{number}.jpg')
        self._written.add(path)
        return path
