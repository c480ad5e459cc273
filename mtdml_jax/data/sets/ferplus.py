"""TFDS builder of FER+: the faces of FER2013, each labelled by ten people."""

import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from mtdml_jax.data.image_files import FaceBuilder
from mtdml_jax.data.sets import fer2013
from mtdml_jax.host.errors import UserError
from mtdml_jax.images.folders import Face
from mtdml_jax.images.tables import read_csv

logger = logging.getLogger(__name__)

VOTES = 'fer2013new.csv'
NAMES = ('neutral', 'happiness', 'surprise', 'sadness', 'anger', 'disgust', 'fear', 'contempt')
CHOICES = (*NAMES, 'unknown', 'NF')  # What a person can vote for; NF means no face.
# The columns of label.csv, which has no header row. The box is always the whole image.
FOLDER_COLUMNS = ('Image name', 'Box', *CHOICES)
FOLDERS = {'train': 'FER2013Train', 'validation': 'FER2013Valid', 'test': 'FER2013Test'}
# The labels of FER2013, with the names that FER+ uses.
FER2013_NAMES = ('anger', 'disgust', 'fear', 'happiness', 'sadness', 'surprise', 'neutral')


class Ferplus(FaceBuilder):
    """FER+: the 48x48 grey faces of FER2013 with 8 expressions, each voted on by ten people.

    The builder reads one of two layouts:
      `fer2013new.csv` and the csv file of FER2013, whose rows are in the same order.
      `FER2013{Train,Valid,Test}/` with `label.csv` and `ferXXXXXXX.png`.
    The splits are train, validation and test.

    Each person votes for one of the 8 expressions, for 'unknown' or for 'NF' (no face). The variants
    derive the label from these votes:
      majority: choices with a single vote are dropped. The label is the expression that has more than
        half of the remaining votes. Faces without such an expression are left out.
      argmax: the label is the expression with the most votes; on a tie, the first in the order of the
        classes. Faces without a vote for an expression are left out.
      soft: the label is that of argmax. The feature 'votes' has the share of each of the 8 expressions
        in the votes for an expression.
      majority_7, argmax_7, soft_7: the same, but faces whose label is contempt are left out, and shares
        are computed from the votes for the other 7 expressions.

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
    CLASS_NAMES = dict.fromkeys(('majority', 'argmax', 'soft'), NAMES) | dict.fromkeys(
        ('majority_7', 'argmax_7', 'soft_7'), NAMES[:7]
    )
    COUNTS = {
        'majority': {'train': 25_060, 'validation': 3_199, 'test': 3_153},
        'argmax': {'train': 28_559, 'validation': 3_579, 'test': 3_573},
        'soft': {'train': 28_559, 'validation': 3_579, 'test': 3_573},
    }
    CHANNELS = 1

    @property
    def EXTRA(self) -> Mapping[str, tfds.features.FeatureConnector]:
        """The feature 'votes' of the variants soft and soft_7, whose training learns from the votes."""
        config = self.builder_config
        if not config.name.startswith('soft'):
            return {}
        shape = (len(config.class_names),)
        return {'votes': tfds.features.Tensor(shape=shape, dtype=np.float32)}

    def find_faces(self, folder: Path) -> dict[str, list[Face]]:
        """See `FaceBuilder`."""
        config = self.builder_config
        pixels = [folder / name for name in fer2013.FILE_NAMES if (folder / name).is_file()]
        if (folder / VOTES).is_file() and pixels:
            found = _read_files(folder / VOTES, pixels[0])
        else:
            found = _read_folders(folder)
        faces: dict[str, list[Face]] = {split: [] for split in FOLDERS}
        for split, name, image, votes, where in found:
            label = choose_label(votes, config.name)
            if label is not None and label < len(config.class_names):
                shares = {'votes': share_votes(votes[: len(config.class_names)])}
                extra = shares if self.EXTRA else {}
                faces[split].append(Face(name, NAMES[label], image, extra=extra, where=where))
        return faces


def choose_label(votes: np.ndarray, variant: str) -> int | None:
    """Returns the label of a face; None if the face is left out.

    Args:
      votes: number of votes for each expression, 'unknown' and 'NF', [10].
      variant: name of a variant; it begins with 'majority', 'argmax' or 'soft'.
    """
    if not variant.startswith('majority'):
        expressions = votes[: len(NAMES)]
        return int(np.argmax(expressions)) if expressions.any() else None
    kept = np.where(votes > 1, votes, 0)
    top = int(np.argmax(kept))
    return top if top < len(NAMES) and 2 * kept[top] > kept.sum() else None


def share_votes(votes: np.ndarray) -> np.ndarray:
    """Returns each expression's share of the votes, float32 [C].

    Args:
      votes: number of votes for each expression, [C]; their sum must not be 0.
    """
    return (votes / votes.sum()).astype(np.float32)


def _read_files(path, faces_path) -> Iterator[tuple[str, str, np.ndarray, np.ndarray, str]]:
    """Yields (split, name, pixels, votes, place) of each row. Both files have the same order of rows."""
    rows, agree, no_votes = _read_votes(path), [], np.zeros(len(CHOICES), np.int64)
    for split, number, label, pixels in fer2013.read_rows(faces_path):
        no_row = 'no row', '', no_votes, f'{path}: row {number}'
        voted_split, name, votes, where = next(rows, no_row)
        if voted_split != split:
            raise UserError(
                f'{where}: expected a face of {split} as in {faces_path.name}, found {voted_split}'
            )
        agree.append(NAMES[np.argmax(votes[: len(NAMES)])] == FER2013_NAMES[label])
        if name:
            yield split, name, pixels, votes, where
    surplus = sum(1 for _ in rows)
    if surplus:
        logger.warning('ferplus: %s has no faces for the last %d votes', faces_path.name, surplus)
    # More than half of the labels agree if the order is right, and about a sixth if it is not.
    if len(agree) >= 100 and np.mean(agree) < 0.4:
        raise UserError(
            f'{faces_path}: expected the rows in the order of {path.name}, found labels of which '
            f'{np.mean(agree):.0%} agree with it: the votes are for other faces'
        )


def _read_votes(path):
    for number, row in read_csv(path, ('Usage', 'Image name', *CHOICES), others=False):
        where = f'{path}: row {number}'
        try:
            split = fer2013.parse_usage(row['Usage'])
        except ValueError as error:
            raise UserError(f'{where}: {error}') from error
        yield split, row['Image name'], _parse_votes(where, row), where


def _read_folders(folder):
    lists = {split: folder / name / 'label.csv' for split, name in FOLDERS.items()}
    if not any(path.is_file() for path in lists.values()):
        raise UserError(
            f'{folder}: expected {VOTES} beside {" or ".join(fer2013.FILE_NAMES)}, or '
            f'{FOLDERS["train"]}/label.csv; found only part of them'
        )
    for split, path in lists.items():
        if not path.is_file():
            continue
        for number, row in read_csv(path, (), header=FOLDER_COLUMNS):
            where = f'{path}: row {number}'
            votes = _parse_votes(where, row)
            if row['Image name']:
                image = path.parent / row['Image name']
                yield split, image.relative_to(folder).as_posix(), image, votes, where


def _parse_votes(where: str, row: Mapping[str, str]) -> np.ndarray:
    """Returns the votes in a row, int64 [10]."""
    texts = [row[name] for name in CHOICES]
    if not all(re.fullmatch('[0-9]{1,3}', text) for text in texts):
        raise UserError(
            f'{where}: expected {len(CHOICES)} numbers of votes, found {",".join(texts)!r}'
        )
    return np.array(texts, dtype=np.int64)
