"""TFDS builder of any folder of images whose classes are folders."""

import re
from pathlib import Path

from mtdml_jax.data.image_files import (
    SPLIT_NAMES,
    Face,
    FaceBuilder,
    faces_in_class_folders,
    image_files,
    visible,
)
from mtdml_jax.errors import UserError


class Folder(FaceBuilder):
    """Any folder of images: <split>/<class>/<image>, or <class>/<image>, which is all 'train'.

    The classes are the names of the folders, sorted; a split may lack some of them. Splits called
    val, valid, training or testing become validation, train and test. With config.data.subject_pattern
    the subject is the first group (or all) of what this regular expression finds in the path.
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        'Put <split>/<class>/<image> or <class>/<image> into the folder and name the folder in '
        'config.data.dir.'
    )
    SOURCES = ('*/',)

    @classmethod
    def class_names(cls, variant: str, folder: Path) -> tuple[str, ...]:
        """The names of the class folders, sorted."""
        classes = {
            path.name
            for split in cls.split_folders(folder).values()
            for path in visible(split)
            if path.is_dir()
        }
        return tuple(sorted(classes))

    @classmethod
    def split_folders(cls, folder: Path) -> dict[str, Path]:
        """The folder of class folders of each split.

        Raises:
          UserError: no images two or three levels deep.
        """
        folders = [path for path in visible(folder) if path.is_dir()]
        if any(image_files(path) for path in folders):
            return {'train': folder}
        found = {
            SPLIT_NAMES.get(path.name.lower(), path.name): path
            for path in folders
            if any(image_files(below) for below in visible(path) if below.is_dir())
        }
        if not found:
            raise UserError(
                f'{folder.absolute()} (config.data.dir): expected <split>/<class>/<image> or '
                f'<class>/<image>, found no such images'
            )
        return found

    def find_faces(self, folder: Path) -> dict[str, list[Face]]:
        """See `FaceBuilder`."""
        config = self.builder_config
        return {
            split: [
                face._replace(subject=find_subject(face.name, config.subject_pattern))
                for face in faces_in_class_folders(path, folder, config.class_names)
            ]
            for split, path in self.split_folders(folder).items()
        }


def find_subject(name: str, pattern: str) -> str:
    """The first group (or all) of what a regular expression finds in a path; '' without a pattern.

    Raises:
      UserError: a wrong pattern, or one that finds nothing.
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
