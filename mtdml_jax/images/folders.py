"""What lies in folders: images, classes and splits, in the order in which people count."""

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

# And MPO, JPEG of several pictures; and HEIC, which Pillow does not read: such are to be named, not
# passed over.
IMAGE_SUFFIXES = {'.mpo', '.heic', '.heif'} | {
    suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS
}
# Names of splits as people write them on folders and in lists.
SPLIT_NAMES = {
    'train': 'train',
    'training': 'train',
    'val': 'validation',
    'valid': 'validation',
    'validation': 'validation',
    'test': 'test',
    'testing': 'test',
}
# Where they lie, as glob patterns.
SPLIT_FOLDERS = ('[Tt]rain*/', '[Vv]al*/', '[Tt]est*/')
# What systems leave behind, beside the files that begin with a dot.
_LEFT_BEHIND = ('__MACOSX', 'Thumbs.db', 'desktop.ini')


class Face(NamedTuple):
    """A face as a data set lists it, not read yet.

    Attributes:
      name: where it comes from, relative to the set's folder.
      label: name of its class.
      image: its file, or its pixels, uint8 [H, W, 1 or 3].
      subject: who it is; '' if unknown.
      extra: values of the set's own features.
      where: the list and row that name it; '' if none does.
    """

    name: str
    label: str
    image: Path | np.ndarray
    subject: str = ''
    extra: Mapping = {}
    where: str = ''

    @property
    def key(self) -> str:
        """What no two faces of a split have in common: one image may show several, each in its box."""
        return f'{self.name} {self.extra["box"]}' if 'box' in self.extra else self.name


def natural_order(path: Path | str) -> tuple:
    """Key for sorting names as people count: frame9 before frame10."""
    name = os.path.basename(path)
    # Texts at even places, numbers at odd ones: they are never compared with each other.
    parts = re.split(r'(\d+)', name)
    return [int(x) if i % 2 else x for i, x in enumerate(parts)], name


def visible(folder: Path) -> list[Path]:
    """What is right in `folder`, in natural order, without what systems and notebooks hide there."""
    return sorted((x for x in folder.iterdir() if not _is_hidden(x.name)), key=natural_order)


def _is_hidden(name):
    return name[0] == '.' or name in _LEFT_BEHIND


def visible_folders(folder: Path) -> list[Path]:
    """The folders right in `folder`, in natural order."""
    return [path for path in visible(folder) if path.is_dir()]


def image_files(folder: Path) -> list[Path]:
    """The image files right in `folder`, in natural order."""
    return [path for path in visible(folder) if is_image(path) and not path.is_dir()]


def is_image(path: Path) -> bool:
    """Whether a file is called as images are."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def files_below(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """All files in `folder` and the folders below it, each folder in natural order."""
    above = (*above, folder.resolve())
    for path in visible(folder):
        if not path.is_dir():
            yield path
        elif path.resolve() not in above:  # Else a link to where it came from.
            yield from files_below(path, above)


def has_own_images(folder: Path) -> bool:
    """Whether there is an image right in `folder`; the first ends the search."""
    with os.scandir(folder) as entries:
        return any(
            is_image(Path(entry.name)) and not _is_hidden(entry.name) and not entry.is_dir()
            for entry in entries
        )


def has_images(folder: Path) -> bool:
    """Whether there is an image in `folder` or below it."""
    return has_own_images(folder) or any(is_image(path) for path in files_below(folder))


def find_patterns(folder: Path, patterns: Iterable[str]) -> list[Path]:
    """What is in `folder`, in the order of the glob patterns, then by name."""
    return [
        path
        for pattern in patterns
        for path in sorted(folder.glob(pattern), key=natural_order)
        if not any(map(_is_hidden, path.relative_to(folder).parts))
    ]


def warn_left_out(paths: Sequence[Path], root: Path, reason: str) -> None:
    """Warns once of files or folders that are not read, with their number and the first names."""
    if paths:
        names = listed(path.relative_to(root).as_posix() for path in paths)
        logger.warning('%s: %d left out: %s: %s', root, len(paths), reason, names)


def split_folders(folder: Path) -> dict[str, Path]:
    """The folders in `folder` that are called as splits are and hold class folders with images.

    Raises:
      UserError: two folders for one split.
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
    """The images in the class folders of each split; warns of images that are in none.

    Args:
      splits: split -> the folder of its class folders.
      root: as of `faces_in_class_folders`, as the rest.
      class_names: name of each label.
      codes: further names of folders.

    Raises:
      UserError: a folder that is no class.
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
    """The images in `folder`/<class>/, and in folders below, with the class of their folder.

    Warns of files that are no images, and of folders without any.

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
    warn_left_out(others, root, 'files that are no images')
    warn_left_out(empty, root, 'folders without images')
    return faces
