"""TFDS builder of SFEW 2.0."""

from pathlib import Path

from mtdml_jax.data.image_files import FaceBuilder
from mtdml_jax.images.folders import Face, faces_in_class_folders

NAMES = ('Angry', 'Disgust', 'Fear', 'Happy', 'Neutral', 'Sad', 'Surprise')
SPLITS = {'Train': 'train', 'Val': 'test'}
ALIGNED = tuple(f'{part}_Aligned_Faces{suffix}' for part in SPLITS for suffix in ('_new', ''))
SOURCES = {
    # Some people unpack the aligned faces into the folder of the originals.
    'aligned': (*ALIGNED, *(f'{name.partition("_")[0]}/{name}' for name in ALIGNED)),
    'original': tuple(SPLITS),
}


class Sfew(FaceBuilder):
    """SFEW 2.0: RGB faces of 7 expressions, from frames of films.

    The builder reads the class folders in `Train_Aligned_Faces/` and `Val_Aligned_Faces/`. If a folder
    `..._new/` exists, the builder prefers it. With the variant `original`, it reads the whole frames in
    `Train/` and `Val/`.

    The splits are train and test. The test split is the published validation set, because the labels of
    the published test set are closed and papers report the validation set. The faces that choose the
    checkpoint must therefore come from train.

    References:
      Dhall, Goecke, Lucey, Gedeon, "Static facial expression analysis in tough conditions: data,
      evaluation protocol and benchmark", ICCV workshops 2011.
      Dhall, Ramana Murthy, Goecke, Joshi, Gedeon, "Video and image based emotion recognition challenges
      in the wild: EmotiW 2015", ICMI 2015 (version 2.0).
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        'Ask the authors for SFEW 2.0, unpack Train_Aligned_Faces/ and Val_Aligned_Faces/ into one '
        'folder, and name the folder in config.data.dir.'
    )
    CLASS_NAMES = dict.fromkeys(SOURCES, NAMES)
    COUNTS = {variant: {'train': 958, 'test': 436} for variant in SOURCES}

    @classmethod
    def sources(cls, variant: str) -> tuple[str, ...]:
        """See `FaceBuilder`."""
        return SOURCES[variant]

    def find_faces(self, folder: Path) -> dict[str, list[Face]]:
        """See `FaceBuilder`."""
        no_classes = dict.fromkeys(ALIGNED)
        faces = {}
        for path in self.find_sources(folder, self.builder_config.name):
            split = SPLITS[path.name.partition('_')[0]]
            if split not in faces:
                faces[split] = faces_in_class_folders(path, folder, NAMES, no_classes)
        return faces
