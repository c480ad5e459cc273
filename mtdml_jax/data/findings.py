"""Describes what preparation finds: images that are unusable, repeated, leaked or missing."""

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from mtdml_jax.host.errors import UserError, listed
from mtdml_jax.images.folders import Face

logger = logging.getLogger(__name__)

# Two numbers of faces that differ by at most this share count as equal: copies lack some images.
_TOLERANCE = 0.02


def describe_unusable(unusable: Sequence[str], count: int) -> str:
    """Describes images that are missing or cannot be decoded; returns '' if there are none.

    Args:
      unusable: names of these images.
      count: number of all images.
    """
    if not unusable:
        return ''
    return f'{len(unusable)} of {count} images are missing or cannot be decoded: {listed(unusable)}'


def describe_leaks(leaks: Sequence[str], dropped: bool) -> str:
    """Describes images of the train split that are also in another split; '' if there are none.

    Args:
      leaks: names of these images.
      dropped: whether these images are left out.
    """
    if not leaks:
        return ''
    what = 'left out' if dropped else 'config.data.drop_leaks=True leaves them out'
    return (
        f'{len(leaks)} of its images are in another split too, byte for byte: '
        f'{listed(leaks, most=3)}; {what}'
    )


def drop_repeated(name: str, splits: Mapping[str, list[Face]]) -> dict[str, list[Face]]:
    """Returns the faces of each split without repeated ones; warns about these.

    Args:
      name: name of the data set.
      splits: split -> its faces.

    Raises:
      UserError: if a face is listed with two labels or in two splits; the message names both rows.
    """
    first: dict[str, tuple[str, Face]] = {}
    kept: dict[str, list[Face]] = {split: [] for split in splits}
    repeated: list[str] = []
    conflicts: list[str] = []
    for split, faces in splits.items():
        for face in faces:
            other_split, other = first.setdefault(face.key, (split, face))
            if other is face:
                kept[split].append(face)
                continue
            places = f'{face.name} ({other.where} and {face.where})'
            same = (other_split, other.label) == (split, face.label)
            (repeated if same else conflicts).append(places)
    if conflicts:
        raise UserError(
            f'{name}: expected one label and split of an image, found {len(conflicts)} listed with two: '
            f'{listed(conflicts)}'
        )
    if repeated:
        logger.warning('%s: %d images are listed again: %s', name, len(repeated), listed(repeated))
    return kept


def describe_counts(
    found: Sequence[int],
    expected: int | Sequence[int] | None,
    class_names: Sequence[str],
    published: Mapping[str, int] | None = None,
) -> str:
    """Describes how the number of faces differs from the published one; returns '' if it does not.

    If classes have the published numbers of other classes, the labels may be in another order, as in
    copies of AffectNet with the classes in alphabetical order. The text then says which class has the
    number of which other class.

    Args:
      found: number of faces of each class, [C].
      expected: published number, in all or of each class; None if it is not known.
      class_names: name of each label, [C].
      published: class -> published number of faces, also of classes that are not among the labels.
    """
    if expected is None:
        return ''
    if isinstance(expected, int):
        total = sum(found)
        same = total == expected
        return '' if same else f'expected {expected:,} faces as published, found {total:,}'
    if list(found) == list(expected):
        return ''
    different = [
        f'{name} {wanted:,}, found {number:,}'
        for name, wanted, number in zip(class_names, expected, found, strict=True)
        if wanted != number
    ]
    return (
        f'expected {sum(expected):,} faces as published, found {sum(found):,} '
        f'({"; ".join(different)}){_describe_order(found, class_names, published or {})}'
    )


def _describe_order(found, class_names, published):
    """Says which classes the numbers belong to, if two or more have the number of another class."""
    names, numbers = list(published), np.array(list(published.values()), float)
    if not names:
        return ''
    fitting = {}
    for name, number in zip(class_names, found, strict=True):
        difference = np.abs(numbers - number) / numbers
        if difference.min() <= _TOLERANCE:
            fitting[name] = names[int(difference.argmin())]
    moved = {name: other for name, other in fitting.items() if name != other}
    if len(moved) < 2 or len(set(fitting.values())) < len(fitting):
        return ''
    return '. The numbers fit labels in another order: ' + ', '.join(
        f'what is read as {name} is {other}' for name, other in moved.items()
    )
