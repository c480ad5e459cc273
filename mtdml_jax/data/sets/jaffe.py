"""TFDS builder of JAFFE."""

import re
from pathlib import Path

from mtdml_jax.data.image_files import FaceBuilder
from mtdml_jax.host.errors import UserError
from mtdml_jax.images.folders import Face

CODES = {
    'AN': 'Anger',
    'DI': 'Disgust',
    'FE': 'Fear',
    'HA': 'Happiness',
    'NE': 'Neutral',
    'SA': 'Sadness',
    'SU': 'Surprise',
}
FILE_NAME = re.compile(r'([A-Z]{2})\.([A-Z]{2})\d+\.\d+\.tiff?')


class Jaffe(FaceBuilder):
    """JAFFE: 256x256 grey faces of 10 Japanese women who pose 6 expressions and neutral.

    The builder reads files such as `KA.AN1.39.tiff` (subject, class and number, number in the set) in
    any subfolder. All faces are in the split train. Cross-validation leaves out one subject at a time
    (config.data.folds=-1).

    References:
      Lyons, Akamatsu, Kamachi, Gyoba, "Coding facial expressions with Gabor wavelets", FG 1998.
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        'Ask the authors for JAFFE, unpack its TIFF files (KA.AN1.39.tiff and so on) into a folder, and '
        'name the folder in config.data.dir.'
    )
    SOURCES = ('**/*.tiff', '**/*.tif')
    CLASS_NAMES = {'default': tuple(CODES.values())}
    COUNTS = {'default': {'train': 213}}

    def find_faces(self, folder: Path) -> dict[str, list[Face]]:
        """See `FaceBuilder`."""
        names = [path.relative_to(folder) for path in self.find_sources(folder)]
        return {'train': [_read_name(folder, name) for name in names]}


def _read_name(folder, name):
    found = FILE_NAME.fullmatch(name.name)
    if not found or found.group(2) not in CODES:
        raise UserError(
            f'{folder / name}: expected a name such as KA.AN1.39.tiff with a class of '
            f'{", ".join(CODES)}, found {name.name!r}'
        )
    return Face(name.as_posix(), CODES[found.group(2)], folder / name, subject=found.group(1))
