"""The base of data sets that are read from image files: records, variants, reading and checks."""

import dataclasses
import hashlib
import itertools
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from mtdml_jax.data.decode import decode_image
from mtdml_jax.data.findings import (
    describe_counts,
    describe_leaks,
    describe_unusable,
    drop_repeated,
)
from mtdml_jax.host.errors import UserError, listed
from mtdml_jax.host.paths import user_path
from mtdml_jax.images.folders import Face, find_patterns

logger = logging.getLogger(__name__)


@dataclasses.dataclass(eq=False)
class FaceConfig(tfds.core.BuilderConfig):
    """The settings of a data set, from the section `data` of the config.

    Attributes:
      folder: the data set's folder; prepared data do not depend on its place.
      class_names: name of each label, [C].
      num_frames: number of frames that are taken from a sequence.
      subject_pattern: regular expression that finds the subject in a path.
      in_memory: whether records hold the images; otherwise they only name the files.
      train_split: the split that should share no image with the others.
      drop_leaks: whether images that it shares with others are left out of the train split.
    """

    folder: Path = dataclasses.field(default=Path(), repr=False)
    class_names: tuple[str, ...] = ()
    num_frames: int = 3
    subject_pattern: str = ''
    in_memory: bool = True
    train_split: str = 'train'
    drop_leaks: bool = False


def face_features(
    class_names: Iterable[str], channels: int = 3, **extra: tfds.features.FeatureConnector
) -> tfds.features.FeaturesDict:
    """Returns the features of faces: 'image', 'label', 'subject', 'file_name' and `extra`.

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


class FaceBuilder(
    tfds.core.GeneratorBasedBuilder,
    skip_registration=True,  # type: ignore[call-arg]  # TFDS has no types.
):
    """Base class of data sets that are read from files in `config.data.dir`.

    An image that is missing or cannot be decoded is left out, and a warning names it. A label that the
    data set does not have raises UserError, because it shows that something else is wrong. If the number
    of faces differs from the published one, a warning has both numbers. If an image of the train split
    is also in another split, byte for byte, it causes a warning or is left out.

    Attributes of a data set:
      SOURCES: files and folders (glob patterns); at least one of them must exist.
      CLASS_NAMES: variant -> name of each label. The first variant is the default.
      COUNTS: variant -> split -> published number of faces, in all or of each class.
      CHANNELS: 1 (grey) or 3 (RGB).
      EXTRA: further features.
      LARGE: whether there are too many files to check each of them at every start. Then a new or removed
        file is noticed, but not a file that is changed in place.
    """

    VERSION = tfds.core.Version('1.1.0')
    SOURCES: tuple[str, ...] = ()
    CLASS_NAMES: Mapping[str, tuple[str, ...]] = {}
    COUNTS: Mapping[str, Mapping[str, int | tuple[int, ...]]] = {}
    CHANNELS = 3
    LARGE = False

    @property
    def EXTRA(self) -> Mapping[str, tfds.features.FeatureConnector]:
        """Further features; none by default."""
        return {}

    def find_faces(self, folder: Path) -> dict[str, list[Face]]:
        """Returns the faces of each split in `folder`.

        Raises:
          UserError: if files differ from what the data set should have.
        """
        raise NotImplementedError

    def published_counts(self, split: str) -> int | tuple[int, ...] | None:
        """Returns the published number of faces of a split, in all or of each class; None if unknown."""
        return self.COUNTS.get(self.builder_config.name, {}).get(split)

    def published_classes(self, split: str) -> dict[str, int]:
        """Returns the published number of faces of each class of a split, in all variants."""
        return {
            name: number
            for variant, splits in self.COUNTS.items()
            if isinstance(numbers := splits.get(split), tuple)
            for name, number in zip(self.CLASS_NAMES[variant], numbers, strict=True)
        }

    @classmethod
    def class_names(cls, variant: str, folder: Path) -> tuple[str, ...]:
        """Returns the names of the labels 0, 1, ... of a variant."""
        return cls.CLASS_NAMES[variant]

    @classmethod
    def sources(cls, variant: str) -> tuple[str, ...]:
        """Returns the glob patterns of a variant; at least one must match a file or folder."""
        return cls.SOURCES

    @classmethod
    def find_sources(cls, folder: Path, variant: str = '') -> list[Path]:
        """Returns the files and folders in `folder` that a variant is read from.

        Raises:
          UserError: if there are none. The message has the patterns, where to get the data, and which
            other variant is there.
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
    def make_config(cls, data: ConfigDict) -> FaceConfig:
        """Returns the settings in the section `data` of the config that decide what is prepared.

        Raises:
          UserError: if the variant is unknown, the number of frames is below 1, or there are no data.
        """
        variants = list(cls.CLASS_NAMES) or ['default']
        variant = data.variant or variants[0]
        if variant not in variants:
            raise UserError(
                f'config.data.variant: {cls.name} has {", ".join(variants)}, found {variant!r}'
            )
        if data.num_frames < 1:
            raise UserError(f'config.data.num_frames: expected at least 1, found {data.num_frames}')
        folder = user_path(data.dir)
        cls.find_sources(folder, variant)
        return FaceConfig(**cls.common_settings(data, variant, cls.class_names(variant, folder)))

    @classmethod
    def common_settings(
        cls, data: ConfigDict, variant: str, class_names: Sequence[str]
    ) -> dict[str, Any]:
        """Returns the arguments of `FaceConfig`.

        Raises:
          UserError: if a name of a class is not valid, see `check_class_names`.
        """
        check_class_names(class_names)
        return {
            'name': variant,
            'folder': user_path(data.dir),
            'class_names': tuple(class_names),
            'num_frames': data.num_frames,
            'subject_pattern': data.subject_pattern,
            'in_memory': data.in_memory,
            'train_split': data.train_split.partition('[')[0],
            'drop_leaks': data.drop_leaks,
        }

    @classmethod
    def watched(cls, folder: Path, config: FaceConfig) -> list[Path]:
        """Returns the files and folders that are watched: if one changes, the set is prepared again."""
        return cls.find_sources(folder, config.name)

    def _info(self):
        config = self.builder_config
        features = dict(face_features(config.class_names, self.CHANNELS, **self.EXTRA))
        if not config.in_memory:
            del features['image']
        return tfds.core.DatasetInfo(
            builder=self,
            description=(self.__doc__ or self.name).splitlines()[0],
            features=tfds.features.FeaturesDict(features),
        )

    def _split_generators(self, dl_manager):
        config = self.builder_config
        folder = config.folder
        found = drop_repeated(self.name, _with_names_in_utf8(self.name, self.find_faces(folder)))
        if not any(found.values()):
            raise UserError(f'{self.name}: found no faces in {folder.absolute()} (config.data.dir)')
        self._check_labels(found)
        for split in found:
            if not re.fullmatch(r'\w[\w.-]*', split) or split == 'all':
                raise UserError(
                    f'{folder.absolute()} (config.data.dir): expected splits of letters and digits, '
                    f'found {split!r}'
                )
        if not config.in_memory:
            _check_files(found)
        # The train split comes last, when the images of the other splits are known.
        order = sorted(found, key=lambda split: split == config.train_split)
        elsewhere: set[bytes] = set()
        return {
            split: self._generate_examples(split, found[split], elsewhere)
            for split in order
            if found[split]
        }

    def _check_labels(self, splits):
        """Raises UserError for labels that are not classes; warns about classes without faces."""
        class_names = self.builder_config.class_names
        labels = {face.label for face in itertools.chain.from_iterable(splits.values())}
        unknown = sorted(labels - set(class_names))
        if unknown:
            raise UserError(
                f'{self.name}: expected labels among {", ".join(class_names)}, found '
                f'{listed(unknown)}'
            )
        missing = [name for name in class_names if name not in labels]
        if missing:
            logger.warning('%s: no images of the classes %s', self.name, ', '.join(missing))

    def _generate_examples(self, split, faces, elsewhere):
        """Yields the records of a split; `elsewhere` has the digests of images of earlier splits."""
        config, counts = self.builder_config, Counter[str]()
        unusable: list[str] = []
        leaks: list[str] = []
        for face, image in zip(faces, read_images(face.image for face in faces), strict=True):
            if image is None:
                unusable.append(face.name)
                continue
            digest = hashlib.blake2b(image, digest_size=16).digest()
            if split != config.train_split:
                elsewhere.add(digest)
            elif digest in elsewhere:
                leaks.append(face.name)
                if config.drop_leaks:
                    continue
            counts[face.label] += 1
            record = {'label': face.label, 'subject': face.subject, 'file_name': face.name}
            if config.in_memory:
                record['image'] = image
            yield face.key, record | face.extra
        self._report(split, len(faces), counts, unusable, leaks)

    def _report(self, split, number, counts, unusable, leaks):
        """Warns about findings in the `number` faces of a split; raises UserError if none is left."""
        config = self.builder_config
        names = config.class_names
        expected, classes = self.published_counts(split), self.published_classes(split)
        for finding in (
            describe_unusable(unusable, number),
            describe_leaks(leaks, config.drop_leaks),
            describe_counts([counts[name] for name in names], expected, names, classes),
        ):
            if finding:
                logger.warning('%s, split %s: %s', self.name, split, finding)
        if not counts:
            raise UserError(f'{self.name}, split {split}: none of its {number} images can be used')


def check_class_names(names: Sequence[str]) -> None:
    """Raises UserError for names of classes that are not UTF-8, or have line ends or outer spaces."""
    for name in names:
        if name != name.strip() or '\n' in name or not is_utf8(name):
            raise UserError(
                f'expected names of classes in UTF-8, without spaces around them, found {name!r}'
            )


def is_utf8(name: str) -> bool:
    """Whether a name from the disk (`os.fsdecode`) is UTF-8, which records and reports need."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _with_names_in_utf8(name, splits):
    """Returns the faces of each split whose names are UTF-8; warns about the others."""
    others = [x.name for faces in splits.values() for x in faces if not is_utf8(x.name)]
    if not others:
        return splits
    logger.warning(
        '%s: %d files whose names are not UTF-8 are left out: %s', name, len(others), listed(others)
    )
    return {split: [x for x in faces if is_utf8(x.name)] for split, faces in splits.items()}


def _check_files(splits):
    """Raises UserError for a face without an image file; only files can be read as needed."""
    for face in itertools.chain.from_iterable(splits.values()):
        if not isinstance(face.image, Path):
            raise UserError(
                f'config.data.in_memory=False: expected image files, found {face.name}, which '
                f'has no file of its own'
            )


def read_images(images: Iterable[Path | np.ndarray]) -> Iterator[bytes | None]:
    """Yields the encoded images in order; None for a file that is missing or cannot be decoded.

    Files are read and decoded in parallel. Pixels are encoded as PNG.
    """
    for are_files, run in itertools.groupby(images, lambda image: isinstance(image, Path)):
        if are_files:
            yield from _read_files(list(run))
        else:
            yield from (tf.io.encode_png(pixels).numpy() for pixels in run)


def _read_files(paths):
    names = tf.data.Dataset.from_tensor_slices([os.fsencode(path) for path in paths])
    read = names.enumerate().map(_read_image, num_parallel_calls=tf.data.AUTOTUNE)
    # Reads ahead; otherwise reading would wait while a record is written.
    ahead, expected = read.ignore_errors().prefetch(256), 0
    for row, encoded, _ in ahead.as_numpy_iterator():
        yield from [None] * (row - expected)
        yield encoded
        expected = row + 1
    yield from [None] * (len(paths) - expected)


def _read_image(row, name):
    encoded = tf.io.read_file(name)
    # Returns a pixel, because TensorFlow skips a decoding whose result is not used.
    return row, encoded, decode_image(encoded, 3)[0, 0, 0]
