"""Protocols: which faces are for training, for choosing the checkpoint, and for the test."""

import numpy as np
from ml_collections import ConfigDict

from mtdml_jax.data.pipeline import Split, has_split, load_split
from mtdml_jax.data.prepare import prepare
from mtdml_jax.host.errors import UserError


def load_protocol_split(data: ConfigDict, name: str) -> Split:
    """Loads the faces of a split of the protocol that the config describes.

    Training uses the splits 'train' and 'validation', which may also be given by the names in
    config.data.train_split and config.data.validation_split. With folds, 'test' is the fold that is left
    out. Every other split has the name that the data set gives it. With config.data.heldout_classes, the
    splits for training have only the other classes, and every other split has only the held-out classes.
    If the data set has no test split, these faces come from its train split.

    Args:
      data: the section `data` of the config.
      name: name of the split.

    Raises:
      UserError: if the data lack the split, fold or class, or the split has no faces.
    """
    is_train = name in ('train', data.train_split)
    is_validation = name in ('validation', data.validation_split)
    if data.folds and is_validation and not has_validation(data):
        raise UserError(
            'config.data.folds: they leave a validation split only with config.data.validation_share'
        )
    if data.folds and (is_train or is_validation or name == 'test'):
        split = load_split(data, data.train_split)
        tested = find_fold(split, data.folds, data.fold)
        split = split.take(np.flatnonzero(tested if name == 'test' else ~tested))
    else:
        split = load_split(data, _source(data, name, is_train, is_validation))
    if data.validation_share and (is_train or is_validation):
        cut = find_validation(split, data.validation_share)
        split = split.take(np.flatnonzero(cut if is_validation else ~cut))
    if data.heldout_classes:
        heldout, is_seen = find_heldout(split, data.heldout_classes), is_train or is_validation
        split = split.take(np.flatnonzero(heldout != is_seen))
    if not len(split.labels):
        raise UserError(f'{data.name}: the split {name!r} has no faces')
    return split._replace(name=name)


def _source(data, name, is_train, is_validation):
    """Returns the name of the data set's split that a split of the protocol is taken from."""
    if is_train or (is_validation and data.validation_share):
        return data.train_split
    source = data.validation_split if is_validation else name
    if data.heldout_classes and not has_split(prepare(data), source):
        return data.train_split
    return source


def has_validation(data: ConfigDict) -> bool:
    """Whether there is a validation split."""
    if data.validation_share:
        return True
    if data.folds:
        return False
    return bool(data.validation_split) and has_split(prepare(data), data.validation_split)


def count_folds(data: ConfigDict) -> int:
    """Returns the number of folds of the train split.

    Raises:
      UserError: if the settings have no folds.
    """
    if not data.folds:
        raise UserError('config.data.folds: expected a number of folds (-1: one for each subject)')
    return int(assign_folds(load_split(data, data.train_split), data.folds).max()) + 1


def find_fold(split: Split, num_folds: int, fold: int) -> np.ndarray:
    """Returns whether each face is in a fold, bool [N].

    Raises:
      UserError: if there is no such fold.
    """
    folds = assign_folds(split, num_folds)
    if not 0 <= fold <= folds.max():
        raise UserError(f'config.data.fold: expected 0 to {folds.max()}, found {fold}')
    return folds == fold


def assign_folds(split: Split, num_folds: int) -> np.ndarray:
    """Returns the fold of each face, int [N]: fold i has the subjects sorted(ids)[i::num_folds].

    If subjects are unknown, faces are assigned to folds in turn, class by class, by file name.

    Args:
      split: the faces.
      num_folds: number of folds; -1 for one fold for each subject.

    Raises:
      UserError: if there are fewer subjects or faces than folds, or if only some subjects are known.
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
    """Returns the index of each face's subject (or of the face), int [N], and what is counted."""
    known = [bool(subject) for subject in split.subjects]
    if any(known) and not all(known):
        raise UserError(f'{split.name}: the subject of {known.count(False)} faces is unknown')
    if any(known):
        return np.unique(split.subjects, return_inverse=True)[1], 'subjects'
    order = np.lexsort((np.array(split.file_names), split.labels))
    place = np.empty(len(order), int)
    place[order] = np.arange(len(order))
    return place, 'faces'


def find_validation(split: Split, share: float) -> np.ndarray:
    """Returns whether each face of a train split is for validation, bool [N]: about `share` of them.

    The validation faces are one of 1 / share folds, by subject if subjects are known. If there are few
    subjects, it is one subject.

    Raises:
      UserError: if there is a single subject, or if only some subjects are known.
    """
    place, kind = _deal(split)
    number = place.max() + 1
    if number < 2:
        raise UserError(
            f'config.data.validation_share: the split {split.name!r} has only one {kind[:-1]}, so none '
            f'would be left to train on; set it to 0 for no validation split'
        )
    num_folds = min(round(1 / share), number)
    return place % num_folds == num_folds - 1


def find_heldout(split: Split, names: tuple[str, ...]) -> np.ndarray:
    """Returns whether each face is of one of the named classes, bool [N].

    Raises:
      UserError: if a name is not a class.
    """
    unknown = sorted(set(names) - set(split.class_names))
    if unknown:
        raise UserError(
            f'config.data.heldout_classes: expected names of {", ".join(split.class_names)}, found '
            f'{", ".join(unknown)}'
        )
    return np.isin(split.labels, [split.class_names.index(name) for name in names])
