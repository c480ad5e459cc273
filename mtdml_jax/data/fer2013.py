"""TFDS builder of FER2013, from the csv file that its users have on disk."""

import csv
import gzip
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from mtdml_jax.data.features import face_features
from mtdml_jax.errors import UserError

FILE_NAMES = ('fer2013.csv', 'fer2013.csv.gz', 'icml_face_data.csv', 'icml_face_data.csv.gz')
CLASS_NAMES = ('angry', 'disgust', 'fear', 'happy', 'sad', 'surprise', 'neutral')
SPLITS = {'Training': 'train', 'PublicTest': 'validation', 'PrivateTest': 'test'}
SIDE = 48


class Fer2013(tfds.core.GeneratorBasedBuilder):
    """FER2013: 48x48 grey faces of 7 expressions.

    Reads `fer2013.csv` or `icml_face_data.csv` (its header has leading spaces), also gzipped, from
    `manual_dir`. Training, PublicTest and PrivateTest become train, validation and test; a file
    without rows of one of them lacks that split.

    Raises:
      UserError: no such file, or a row that is not a face: names the file and the row.

    References:
      Goodfellow et al., "Challenges in representation learning", ICONIP 2013.
    """

    VERSION = tfds.core.Version('1.0.0')
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        'Put fer2013.csv (Kaggle, "Challenges in Representation Learning: Facial Expression '
        'Recognition Challenge") into the folder and name the folder in config.data.dir.'
    )

    @classmethod
    def source_file(cls, folder: Path) -> Path:
        """The csv file in `folder` that the set is read from."""
        for name in FILE_NAMES:
            if (folder / name).is_file():
                return folder / name
        raise UserError(
            f'fer2013: no data file in {folder.absolute()}; looked for {", ".join(FILE_NAMES)}. '
            f'{cls.MANUAL_DOWNLOAD_INSTRUCTIONS}'
        )

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description='48x48 grey faces of 7 expressions, from the web, with noisy labels.',
            features=face_features(SIDE, CLASS_NAMES),
            supervised_keys=('image', 'label'),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        path = self.source_file(Path(dl_manager.manual_dir))
        rows = {split: [] for split in SPLITS.values()}
        for split, number, label, pixels in read_rows(path):
            rows[split].append((number, label, pixels))
        return {
            split: self._generate_examples(path.name, found)
            for split, found in rows.items()
            if found
        }

    def _generate_examples(self, file_name: str, rows):
        for number, label, pixels in rows:
            yield (
                number,
                {
                    'image': pixels,
                    'label': label,
                    'subject': '',
                    'file_name': f'{file_name}:{number}',
                },
            )


def read_rows(path: Path) -> Iterator[tuple[str, int, int, np.ndarray]]:
    """Reads a FER2013 csv file.

    Args:
      path: the csv file; gzipped if it ends in .gz.

    Yields:
      (split, row number in the file counted from 1 with the header, label 0-6, pixels uint8
      [48, 48, 1]).

    Raises:
      UserError: names the file and the first row that is not a face.
    """
    open_text = gzip.open if path.suffix == '.gz' else open
    with open_text(path, 'rt', newline='') as file:
        rows = csv.reader(file)
        header = [name.strip() for name in next(rows, [])]
        missing = {'emotion', 'pixels', 'Usage'} - set(header)
        if missing:
            raise UserError(f'{path}: row 1: the header lacks {sorted(missing)}; it has {header}')
        columns = [header.index(name) for name in ('Usage', 'emotion', 'pixels')]
        for number, row in enumerate(rows, start=2):
            try:
                usage, emotion, pixels = (row[column] for column in columns)
                yield _parse_usage(usage), number, _parse_label(emotion), _parse_pixels(pixels)
            except (ValueError, IndexError) as error:
                reason = 'too few columns' if isinstance(error, IndexError) else error
                raise UserError(f'{path}: row {number}: {reason}') from error


def _parse_usage(usage: str) -> str:
    if usage.strip() not in SPLITS:
        raise ValueError(f'expected a usage of {", ".join(SPLITS)}, found {usage!r}')
    return SPLITS[usage.strip()]


def _parse_label(emotion: str) -> int:
    if emotion.strip() not in {str(label) for label in range(len(CLASS_NAMES))}:
        raise ValueError(f'expected a label from 0 to {len(CLASS_NAMES) - 1}, found {emotion!r}')
    return int(emotion)


def _parse_pixels(pixels: str) -> np.ndarray:
    values = np.array(pixels.split(), dtype=np.int64)
    if len(values) != SIDE * SIDE:
        raise ValueError(f'expected {SIDE * SIDE} pixels, found {len(values)}')
    if values.min() < 0 or values.max() > 255:
        wrong = values[(values < 0) | (values > 255)][0]
        raise ValueError(f'expected pixel values from 0 to 255, found {wrong}')
    return values.astype(np.uint8).reshape(SIDE, SIDE, 1)
