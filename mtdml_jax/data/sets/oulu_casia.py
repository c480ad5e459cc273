"""TFDS builder of Oulu-CASIA."""

import itertools
import re
from pathlib import Path

from mtdml_jax.data.image_files import FaceBuilder
from mtdml_jax.host.errors import UserError
from mtdml_jax.images.folders import Face, faces_in_class_folders, visible_folders

NAMES = ('Anger', 'Disgust', 'Fear', 'Happiness', 'Sadness', 'Surprise')
NUM_SEQUENCES = 480
CAMERAS = ('VL', 'NI')
LIGHTS = ('Strong', 'Weak', 'Dark')
SOURCES = {
    f'{camera}_{light}': f'OriginalImg/{camera}/{light}' for camera in CAMERAS for light in LIGHTS
} | {
    # Copies of the data set call the top folder PreProcess, PreProcess_Img or PreProcessImg.
    f'{camera}_{light}_cropped': f'PreProcess*/{camera}_Acropped/{light}'
    for camera in CAMERAS
    for light in LIGHTS
}


class OuluCasia(FaceBuilder):
    """Oulu-CASIA: 80 people pose 6 expressions, from neutral to the apex, in visible or infrared light.

    The builder reads files such as `OriginalImg/VL/Strong/P001/Anger/000.jpeg`. It takes the last
    config.data.num_frames frames of each sequence. A variant is a camera, VL (visible light) or NI (near
    infrared), and a light: `VL_Strong`, `VL_Weak`, `VL_Dark`, `NI_Strong`, `NI_Weak` or `NI_Dark`. With
    the suffix `_cropped`, such as `VL_Strong_cropped`, the builder reads the face crops that are part of
    the data set (`PreProcess_Img/VL_Acropped/Strong/`).

    All faces are in the split train. Papers use 10 folds by subject (config.data.folds=10).

    References:
      Zhao, Huang, Taini, Li, Pietikäinen, "Facial expression recognition from near-infrared videos",
      Image and Vision Computing 2011.
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        'Ask the authors for Oulu-CASIA NIR&VIS, unpack OriginalImg/ into a folder, and name the folder '
        'in config.data.dir.'
    )
    CLASS_NAMES = dict.fromkeys(SOURCES, NAMES)

    @classmethod
    def sources(cls, variant: str) -> tuple[str, ...]:
        """See `FaceBuilder`."""
        return (SOURCES[variant],)

    def published_counts(self, split: str) -> int:
        """See `FaceBuilder`."""
        return NUM_SEQUENCES * self.builder_config.num_frames

    def find_faces(self, folder: Path) -> dict[str, list[Face]]:
        """See `FaceBuilder`."""
        config = self.builder_config
        source = self.find_sources(folder, config.name)[0]
        return {
            'train': [
                face
                for subject in visible_folders(source)
                for face in _last_frames(subject, folder, config.num_frames)
            ]
        }


def _last_frames(subject, root, count):
    if not re.fullmatch(r'P\d+', subject.name):
        raise UserError(
            f'{subject}: expected a folder for each subject (P001, ...), found {subject.name!r}'
        )
    frames = faces_in_class_folders(subject, root, NAMES)
    for _, sequence in itertools.groupby(frames, key=lambda face: Path(face.name).parent):
        for face in list(sequence)[-count:]:
            yield face._replace(subject=subject.name)
