"""TFDS builder of RAF-DB (basic emotions)."""

from pathlib import Path

from mtdml_jax.data.image_files import FaceBuilder
from mtdml_jax.host.errors import UserError
from mtdml_jax.images.folders import SPLIT_FOLDERS, Face, faces_in_splits, split_folders
from mtdml_jax.images.tables import read_words

LIST = 'EmoLabel/list_patition_label.txt'  # The data set spells it like this.
NAMES = ('Surprise', 'Fear', 'Disgust', 'Happiness', 'Sadness', 'Anger', 'Neutral')
CODES = {str(code): name for code, name in enumerate(NAMES, start=1)}


class RafDb(FaceBuilder):
    """RAF-DB: aligned RGB faces of 7 basic expressions from the web, each labelled by about 40 people.

    The builder reads the data set's own list with `Image/aligned/`, or class folders in `train/` and
    `test/`, named by class or by code (1-7). The splits are train and test. Some copies have `valid/` or
    `val/` and no `test/`; that folder is then the test split.

    References:
      Li, Deng, Du, "Reliable crowdsourcing and deep locality-preserving learning for expression
      recognition in the wild", CVPR 2017.
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        'Ask the authors for RAF-DB (basic), unpack EmoLabel/ and Image/aligned/ into one folder, and '
        'name the folder in config.data.dir.'
    )
    SOURCES = ('EmoLabel', 'Image/aligned', *SPLIT_FOLDERS)
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
        splits = split_folders(folder)
        if 'test' not in splits and 'validation' in splits:
            splits['test'] = splits.pop('validation')
        return faces_in_splits(splits, folder, NAMES, CODES)


def _read_list(folder):
    splits: dict[str, list[Face]] = {'train': [], 'test': []}
    for number, words in read_words(folder / LIST):
        where = f'{folder / LIST}: line {number}'
        name, code = words if len(words) == 2 else ('', '')
        split = name.partition('_')[0]
        if split not in splits or code not in CODES:
            raise UserError(
                f'{where}: expected a line such as "train_00001.jpg 5" with a code from 1 to 7, found '
                f'{" ".join(words)!r}'
            )
        path = folder / 'Image' / 'aligned' / f'{Path(name).stem}_aligned.jpg'
        name = path.relative_to(folder).as_posix()
        splits[split].append(Face(name, CODES[code], path, where=where))
    return splits
