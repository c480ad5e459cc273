"""Finds images, classes and splits in folders, in natural order (frame9 before frame10)."""

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from mtdml_jax.host.errors import UserError, listed
from mtdml_jax.images.pixels import FORMATS

logger = logging.getLogger(__name__)

# MPO is a JPEG of several images. Pillow does not read HEIC, but such files must be reported, not
# ignored.
IMAGE_SUFFIXES = {'.mpo', '.heic', '.heif'} | {
    suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS
}
# The names that people give to splits in folders and lists -> the name of the split.
SPLIT_NAMES = {
    'train': 'train',
    'training': 'train',
    'val': 'validation',
    'valid': 'validation',
    'validation': 'validation',
    'test': 'test',
    'testing': 'test',
}
# Glob patterns of the folders of splits.
SPLIT_FOLDERS = ('[Tt]rain*/', '[Vv]al*/', '[Tt]est*/')
# Names that operating systems leave behind, besides those that begin with a dot.
_LEFT_BEHIND = ('__MACOSX', 'Thumbs.db', 'desktop.ini')


class Face(NamedTuple):
    """A face that a data set lists, before its image is read.

    Attributes:
      name: path of the image, relative to the data set's folder.
      label: name of the class.
      image: file of the image, or its pixels, uint8 [H, W, 1 or 3].
      subject: the person; '' if unknown.
      extra: values of the data set's own features.
      where: the list and row that name the face; '' if no list does.
    """

    name: str
    label: str
    image: Path | np.ndarray
    subject: str = ''
    extra: Mapping = {}
    where: str = ''

    @property
    def key(self) -> str:
        """A text that is unique within a split. It has the box, as one image may show several faces."""
        return f'{self.name} {self.extra["box"]}' if 'box' in self.extra else self.name


def natural_order(path: Path | str) -> tuple:
    """Returns a key that sorts names in natural order: frame9 before frame10."""
    name = os.path.basename(path)
    # Texts are at even places and numbers at odd ones, so that no text is compared with a number.
    parts = re.split(r'(\d+)', name)
    return [int(x) if i % 2 else x for i, x in enumerate(parts)], name


def visible(folder: Path) -> list[Path]:
    """Returns the entries of `folder` in natural order, without hidden ones."""
    return sorted((x for x in folder.iterdir() if not _is_hidden(x.name)), key=natural_order)


def _is_hidden(name):
    return name[0] == '.' or name in _LEFT_BEHIND


def visible_folders(folder: Path) -> list[Path]:
    """Returns the folders directly in `folder`, in natural order."""
    return [path for path in visible(folder) if path.is_dir()]


def image_files(folder: Path) -> list[Path]:
    """Returns the image files directly in `folder`, in natural order."""
    return [path for path in visible(folder) if is_image(path) and not path.is_dir()]


def is_image(path: Path) -> bool:
    """Whether the suffix of a file is that of an image."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def files_below(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Yields all files in `folder` and the folders below it, each folder in natural order."""
    above = (*above, folder.resolve())
    for path in visible(folder):
        if not path.is_dir():
            yield path
        elif path.resolve() not in above:  # Otherwise a link leads back to a folder above.
            yield from files_below(path, above)


def has_own_images(folder: Path) -> bool:
    """Whether there is an image directly in `folder`; stops at the first one."""
    with os.scandir(folder) as entries:
        return any(
            is_image(Path(entry.name)) and not _is_hidden(entry.name) and not entry.is_dir()
            for entry in entries
        )


def has_images(folder: Path) -> bool:
    """Whether there is an image in `folder` or below it."""
    return has_own_images(folder) or any(is_image(path) for path in files_below(folder))


def find_patterns(folder: Path, patterns: Iterable[str]) -> list[Path]:
    """Returns the paths in `folder` that match, in the order of the glob patterns, then by name."""
    return [
        path
        for pattern in patterns
        for path in sorted(folder.glob(pattern), key=natural_order)
        if not any(map(_is_hidden, path.relative_to(folder).parts))
    ]


def warn_left_out(paths: Sequence[Path], root: Path, reason: str) -> None:
    """Logs one warning about files or folders that are not read: their number and the first names."""
    if paths:
        names = listed(path.relative_to(root).as_posix() for path in paths)
        logger.warning('%s: %d left out: %s: %s', root, len(paths), reason, names)


def split_folders(folder: Path) -> dict[str, Path]:
    """Returns split -> folder, for folders that are named like a split and have class folders.

    Raises:
      UserError: if two folders are for the same split.
    """
    found: dict[str, Path] = {}
    for path in visible_folders(folder):
        split = SPLIT_NAMES.get(path.name.lower())
        if split is None or not any(map(has_images, visible_folders(path))):
            continue
        if split in found:
            raise UserError(
                f'{folder.absolute()} (config.data.dir): expected one folder for the split {split}, '
                f'found {found[split].name} and {path.name}'
            )
        found[split] = path
    return found


def faces_in_splits(
    splits: Mapping[str, Path],
    root: Path,
    class_names: Sequence[str],
    codes: Mapping[str, str | None] | None = None,
) -> dict[str, list[Face]]:
    """Returns the images in the class folders of each split; warns about images in no class folder.

    Args:
      splits: split -> the folder of its class folders.
      root: the data set's folder, which names are relative to.
      class_names: name of each label.
      codes: further names of class folders, see `faces_in_class_folders`.

    Raises:
      UserError: if a folder is not a class.
    """
    stray = [path for folder in {root, *splits.values()} for path in image_files(folder)]
    for path in visible_folders(root):
        if root not in splits.values() and path not in splits.values():
            stray += filter(is_image, files_below(path))
    warn_left_out(stray, root, 'images in no class folder of a split')
    return {
        split: faces_in_class_folders(folder, root, class_names, codes)
        for split, folder in splits.items()
    }


def faces_in_class_folders(
    folder: Path,
    root: Path,
    class_names: Sequence[str],
    codes: Mapping[str, str | None] | None = None,
) -> list[Face]:
    """Returns the images in `folder`/<class>/ and in folders below it, with the class of their folder.

    Warns about files that are not images and about folders without images.

    Args:
      folder: the folder of class folders.
      root: the data set's folder, which names are relative to.
      class_names: name of each label; upper and lower case do not matter on disk.
      codes: further names of folders -> name of the label; the label None leaves a folder out.

    Raises:
      UserError: if a folder is not a class.
    """
    exact = {name: name for name in class_names} | dict(codes or {})
    known = {name.lower(): label for name, label in exact.items()} | exact
    faces, others, empty = [], [], []
    for path in visible_folders(folder):
        files = list(files_below(path))
        images = [file for file in files if is_image(file)]
        others += [file for file in files if not is_image(file)]
        if not images:
            empty.append(path)
            continue
        if path.name.lower() not in known:
            raise UserError(
                f'{path}: expected a folder for each class ({", ".join(exact)}), found {path.name!r}'
            )
        label = known.get(path.name, known[path.name.lower()])
        if label is not None:
            faces += [Face(image.relative_to(root).as_posix(), label, image) for image in images]
    warn_left_out(others, root, 'files that are not images')
    warn_left_out(empty, root, 'folders without images')
    return faces
