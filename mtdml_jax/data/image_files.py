"""What data sets of faces have in common: records, variants, reading files, checking counts."""

import dataclasses
import itertools
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from mtdml_jax.data.images import decode_image
from mtdml_jax.errors import UserError

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.gif', '.webp')
# Names of splits as people write them on folders.
SPLIT_NAMES = {'training': 'train', 'val': 'validation', 'valid': 'validation', 'testing': 'test'}


class Face(NamedTuple):
    """A face as a data set lists it, not read yet.

    Attributes:
      name: where it comes from, relative to the set's folder; unique in its split.
      label: name of its class.
      image: its file, or its pixels, uint8 [H, W, 1 or 3].
      subject: who it is; '' if unknown.
      extra: values of the set's own features.
    """

    name: str
    label: str
    image: Path | np.ndarray
    subject: str = ''
    extra: Mapping = {}


@dataclasses.dataclass(eq=False)
class FaceConfig(tfds.core.BuilderConfig):
    """What of a data set is wanted, from the section `data` of the config.

    Attributes:
      class_names: name of each label, [C].
      num_frames: number of frames taken of a sequence.
      subject_pattern: regular expression that finds the subject in a path.
      in_memory: whether records hold the images, or only name their files.
    """

    class_names: tuple[str, ...] = ()
    num_frames: int = 3
    subject_pattern: str = ''
    in_memory: bool = True


def face_features(
    class_names: Sequence[str], channels: int = 3, **extra
) -> tfds.features.FeaturesDict:
    """Features of faces: 'image', 'label', 'subject', 'file_name', and those of the set itself.

    Args:
      class_names: names of the labels 0, 1, ...
      channels: 1 (grey) or 3 (RGB).
      **extra: further features.
    """
    return tfds.features.FeaturesDict(
        {
            'image': tfds.features.Image(shape=(None, None, channels)),
            'label': tfds.features.ClassLabel(names=list(class_names)),
            'subject': tfds.features.Text(),
            'file_name': tfds.features.Text(),
            **extra,
        }
    )


class FaceBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Base of the data sets that are read from files in `config.data.dir`.

    A missing or undecodable image is left out with a warning that names it; a label that the set does
    not have raises UserError, for it says that something else is wrong. What was found is compared
    with the published counts, and a difference is warned of with both numbers.

    Attributes of a data set:
      SOURCES: files and folders of which at least one must be there (glob patterns).
      CLASS_NAMES: variant -> name of each label. The first variant is the default.
      COUNTS: variant -> split -> number of faces as published: in all, or of each class.
      CHANNELS: 1 (grey) or 3 (RGB).
      EXTRA: further features.
      LARGE: whether there are too many files to look at each at every start. Then a file that is changed
        in its folder is not noticed, only one that comes or goes.
    """

    VERSION = tfds.core.Version('1.1.0')
    SOURCES: tuple[str, ...] = ()
    CLASS_NAMES: Mapping[str, tuple[str, ...]] = {}
    COUNTS: Mapping[str, Mapping[str, int | tuple[int, ...]]] = {}
    CHANNELS = 3
    EXTRA: Mapping = {}
    LARGE = False

    def find_faces(self, folder: Path) -> dict[str, list[Face]]:
        """The faces of each split in `folder`.

        Raises:
          UserError: files that are not as the set has them.
        """
        raise NotImplementedError

    def published_counts(self, split: str) -> int | tuple[int, ...] | None:
        """The published number of faces of a split, in all or of each class; None if it is not known."""
        return self.COUNTS.get(self.builder_config.name, {}).get(split)

    @classmethod
    def class_names(cls, variant: str, folder: Path) -> tuple[str, ...]:
        """The names of the labels 0, 1, ... of a variant."""
        return cls.CLASS_NAMES[variant]

    @classmethod
    def sources(cls, variant: str) -> tuple[str, ...]:
        """Files and folders of which a variant needs at least one (glob patterns)."""
        return cls.SOURCES

    @classmethod
    def find_sources(cls, folder: Path, variant: str = '') -> list[Path]:
        """The files and folders in `folder` that a variant of the set is read from.

        Raises:
          UserError: there is none; says what was looked for, where to get it, and what other variant is
            there.
        """
        found = find_patterns(folder, cls.sources(variant))
        if not found:
            others = [
                f'config.data.variant={other}'
                for other in cls.CLASS_NAMES
                if find_patterns(folder, cls.sources(other))
            ]
            hint = f' There is data for {" and ".join(others)}.' if others else ''
            raise UserError(
                f'{cls.name}: no data in {folder.absolute()} (config.data.dir); looked for '
                f'{", ".join(cls.sources(variant))}.{hint} {cls.MANUAL_DOWNLOAD_INSTRUCTIONS}'
            )
        return found

    @classmethod
    def make_config(cls, data) -> FaceConfig:
        """The part of the section `data` of the config that decides what is prepared.

        Raises:
          UserError: an unknown variant, no frames, or no data.
        """
        variants = list(cls.CLASS_NAMES) or ['default']
        variant = data.variant or variants[0]
        if variant not in variants:
            raise UserError(
                f'config.data.variant: {cls.name} has {", ".join(variants)}, found {variant!r}'
            )
        if data.num_frames < 1:
            raise UserError(f'config.data.num_frames: expected at least 1, found {data.num_frames}')
        folder = Path(data.dir).expanduser()
        cls.find_sources(folder, variant)
        return FaceConfig(
            name=variant,
            class_names=cls.class_names(variant, folder),
            num_frames=data.num_frames,
            subject_pattern=data.subject_pattern,
            in_memory=data.in_memory,
        )

    def _info(self):
        config = self.builder_config
        features = dict(face_features(config.class_names, self.CHANNELS, **self.EXTRA))
        if not config.in_memory:
            del features['image']
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__.splitlines()[0],
            features=tfds.features.FeaturesDict(features),
        )

    def _split_generators(self, dl_manager):
        folder = Path(dl_manager.manual_dir)
        found = self.find_faces(folder)
        if not any(found.values()):
            raise UserError(f'{self.name}: found no faces in {folder.absolute()} (config.data.dir)')
        if not self.builder_config.in_memory:
            _check_files(found)
        return {
            split: self._generate_examples(split, faces) for split, faces in found.items() if faces
        }

    def _generate_examples(self, split, faces):
        config, counts, unusable = self.builder_config, Counter(), []
        for face, image in zip(faces, read_images(face.image for face in faces), strict=True):
            if image is None:
                unusable.append(face.name)
                continue
            counts[face.label] += 1
            record = {'label': face.label, 'subject': face.subject, 'file_name': face.name}
            if config.in_memory:
                record['image'] = image
            yield face.name, record | face.extra
        if unusable:
            logger.warning('%s', describe_unusable(self.name, split, unusable, len(faces)))
        difference = describe_counts(counts, self.published_counts(split), config.class_names)
        if difference:
            logger.warning('%s, split %s: %s', self.name, split, difference)


def _check_files(splits):
    """Raises UserError for faces that are not in files: only files can be read as needed."""
    for face in itertools.chain.from_iterable(splits.values()):
        if not isinstance(face.image, Path):
            raise UserError(
                f'config.data.in_memory=False: expected image files, found {face.name}, which is in '
                f'none of its own'
            )


def read_images(images: Iterable[Path | np.ndarray]) -> Iterator[bytes | None]:
    """The encoded images in order; None for a file that is missing or cannot be decoded.

    Files are read and decoded in parallel; pixels become PNG.
    """
    for are_files, run in itertools.groupby(images, lambda image: isinstance(image, Path)):
        if are_files:
            yield from _read_files(list(run))
        else:
            yield from (tf.io.encode_png(pixels).numpy() for pixels in run)


def _read_files(paths):
    names = tf.data.Dataset.from_tensor_slices([str(path) for path in paths])
    read = names.enumerate().map(_read_image, num_parallel_calls=tf.data.AUTOTUNE)
    expected = 0
    for row, encoded, _ in read.ignore_errors().as_numpy_iterator():
        yield from [None] * (row - expected)
        yield encoded
        expected = row + 1
    yield from [None] * (len(paths) - expected)


def _read_image(row, name):
    encoded = tf.io.read_file(name)
    # A value of the pixels is returned: TensorFlow drops a decoding that nobody reads.
    return row, encoded, decode_image(encoded, 3)[0, 0, 0]


def describe_unusable(name: str, split: str, unusable: Sequence[str], count: int) -> str:
    """What to tell of files that are missing or cannot be decoded."""
    listed = ', '.join(unusable[:5]) + (', ...' if len(unusable) > 5 else '')
    return (
        f'{name}, split {split}: {len(unusable)} of {count} images are missing or cannot be decoded: '
        f'{listed}'
    )


def describe_counts(
    counts: Mapping[str, int], expected: int | tuple[int, ...] | None, class_names: Sequence[str]
) -> str:
    """How the number of faces differs from the published one; '' if it does not.

    Args:
      counts: number of faces found of each class.
      expected: as published, in all or of each class; None if it is not known.
      class_names: name of each label, [C].
    """
    found = [counts[name] for name in class_names]
    if expected is None or expected == (sum(found) if isinstance(expected, int) else tuple(found)):
        return ''
    if isinstance(expected, int):
        return f'expected {expected:,} faces as published, found {sum(found):,}'
    different = [
        f'{name} {wanted:,}, found {number:,}'
        for name, wanted, number in zip(class_names, expected, found, strict=True)
        if wanted != number
    ]
    return (
        f'expected {sum(expected):,} faces as published, found {sum(found):,} '
        f'({"; ".join(different)})'
    )


def faces_in_class_folders(
    folder: Path,
    root: Path,
    class_names: Sequence[str],
    codes: Mapping[str, str] | None = None,
) -> list[Face]:
    """The images in `folder`/<class>/, with the class of their folder.

    Args:
      folder: the folder of class folders.
      root: the data set's folder, which names are relative to.
      class_names: name of each label; in whatever case on disk.
      codes: further names of folders -> name of the label; None as a label leaves a folder out.

    Raises:
      UserError: a folder that is no class.
    """
    exact = {name: name for name in class_names} | dict(codes or {})
    known = {name.lower(): label for name, label in exact.items()} | exact
    faces = []
    for path in visible(folder):
        if not path.is_dir():
            continue
        if path.name.lower() not in known:
            raise UserError(
                f'{path}: expected a folder for each class ({", ".join(exact)}), found {path.name!r}'
            )
        label = known.get(path.name, known[path.name.lower()])
        if label is not None:
            faces += [
                Face(image.relative_to(root).as_posix(), label, image)
                for image in image_files(path)
            ]
    return faces


def find_patterns(folder: Path, patterns: Iterable[str]) -> list[Path]:
    """What is in `folder`, in the order of the glob patterns, then by name."""
    return [path for pattern in patterns for path in sorted(folder.glob(pattern))]


def image_files(folder: Path) -> list[Path]:
    """The image files right in `folder`, sorted by name."""
    return [path for path in visible(folder) if path.suffix.lower() in IMAGE_SUFFIXES]


def visible(folder: Path) -> list[Path]:
    """What is right in `folder`, sorted, without what systems and notebooks hide there."""
    return sorted(path for path in folder.iterdir() if path.name[0] not in '._')
