"""TFDS builder of AffectNet (the images that were annotated by people)."""

from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from mtdml_jax.data.image_files import FaceBuilder
from mtdml_jax.host.errors import UserError
from mtdml_jax.images.folders import Face, find_patterns
from mtdml_jax.images.tables import parse_pixels, read_csv

NAMES = ('Neutral', 'Happy', 'Sad', 'Surprise', 'Fear', 'Disgust', 'Anger', 'Contempt')
LAST_CODE = 10  # Code 8 is none of the classes, 9 is uncertain, 10 is no face.
FOLDERS = {'train': 'train_set', 'test': 'val_set'}
LISTS = {
    'train': 'Manually_Annotated_file_lists/training.csv',
    'test': 'Manually_Annotated_file_lists/validation.csv',
}
IMAGES = 'Manually_Annotated_Images'
BOX = ('face_x', 'face_y', 'face_width', 'face_height')
COLUMNS = ('subDirectory_filePath', *BOX, 'facial_landmarks', 'expression', 'valence', 'arousal')
NO_BOX = {'box': (0, 0, 0, 0)}
# The published number of train faces of each class.
TRAIN = (74_874, 134_415, 25_459, 14_090, 6_378, 3_803, 24_882, 3_750)


class Affectnet(FaceBuilder):
    """AffectNet: RGB faces of 7 or 8 expressions from the web, each labelled by one annotator.

    The builder reads one of two layouts:
      `{train,val}_set/images/<id>.jpg` with `annotations/<id>_exp.npy`: these faces are already cropped.
      `Manually_Annotated_file_lists/{training,validation}.csv` with `Manually_Annotated_Images/`: these
        are whole images. The feature 'box' has the left, top, width and height of the face in pixels.
    The name of a variant is its number of classes: `7`, or `8`, which adds contempt. Faces with any
    other label are left out.

    The splits are train and test. The test split is the published validation set, because the published
    test set is closed and papers report the validation set. The faces that choose the checkpoint must
    therefore come from train.

    References:
      Mollahosseini, Hasani, Mahoor, "AffectNet: a database for facial expression, valence, and arousal
      computing in the wild", IEEE Transactions on Affective Computing 2019.
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        'Ask the authors for AffectNet, unpack train_set/ and val_set/ (or Manually_Annotated_Images/ '
        'and Manually_Annotated_file_lists/) into one folder, and name the folder in config.data.dir.'
    )
    SOURCES = (
        *(f'{name}/{part}' for name in FOLDERS.values() for part in ('annotations', 'images')),
        *LISTS.values(),
        IMAGES,
    )
    CLASS_NAMES = {'7': NAMES[:7], '8': NAMES}
    COUNTS = {'7': {'train': TRAIN[:7], 'test': (500,) * 7}, '8': {'train': TRAIN}}
    EXTRA = {'box': tfds.features.Tensor(shape=(4,), dtype=np.int32)}
    LARGE = True

    def find_faces(self, folder: Path) -> dict[str, list[Face]]:
        """See `FaceBuilder`."""
        names = self.builder_config.class_names
        if any((folder / name / 'annotations').is_dir() for name in FOLDERS.values()):
            return {
                split: _read_annotations(folder / name, folder, names)
                for split, name in FOLDERS.items()
                if (folder / name / 'annotations').is_dir()
            }
        return {
            split: _read_list(folder / name, folder, names)
            for split, name in LISTS.items()
            if (folder / name).is_file()
        }


def _read_annotations(folder, root, class_names):
    faces = []
    for path in find_patterns(folder / 'annotations', ['*_exp.npy']):
        try:
            code = np.load(path).item()
        except Exception as error:  # NumPy raises any error for a broken file.
            raise UserError(f'{path}: expected one expression saved by NumPy: {error}') from error
        label = _find_label(code, class_names, path)
        if label is not None:
            image = folder / 'images' / f'{path.name.removesuffix("_exp.npy")}.jpg'
            name = image.relative_to(root).as_posix()
            faces.append(Face(name, label, image, extra=NO_BOX))
    return faces


def _read_list(path, root, class_names):
    faces = []
    for number, row in read_csv(path, (COLUMNS[0], *BOX, 'expression'), header=COLUMNS):
        where = f'{path}: row {number}'
        label = _find_label(row['expression'], class_names, where)
        if label is not None:
            name = f'{IMAGES}/{row[COLUMNS[0]]}'
            faces.append(Face(name, label, root / name, extra=_find_box(row, where), where=where))
    return faces


def _find_label(code, class_names, where):
    """Returns the class of a stored code; None if faces with this code are left out."""
    try:
        number = int(code)
    except (TypeError, ValueError):
        number = -1
    if not 0 <= number <= LAST_CODE:
        raise UserError(f'{where}: expected an expression from 0 to {LAST_CODE}, found {code!r}')
    return class_names[number] if number < len(class_names) else None


def _find_box(row, where):
    """Returns the feature 'box' of a row."""
    found = [row[name] for name in BOX]
    # Line 315313 of the published training.csv has an expression but no box.
    if 'NULL' in found:
        return NO_BOX
    try:
        return {'box': parse_pixels(found)}
    except ValueError as error:
        raise UserError(f'{where}: expected numbers as {", ".join(BOX)}, found {found}') from error
