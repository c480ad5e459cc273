"""What data sets of faces have in common: records, variants, reading files, checking what is there."""

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

from mtdml_jax.data.findings import (
    describe_counts,
    describe_leaks,
    describe_unusable,
    drop_repeated,
)
from mtdml_jax.data.images import decode_image
from mtdml_jax.host.errors import UserError, listed
from mtdml_jax.host.paths import user_path
from mtdml_jax.images.folders import Face, find_patterns

logger = logging.getLogger(__name__)


@dataclasses.dataclass(eq=False)
class FaceConfig(tfds.core.BuilderConfig):
    """What of a data set is wanted, from the section `data` of the config.

    Attributes:
      folder: the set's folder; prepared data do not depend on where it is.
      class_names: name of each label, [C].
      num_frames: number of frames taken of a sequence.
      subject_pattern: regular expression that finds the subject in a path.
      in_memory: whether records hold the images, or only name their files.
      train_split: the split that shall share no image with the others.
      drop_leaks: whether images that it shares are left out of it.
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


class FaceBuilder(
    tfds.core.GeneratorBasedBuilder,
    skip_registration=True,  # type: ignore[call-arg]  # TFDS has no types.
):
    """Base of the data sets that are read from files in `config.data.dir`.

    A missing or undecodable image is left out with a warning that names it; a label that the set does
    not have raises UserError, for it says that something else is wrong. What was found is compared
    with the published counts, and a difference is warned of with both numbers. Images of the train split
    that are in another split too, byte for byte, are warned of, or left out.

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
    LARGE = False

    @property
    def EXTRA(self) -> Mapping[str, tfds.features.FeatureConnector]:
        """None, unless the set has some."""
        return {}

    def find_faces(self, folder: Path) -> dict[str, list[Face]]:
        """The faces of each split in `folder`.

        Raises:
          UserError: files that are not as the set has them.
        """
        raise NotImplementedError

    def published_counts(self, split: str) -> int | tuple[int, ...] | None:
        """The published number of faces of a split, in all or of each class; None if it is not known."""
        return self.COUNTS.get(self.builder_config.name, {}).get(split)

    def published_classes(self, split: str) -> dict[str, int]:
        """The published number of faces of each class of a split, also of classes of other variants."""
        return {
            name: number
            for variant, splits in self.COUNTS.items()
            if isinstance(numbers := splits.get(split), tuple)
            for name, number in zip(self.CLASS_NAMES[variant], numbers, strict=True)
        }

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
    def make_config(cls, data: ConfigDict) -> FaceConfig:
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
        folder = user_path(data.dir)
        cls.find_sources(folder, variant)
        return FaceConfig(**cls.common_settings(data, variant, cls.class_names(variant, folder)))

    @classmethod
    def common_settings(
        cls, data: ConfigDict, variant: str, class_names: Sequence[str]
    ) -> dict[str, Any]:
        """The arguments of `FaceConfig`.

        Raises:
          UserError: names of classes that cannot be written down.
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
        """The files and folders that make another data set when they change."""
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
        labels = {face.label for face in itertools.chain.from_iterable(found.values())}
        unknown = sorted(labels - set(config.class_names))
        if unknown:
            raise UserError(
                f'{self.name}: expected labels among {", ".join(config.class_names)}, found '
                f'{listed(unknown)}'
            )
        missing = [name for name in config.class_names if name not in labels]
        if missing:
            logger.warning('%s: no images of the classes %s', self.name, ', '.join(missing))
        for split in found:
            if not re.fullmatch(r'\w[\w.-]*', split) or split == 'all':
                raise UserError(
                    f'{folder.absolute()} (config.data.dir): expected splits of letters and digits, '
                    f'found {split!r}'
                )
        if not config.in_memory:
            _check_files(found)
        # The train split last: by then it is known what the others hold.
        order = sorted(found, key=lambda split: split == config.train_split)
        elsewhere: set[bytes] = set()
        return {
            split: self._generate_examples(split, found[split], elsewhere)
            for split in order
            if found[split]
        }

    def _generate_examples(self, split, faces, elsewhere):
        """Records of a split; `elsewhere` holds the digests of the images of splits before it."""
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
        names = config.class_names
        expected, classes = self.published_counts(split), self.published_classes(split)
        for finding in (
            describe_unusable(unusable, len(faces)),
            describe_leaks(leaks, config.drop_leaks),
            describe_counts([counts[name] for name in names], expected, names, classes),
        ):
            if finding:
                logger.warning('%s, split %s: %s', self.name, split, finding)
        if not counts:
            raise UserError(
                f'{self.name}, split {split}: none of its {len(faces)} images can be used'
            )


def check_class_names(names: Sequence[str]) -> None:
    """Raises UserError for names of classes that cannot be written down, one in a line."""
    for name in names:
        if name != name.strip() or '\n' in name or not is_utf8(name):
            raise UserError(
                f'expected names of classes in UTF-8, without spaces around them, found {name!r}'
            )


def is_utf8(name: str) -> bool:
    """Whether a name from the disk (`os.fsdecode`) is one in UTF-8, as records and reports are."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _with_names_in_utf8(name, splits):
    """The faces of each split that have such names; warns of the others."""
    others = [x.name for faces in splits.values() for x in faces if not is_utf8(x.name)]
    if not others:
        return splits
    logger.warning(
        '%s: %d files whose names are not UTF-8 are left out: %s', name, len(others), listed(others)
    )
    return {split: [x for x in faces if is_utf8(x.name)] for split, faces in splits.items()}


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
    names = tf.data.Dataset.from_tensor_slices([os.fsencode(path) for path in paths])
    read = names.enumerate().map(_read_image, num_parallel_calls=tf.data.AUTOTUNE)
    # Read ahead: else reading waits while a record is written.
    ahead, expected = read.ignore_errors().prefetch(256), 0
    for row, encoded, _ in ahead.as_numpy_iterator():
        yield from [None] * (row - expected)
        yield encoded
        expected = row + 1
    yield from [None] * (len(paths) - expected)


def _read_image(row, name):
    encoded = tf.io.read_file(name)
    # A value of the pixels is returned: TensorFlow drops a decoding that nobody reads.
    return row, encoded, decode_image(encoded, 3)[0, 0, 0]
