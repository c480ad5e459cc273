"""TFDS builder of RAF-DB (basic emotions)."""

from pathlib import Path

from mtdml_jax.data.image_files import Face, FaceBuilder, faces_in_class_folders
from mtdml_jax.errors import UserError

LIST = 'EmoLabel/list_patition_label.txt'  # Spelled so by the set.
NAMES = ('Surprise', 'Fear', 'Disgust', 'Happiness', 'Sadness', 'Anger', 'Neutral')
CODES = {str(code): name for code, name in enumerate(NAMES, start=1)}


class RafDb(FaceBuilder):
    """RAF-DB: aligned RGB faces of 7 basic expressions from the web, each labelled by about 40 people.

    Reads the set's own list and `Image/aligned/`, or class folders (names or codes 1-7) in `train/` and
    `valid/` or `test/`. Splits: train and test.

    References:
      Li, Deng, Du, "Reliable crowdsourcing and deep locality-preserving learning for expression
      recognition in the wild", CVPR 2017.
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        'Ask the authors for RAF-DB (basic), unpack EmoLabel/ and Image/aligned/ into one folder, and '
        'name the folder in config.data.dir.'
    )
    SOURCES = ('EmoLabel', 'Image/aligned', 'train', 'valid', 'test')
    CLASS_NAMES = {'default': NAMES}
    COUNTS = {
        'default': {
            'train': (1290, 281, 717, 4772, 1982, 705, 2524),
            'test': (329, 74, 160, 1185, 478, 162, 680),
        }
    }

    def find_faces(self, folder: Path) -> dict[str, list[Face]]:
        """See `FaceBuilder`."""
        if (folder / LIST).is_file():
            return _read_list(folder)
        test = 'valid' if (folder / 'valid').is_dir() else 'test'
        return {
            split: faces_in_class_folders(folder / name, folder, NAMES, CODES)
            for split, name in (('train', 'train'), ('test', test))
            if (folder / name).is_dir()
        }


def _read_list(folder):
    splits = {'train': [], 'test': []}
    for number, line in enumerate((folder / LIST).read_text().splitlines(), start=1):
        name, _, code = line.strip().partition(' ')
        split = name.partition('_')[0]
        if split not in splits or code not in CODES:
            raise UserError(
                f'{folder / LIST}: line {number}: expected a line such as "train_00001.jpg 5" with a '
                f'code from 1 to 7, found {line!r}'
            )
        path = folder / 'Image' / 'aligned' / f'{Path(name).stem}_aligned.jpg'
        splits[split].append(Face(path.relative_to(folder).as_posix(), CODES[code], path))
    return splits
