"""TFDS builder of any folder that has a folder of images for each class."""

import logging
import re
from pathlib import Path

from mtdml_jax.data.image_files import FaceBuilder
from mtdml_jax.host.errors import UserError
from mtdml_jax.images.folders import (
    Face,
    faces_in_splits,
    has_images,
    has_own_images,
    natural_order,
    split_folders,
    visible_folders,
)

logger = logging.getLogger(__name__)


class Folder(FaceBuilder):
    """Any folder of images: <split>/<class>/<image>, or <class>/<image>, where all images are train.

    The classes are the names of the class folders that contain images, in natural order. A split may
    lack some classes. A class folder may have subfolders. Split folders called val or valid, training
    and testing become validation, train and test.

    If config.data.subject_pattern is set, this regular expression finds the subject in the path of an
    image: its first group, or the whole match if it has no group.
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        'Put <split>/<class>/<image> or <class>/<image> into the folder and name the folder in '
        'config.data.dir.'
    )
    SOURCES = ('*/',)

    @classmethod
    def class_names(cls, variant: str, folder: Path) -> tuple[str, ...]:
        """Returns the names of the class folders."""
        classes = {
            path.name
            for split in cls.find_splits(folder).values()
            for path in visible_folders(split)
            if has_images(path)
        }
        return tuple(sorted(classes, key=natural_order))

    @classmethod
    def find_splits(cls, folder: Path) -> dict[str, Path]:
        """Returns split -> the folder that has its class folders.

        If any folder has the name of a split, all folders are splits.

        Raises:
          UserError: if there are no images two or three levels deep, or if two folders have the same
            split.
        """
        named, folders = split_folders(folder), visible_folders(folder)
        if not named and any(map(has_own_images, folders)):
            return {'train': folder}
        others = (path for path in folders if path not in named.values())
        found = named | {x.name: x for x in others if any(map(has_images, visible_folders(x)))}
        if not found:
            raise UserError(
                f'{folder.absolute()} (config.data.dir): expected <split>/<class>/<image> or '
                f'<class>/<image>, found no such images'
            )
        return found

    def find_faces(self, folder: Path) -> dict[str, list[Face]]:
        """See `FaceBuilder`."""
        config = self.builder_config
        by_case = {name.lower(): name for name in config.class_names}
        for name in config.class_names:
            if by_case[name.lower()] != name:
                logger.warning(
                    'folder: %s and %s are two classes that differ only in case',
                    name,
                    by_case[name.lower()],
                )
        found = faces_in_splits(self.find_splits(folder), folder, config.class_names)
        return {
            split: [
                face._replace(subject=find_subject(face.name, config.subject_pattern))
                for face in faces
            ]
            for split, faces in found.items()
        }


def find_subject(name: str, pattern: str) -> str:
    """Returns the first group (or the whole match) of a pattern in a path; '' without a pattern.

    Raises:
      UserError: if the pattern is invalid or finds nothing.
    """
    if not pattern:
        return ''
    try:
        found = re.search(pattern, name)
    except re.error as error:
        raise UserError(f'config.data.subject_pattern: {pattern!r}: {error}') from error
    if not found:
        raise UserError(f'config.data.subject_pattern: {pattern!r} finds no subject in {name!r}')
    return found.group(1) if found.groups() else found.group()
