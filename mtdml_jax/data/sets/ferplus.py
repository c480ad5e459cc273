"""TFDS builder of FER+: the faces of FER2013 with the votes of ten people each."""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from mtdml_jax.data.image_files import Face, FaceBuilder
from mtdml_jax.data.sets import fer2013
from mtdml_jax.errors import UserError

VOTES = 'fer2013new.csv'
NAMES = ('neutral', 'happiness', 'surprise', 'sadness', 'anger', 'disgust', 'fear', 'contempt')
COLUMNS = ('Usage', 'Image name', *NAMES, 'unknown', 'NF')
FOLDERS = {'train': 'FER2013Train', 'validation': 'FER2013Valid', 'test': 'FER2013Test'}
# Names in FER+ of the labels of FER2013.
FER2013_NAMES = ('anger', 'disgust', 'fear', 'happiness', 'sadness', 'surprise', 'neutral')


class Ferplus(FaceBuilder):
    """FER+: the 48x48 grey faces of FER2013 with 8 expressions, each voted on by ten people.

    Reads `fer2013new.csv` beside FER2013's csv file, whose rows stand in the same order, or
    `FER2013{Train,Valid,Test}/` with `label.csv` and `ferXXXXXXX.png`. Splits: train, validation, test.

    Votes are for the 8 expressions, 'unknown' or 'NF' (no face). Variants:
      majority: choices of a single person are dropped first; the label is the expression that more than
        half of the other votes are for. Faces without one are left out.
      argmax: the label is the expression with most votes, of several the first in the set's order.
        Faces that nobody gave an expression are left out.
      soft: as argmax, with the share of each expression in the votes for all 8 as the feature 'votes'.

    References:
      Barsoum, Zhang, Canton Ferrer, Zhang, "Training deep networks for facial expression recognition
      with crowd-sourced label distribution", ICMI 2016.
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        'Put fer2013new.csv (repository microsoft/FERPlus) beside fer2013.csv (Kaggle, "Challenges in '
        'Representation Learning: Facial Expression Recognition Challenge") and name their folder in '
        'config.data.dir.'
    )
    SOURCES = (VOTES, *FOLDERS.values(), *fer2013.FILE_NAMES)
    CLASS_NAMES = {'majority': NAMES, 'argmax': NAMES, 'soft': NAMES}
    COUNTS = {
        'majority': {'train': 25_060, 'validation': 3_199, 'test': 3_153},
        'argmax': {'train': 28_559, 'validation': 3_579, 'test': 3_573},
        'soft': {'train': 28_559, 'validation': 3_579, 'test': 3_573},
    }
    CHANNELS = 1

    @property
    def EXTRA(self):
        """Votes are a feature of the variant 'soft' alone: where they are, training learns from them."""
        if self.builder_config.name != 'soft':
            return {}
        return {'votes': tfds.features.Tensor(shape=(len(NAMES),), dtype=np.float32)}

    def find_faces(self, folder: Path) -> dict[str, list[Face]]:
        """See `FaceBuilder`."""
        pixels = [folder / name for name in fer2013.FILE_NAMES if (folder / name).is_file()]
        if (folder / VOTES).is_file() and pixels:
            found = _read_files(folder / VOTES, pixels[0])
        else:
            found = _read_folders(folder)
        faces = {split: [] for split in FOLDERS}
        for split, name, image, votes in found:
            label = choose_label(votes, self.builder_config.name)
            if label is not None:
                extra = {'votes': share_votes(votes)} if 'votes' in self.EXTRA else {}
                faces[split].append(Face(name, NAMES[label], image, extra=extra))
        return faces


def choose_label(votes: np.ndarray, variant: str) -> int | None:
    """The label of a face, None if it has none.

    Args:
      votes: number of votes for each expression, 'unknown' and 'NF', [10].
      variant: 'majority', 'argmax' or 'soft'.
    """
    if variant != 'majority':
        expressions = votes[: len(NAMES)]
        return int(expressions.argmax()) if expressions.any() else None
    kept = np.where(votes > 1, votes, 0)
    top = int(kept.argmax())
    return top if top < len(NAMES) and 2 * kept[top] > kept.sum() else None


def share_votes(votes: np.ndarray) -> np.ndarray:
    """The share of each expression in the votes for an expression, float32 [8].

    Args:
      votes: number of votes for each expression, 'unknown' and 'NF', [10]; some for an expression.
    """
    expressions = votes[: len(NAMES)].astype(np.float32)
    return expressions / expressions.sum()


def _read_files(path, faces_path) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    """(split, name, pixels, votes) of each row; the two files have the same rows in the same order."""
    rows, agree = _read_votes(path), []
    for split, number, label, pixels in fer2013.read_rows(faces_path):
        voted_split, name, votes = next(rows, (None, '', None))
        if voted_split != split:
            raise UserError(
                f'{path}: row {number}: expected a face of {split} as in {faces_path.name}, found '
                f'{voted_split or "no row"}'
            )
        agree.append(NAMES[votes[: len(NAMES)].argmax()] == FER2013_NAMES[label])
        if name:
            yield split, name, pixels, votes
    # In the right order more than half agree, in another about a sixth.
    if len(agree) >= 100 and np.mean(agree) < 0.4:
        raise UserError(
            f'{faces_path}: expected the rows in the order of {path.name}, found labels of which '
            f'{np.mean(agree):.0%} agree with it: they are votes on other faces'
        )


def _read_votes(path):
    with path.open(newline='') as file:
        rows = csv.reader(file)
        header = tuple(name.strip() for name in next(rows, ()))
        if header != COLUMNS:
            raise UserError(
                f'{path}: row 1: expected {",".join(COLUMNS)}, found {",".join(header)}'
            )
        for number, row in enumerate(rows, start=2):
            votes = _parse_votes(path, number, row)
            usage, name = row[0].strip(), row[1].strip()
            if usage not in fer2013.SPLITS:
                raise UserError(
                    f'{path}: row {number}: expected a usage of {", ".join(fer2013.SPLITS)}, found '
                    f'{usage!r}'
                )
            yield fer2013.SPLITS[usage], name, votes


def _read_folders(folder):
    lists = {split: folder / name / 'label.csv' for split, name in FOLDERS.items()}
    if not any(path.is_file() for path in lists.values()):
        raise UserError(
            f'{folder}: expected {VOTES} beside {" or ".join(fer2013.FILE_NAMES)}, or '
            f'{FOLDERS["train"]}/label.csv; found only a part of them'
        )
    for split, path in lists.items():
        if not path.is_file():
            continue
        with path.open(newline='') as file:
            for number, row in enumerate(csv.reader(file), start=1):
                votes = _parse_votes(path, number, row)
                if row[0].strip():
                    image = path.parent / row[0].strip()
                    yield split, image.relative_to(folder).as_posix(), image, votes


def _parse_votes(path, number, row):
    """The votes [10] in a row: they follow the first two columns of both files."""
    texts = [text.strip() for text in row[2:]]
    if len(row) != len(COLUMNS) or not all(text.isdecimal() for text in texts):
        raise UserError(
            f'{path}: row {number}: expected {len(COLUMNS) - 2} numbers of votes after two columns, '
            f'found {",".join(row)!r}'
        )
    return np.array(texts, dtype=np.int64)
