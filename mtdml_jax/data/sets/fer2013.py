"""TFDS builder of FER2013, from its csv file or from class folders."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mtdml_jax.data.image_files import FaceBuilder
from mtdml_jax.host.errors import UserError
from mtdml_jax.images.folders import SPLIT_FOLDERS, Face, faces_in_splits, split_folders
from mtdml_jax.images.tables import read_csv

FILE_NAMES = ('fer2013.csv', 'fer2013.csv.gz', 'icml_face_data.csv', 'icml_face_data.csv.gz')
CLASS_NAMES = ('Angry', 'Disgust', 'Fear', 'Happy', 'Sad', 'Surprise', 'Neutral')
SPLITS = {'Training': 'train', 'PublicTest': 'validation', 'PrivateTest': 'test'}
SIDE = 48


class Fer2013(FaceBuilder):
    """FER2013: 48x48 grey faces of 7 expressions, from the web, with noisy labels.

    The builder reads one of two layouts:
      `fer2013.csv` or `icml_face_data.csv` (whose header has leading spaces), plain or gzipped. The rows
        of Training, PublicTest and PrivateTest become train, validation and test. A split without rows
        is left out.
      Class folders, named by class or by code (0-6), in `train/`, `validation/` and `test/`. If there is
        no validation folder, the test folder has the faces of PublicTest and PrivateTest.

    References:
      Goodfellow et al., "Challenges in representation learning", ICONIP 2013.
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        'Put fer2013.csv (Kaggle, "Challenges in Representation Learning: Facial Expression '
        'Recognition Challenge") into the folder and name the folder in config.data.dir.'
    )
    SOURCES = (*FILE_NAMES, *SPLIT_FOLDERS)
    CLASS_NAMES = {'default': CLASS_NAMES}
    # The size of the test split varies: 3,589 faces in the csv file, 7,178 in folders.
    COUNTS = {'default': {'train': 28_709, 'validation': 3_589}}
    CHANNELS = 1

    def find_faces(self, folder: Path) -> dict[str, list[Face]]:
        """See `FaceBuilder`."""
        source = self.find_sources(folder)[0]
        if source.is_dir():
            codes = {str(code): name for code, name in enumerate(CLASS_NAMES)}
            return faces_in_splits(split_folders(folder), folder, CLASS_NAMES, codes)
        faces: dict[str, list[Face]] = {split: [] for split in SPLITS.values()}
        for split, number, label, pixels in read_rows(source):
            faces[split].append(Face(f'{source.name}:{number}', CLASS_NAMES[label], pixels))
        return faces


def read_rows(path: Path) -> Iterator[tuple[str, int, int, np.ndarray]]:
    """Reads a FER2013 csv file.

    Args:
      path: the csv file; it is gzipped if its name ends in .gz.

    Yields:
      (split, row number, label 0-6, pixels uint8 [48, 48, 1]) of each face. The header is row 1.

    Raises:
      UserError: if a row is not a face; the message names the file and the first such row.
    """
    for number, row in read_csv(path, ('emotion', 'pixels', 'Usage')):
        try:
            split, label = parse_usage(row['Usage']), _parse_label(row['emotion'])
            yield split, number, label, _parse_pixels(row['pixels'])
        except ValueError as error:
            raise UserError(f'{path}: row {number}: {error}') from error


def parse_usage(usage: str) -> str:
    """Returns the split of a usage such as PublicTest; raises ValueError for an unknown usage."""
    if usage not in SPLITS:
        raise ValueError(f'expected a usage of {", ".join(SPLITS)}, found {usage!r}')
    return SPLITS[usage]


def _parse_label(emotion: str) -> int:
    if emotion not in {str(label) for label in range(len(CLASS_NAMES))}:
        raise ValueError(f'expected a label from 0 to {len(CLASS_NAMES) - 1}, found {emotion!r}')
    return int(emotion)


def _parse_pixels(pixels: str) -> np.ndarray:
    try:
        values = np.array(pixels.split(), dtype=np.int64)
    except OverflowError as error:
        raise ValueError('expected pixel values from 0 to 255, found one beyond 64 bits') from error
    if len(values) != SIDE * SIDE:
        raise ValueError(f'expected {SIDE * SIDE} pixels, found {len(values)}')
    if np.min(values) < 0 or np.max(values) > 255:
        wrong = values[(values < 0) | (values > 255)][0]
        raise ValueError(f'expected pixel values from 0 to 255, found {wrong}')
    return values.astype(np.uint8).reshape(SIDE, SIDE, 1)
