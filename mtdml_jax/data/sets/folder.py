"""TFDS builder of any folder of images with a folder for each class."""

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
    """Any folder of images: <split>/<class>/<image>, or <class>/<image>, which is all 'train'.

    Images may lie in folders below that of their class. The classes are the names of the folders that
    have images, in natural order; a split may lack some of them. Splits called val, valid, training or
    testing become validation, train and test. With config.data.subject_pattern the subject is the first
    group (or all) of what this regular expression finds in the path.
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
        """Returns split -> the folder of its class folders.

        If one folder is named like a split, all folders are splits.

        Raises:
          UserError: if there are no images two or three levels deep, or two folders are for one split.
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
                    'folder: %s and %s are two classes that differ by case alone',
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
