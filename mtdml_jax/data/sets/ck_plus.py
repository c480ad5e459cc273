"""TFDS builder of CK+ (the extended Cohn-Kanade set)."""

import re
from itertools import groupby
from pathlib import Path

from mtdml_jax.data.image_files import FaceBuilder
from mtdml_jax.host.errors import UserError
from mtdml_jax.images.folders import Face, faces_in_class_folders, find_patterns, image_files
from mtdml_jax.images.tables import read_text

IMAGES, LABELS, CUT = 'cohn-kanade-images', 'Emotion', 'CK+48'
NEUTRAL = 'neutral'
# The classes in the order of their codes, which start at 0.
NAMES = (NEUTRAL, 'anger', 'contempt', 'disgust', 'fear', 'happy', 'sadness', 'surprise')
CUT_FRAMES = 3  # Number of frames of each sequence in CK+48.
SEQUENCES = dict(zip(NAMES[1:], (45, 18, 59, 25, 69, 28, 83), strict=True))
WITHOUT_CONTEMPT = tuple(name for name in NAMES if name != 'contempt')


class CkPlus(FaceBuilder):
    """CK+: posed expressions, each a sequence from neutral to its peak, of 118 people.

    The builder reads one of two layouts:
      `cohn-kanade-images/S005/001/S005_001_00000011.png` with
        `Emotion/S005/001/S005_001_00000011_emotion.txt`: the builder takes the last
        config.data.num_frames frames of each sequence that has a label.
      CK+48, `anger/S010_004_00000017.png`, in `CK+48/` or directly in the folder: it has the last three
        frames of each sequence as 48x48 faces.
    The variants have 7 expressions or 6 (without contempt). `7+neutral` and `6+neutral` add the class
    neutral, which is the first frame of each sequence of these expressions. CK+48 has no such frames.

    All faces are in the split train. Papers use 10 folds by subject (config.data.folds=10).

    References:
      Lucey et al., "The Extended Cohn-Kanade Dataset (CK+): a complete dataset for action unit and
      emotion-specified expression", CVPR Workshops 2010.
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        'Ask the authors for CK+, unpack cohn-kanade-images/ and Emotion/ into one folder, and name the '
        'folder in config.data.dir.'
    )
    SOURCES = (IMAGES, LABELS, CUT, *NAMES)
    CLASS_NAMES = {
        '7': NAMES[1:],
        '6': WITHOUT_CONTEMPT[1:],
        '7+neutral': NAMES,
        '6+neutral': WITHOUT_CONTEMPT,
    }

    def published_counts(self, split: str) -> tuple[int, ...]:
        """Returns the number of faces of each class, from the published number of sequences."""
        config = self.builder_config
        number = {name: SEQUENCES[name] for name in config.class_names if name != NEUTRAL}
        faces = {name: count * config.num_frames for name, count in number.items()}
        return tuple((faces | {NEUTRAL: sum(number.values())})[name] for name in config.class_names)

    def find_faces(self, folder: Path) -> dict[str, list[Face]]:
        """See `FaceBuilder`."""
        has_sequences = (folder / IMAGES).is_dir() or (folder / LABELS).is_dir()
        find = _find_sequences if has_sequences else _find_cut
        return {'train': find(folder, self.builder_config)}


def _find_sequences(folder, config):
    faces, labels = [], _read_labels(folder)
    for (subject, sequence), (path, label) in labels.items():
        if label not in config.class_names:
            continue
        frames = _find_frames(folder / IMAGES / subject / sequence, path)
        chosen = dict.fromkeys(frames[-config.num_frames :], label)
        if NEUTRAL in config.class_names:
            chosen[frames[0]] = NEUTRAL
        faces += [
            Face(frame.relative_to(folder).as_posix(), name, frame, subject)
            for frame, name in chosen.items()
        ]
    return faces


def _read_labels(folder):
    """Returns (subject, sequence) -> (label file, class name) for all sequences with a label."""
    labels: dict[tuple[str, ...], tuple[Path, str]] = {}
    for path in find_patterns(folder / LABELS, ['*/*/*_emotion.txt']):
        key = path.parts[-3:-1]
        if key in labels:
            raise UserError(
                f'{path}: expected one label for a sequence, found another in {labels[key][0].name}'
            )
        text = read_text(path)
        codes = {float(code): name for code, name in enumerate(NAMES)}
        try:
            labels[key] = path, codes[float(text)]
        except (ValueError, KeyError) as error:
            raise UserError(
                f'{path}: expected a label from 0 to {len(NAMES) - 1} such as "3.0000000e+00", found '
                f'{text!r}'
            ) from error
    if not labels:
        raise UserError(
            f'{folder / LABELS}: expected labels such as S005/001/S005_001_00000011_emotion.txt, found '
            f'none'
        )
    return labels


def _find_frames(folder, label_file):
    """Returns the frames of a sequence in order, including the frame that its label file names."""
    frames = image_files(folder) if folder.is_dir() else []
    last = label_file.name.removesuffix('_emotion.txt')
    # If the named frame is missing, we list it anyway, so that it is reported with other missing files.
    if last not in [frame.stem for frame in frames]:
        frames.append(folder / f'{last}.png')
    return frames


def _find_cut(folder, config):
    if NEUTRAL in config.class_names:
        raise UserError(
            f'config.data.variant={config.name}: {CUT} has no neutral frames; use {IMAGES}/'
        )
    if config.num_frames > CUT_FRAMES:
        raise UserError(
            f'config.data.num_frames: {CUT} has the last {CUT_FRAMES} frames of each sequence, found '
            f'{config.num_frames}'
        )
    root = folder / CUT if (folder / CUT).is_dir() else folder
    left_out = {name: None for name in NAMES[1:] if name not in config.class_names}
    named = []
    for face in faces_in_class_folders(root, folder, config.class_names, left_out):
        path = Path(face.name)
        found = re.fullmatch(r'(S\d+)_(\d+)_\d+', path.stem)
        if not found:
            raise UserError(
                f'{face.image}: expected a name such as S010_004_00000017.png, found {path.name!r}'
            )
        named.append((found.groups(), face._replace(subject=found.group(1))))
    return [
        face
        for _, sequence in groupby(named, key=lambda pair: pair[0])
        for _, face in list(sequence)[-config.num_frames :]
    ]
