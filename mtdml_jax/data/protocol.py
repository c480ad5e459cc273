"""Protocols: which faces are trained on, which choose the checkpoint, which are tested."""

import numpy as np
from ml_collections import ConfigDict

from mtdml_jax.data.pipeline import Split, has_split, load_split
from mtdml_jax.data.prepare import prepare
from mtdml_jax.host.errors import UserError


def load_part(data: ConfigDict, part: str) -> Split:
    """The faces of a part of the protocol that the config describes.

    'train' and 'validation' (or what config.data.train_split and validation_split call them) are the
    parts that training sees; 'test' is, with folds, the fold left out. Any other split goes by its own
    name. With config.data.heldout_classes, 'train' has the other classes only and every other part has
    these only; a set without a test split gives them from its train split.

    Args:
      data: the section `data` of the config.
      part: name of the part.

    Raises:
      UserError: a part, fold or class that the data lacks.
    """
    is_train = part in ('train', data.train_split)
    is_validation = part in ('validation', data.validation_split)
    if data.folds and is_validation and not has_validation(data):
        raise UserError(
            'config.data.folds: they leave a validation part only with config.data.validation_share'
        )
    if data.folds and (is_train or is_validation or part == 'test'):
        split = load_split(data, data.train_split)
        tested = find_fold(split, data.folds, data.fold)
        split = split.take(np.flatnonzero(tested if part == 'test' else ~tested))
    else:
        split = load_split(data, _source(data, part, is_train, is_validation))
    if data.validation_share and (is_train or is_validation):
        cut = find_validation(split, data.validation_share)
        split = split.take(np.flatnonzero(cut if is_validation else ~cut))
    if data.heldout_classes:
        heldout, is_seen = find_heldout(split, data.heldout_classes), is_train or is_validation
        split = split.take(np.flatnonzero(heldout != is_seen))
    if not len(split.labels):
        raise UserError(f'{data.name}: the part {part!r} has no faces')
    return split._replace(name=part)


def _source(data, part, is_train, is_validation):
    """The split of the data set that a part is taken from."""
    if is_train or (is_validation and data.validation_share):
        return data.train_split
    name = data.validation_split if is_validation else part
    if data.heldout_classes and not has_split(prepare(data), name):
        return data.train_split
    return name


def has_validation(data: ConfigDict) -> bool:
    """Whether there is a part that training can be watched on."""
    if data.validation_share:
        return True
    if data.folds:
        return False
    return bool(data.validation_split) and has_split(prepare(data), data.validation_split)


def count_folds(data: ConfigDict) -> int:
    """The number of folds of the train split.

    Raises:
      UserError: settings without folds.
    """
    if not data.folds:
        raise UserError('config.data.folds: expected a number of folds (-1: one for each subject)')
    return int(assign_folds(load_split(data, data.train_split), data.folds).max()) + 1


def find_fold(split: Split, num_folds: int, fold: int) -> np.ndarray:
    """Which faces are in a fold, bool [N].

    Raises:
      UserError: no such fold.
    """
    folds = assign_folds(split, num_folds)
    if not 0 <= fold <= folds.max():
        raise UserError(f'config.data.fold: expected 0 to {folds.max()}, found {fold}')
    return folds == fold


def assign_folds(split: Split, num_folds: int) -> np.ndarray:
    """The fold of each face, int [N]: fold i has the subjects sorted(ids)[i::num_folds].

    Where subjects are unknown, faces are dealt out in turns, class by class in the order of file names.

    Args:
      split: the faces.
      num_folds: number of folds; -1 for one fold a subject.

    Raises:
      UserError: fewer subjects or faces than folds, or subjects that are known of some faces only.
    """
    if num_folds == -1 and not any(split.subjects):
        raise UserError('config.data.folds=-1: the subjects of this data set are not known')
    place, kind = _deal(split)
    number = place.max() + 1
    num_folds = number if num_folds == -1 else num_folds
    if not 2 <= num_folds <= number:
        raise UserError(
            f'config.data.folds: expected -1, or 2 to {number} (the {kind}), found {num_folds}'
        )
    return place % num_folds


def _deal(split):
    """The place of each face in a row out of which folds are dealt, int [N]; and what stands there."""
    known = [bool(subject) for subject in split.subjects]
    if any(known) and not all(known):
        raise UserError(f'{split.name}: the subject is unknown of {known.count(False)} faces')
    if any(known):
        return np.unique(split.subjects, return_inverse=True)[1], 'subjects'
    order = np.lexsort((np.array(split.file_names), split.labels))
    place = np.empty(len(order), int)
    place[order] = np.arange(len(order))
    return place, 'faces'


def find_validation(split: Split, share: float) -> np.ndarray:
    """Which faces of a train split are to choose the checkpoint, bool [N]: about `share` of them.

    They are one fold of 1 / share, by subject where subjects are known; of few subjects it is one.

    Raises:
      UserError: a single subject, or subjects that are known of some faces only.
    """
    place, kind = _deal(split)
    number = place.max() + 1
    if number < 2:
        raise UserError(
            f'config.data.validation_share: all {kind} of the split {split.name!r} are one, and none '
            f'would be left to train on; set it to 0 for no validation part'
        )
    num_folds = min(round(1 / share), number)
    return place % num_folds == num_folds - 1


def find_heldout(split: Split, names: tuple[str, ...]) -> np.ndarray:
    """Which faces are of the classes with these names, bool [N].

    Raises:
      UserError: a name that is no class.
    """
    unknown = sorted(set(names) - set(split.class_names))
    if unknown:
        raise UserError(
            f'config.data.heldout_classes: expected names of {", ".join(split.class_names)}, found '
            f'{", ".join(unknown)}'
        )
    return np.isin(split.labels, [split.class_names.index(name) for name in names])
