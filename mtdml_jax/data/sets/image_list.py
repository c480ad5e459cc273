"""TFDS builder of any images that are listed in a csv file."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from mtdml_jax.data.image_files import FaceBuilder, FaceConfig
from mtdml_jax.data.sets.folder import find_subject
from mtdml_jax.host.errors import UserError
from mtdml_jax.host.paths import user_path
from mtdml_jax.images.folders import SPLIT_NAMES, Face, natural_order
from mtdml_jax.images.tables import parse_box, read_csv

BOX = ('x', 'y', 'w', 'h')
ROLES = ('query', 'gallery')
YES_NO = {'1': True, 'true': True, 'yes': True, '0': False, 'false': False, 'no': False, '': False}


class Row(NamedTuple):
    """A row of the list: its place, and its text in each column that the list has."""

    where: str
    texts: dict[str, str]


@dataclasses.dataclass(eq=False)
class ListConfig(FaceConfig):
    """The config of a list.

    Attributes:
      list: path of the csv file.
      columns: (key in config.data.columns, name in the file) of each possible column.
      rows: the rows of the list.
    """

    list: str = ''
    columns: tuple[tuple[str, str], ...] = ()
    rows: Sequence[Row] = dataclasses.field(default=(), repr=False)


class ImageList(FaceBuilder):
    """Any images that a csv file lists, with the columns path and label and optional others.

    The builder reads the file config.data.list, which may be inside or outside config.data.dir. The
    columns may be in any order, and config.data.columns sets their names:
      path: path of the image; absolute, or relative to the folder of the list or to config.data.dir.
      label: name of the class. The order of the classes is config.data.class_names; if that is empty,
        the classes are all labels of the list in natural order.
      split: train, validation or test (or a common synonym), or any other name. Without this column, all
        faces are train.
      subject: name of the person. Without this column, config.data.subject_pattern finds the subject in
        the path.
      x, y, w, h: left, top, width and height of the face in pixels; empty if unknown. An image may have
        several rows, each with another box.
      query, gallery: whether the face is a query, and whether it is in the gallery, when the retrieval
        of its split is scored: 1 or 0, true or false, yes or no. Without these columns, every face is
        both.
    Other columns are ignored.
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        'Write a csv file with the columns path and label, and name it in config.data.list.'
    )

    @property
    def EXTRA(self) -> Mapping[str, tfds.features.FeatureConnector]:
        """The features box, query and gallery, if the list has their columns."""
        found, extra = self.builder_config.rows[0].texts, {}
        if found.keys() >= {*BOX}:
            extra['box'] = tfds.features.Tensor(shape=(4,), dtype=np.int32)
        if found.keys() & {*ROLES}:
            extra |= dict.fromkeys(ROLES, tfds.features.Scalar(np.bool_))
        return extra

    @classmethod
    def make_config(cls, data: ConfigDict) -> ListConfig:
        """See `FaceBuilder`."""
        path = _list_path(data.dir, data.list)
        if not path.is_file():
            raise UserError(
                f'config.data.list: no file {path.absolute()}. {cls.MANUAL_DOWNLOAD_INSTRUCTIONS}'
            )
        rows = read_list(path, data.columns)
        labels = {row.texts['label'] for row in rows}
        class_names = data.class_names or tuple(sorted(labels, key=natural_order))
        return ListConfig(
            **cls.common_settings(data, 'default', class_names),
            list=str(path),
            columns=tuple(data.columns.items()),
            rows=rows,
        )

    @classmethod
    def watched(cls, folder: Path, config: ListConfig) -> list[Path]:
        """See `FaceBuilder`. Returns the list and every image in it."""
        path = Path(config.list)
        images = {_find_image(row.texts['path'], path, folder) for row in config.rows}
        return [path, *sorted(image for image in images if image.exists())]

    def find_faces(self, folder: Path) -> dict[str, list[Face]]:
        """See `FaceBuilder`."""
        config = self.builder_config
        faces: dict[str, list[Face]] = {}
        path = Path(config.list)
        for row in config.rows:
            split = row.texts.get('split', 'train')
            face = self._read_row(row, _find_image(row.texts['path'], path, folder), folder)
            faces.setdefault(SPLIT_NAMES.get(split.lower(), split), []).append(face)
        return faces

    def _read_row(self, row, image, folder):
        config, texts = self.builder_config, row.texts
        if texts['label'] not in config.class_names:
            raise UserError(
                f'{row.where}: expected a label of {", ".join(config.class_names)} '
                f'(config.data.class_names), found {texts["label"]!r}'
            )
        read = {'box': _read_box, 'query': _read_role, 'gallery': _read_role}
        extra = {feature: read[feature](row, feature) for feature in self.EXTRA}
        name = image.relative_to(folder) if image.is_relative_to(folder) else image
        name = name.as_posix()
        subject = texts.get('subject') or find_subject(name, config.subject_pattern)
        return Face(name, texts['label'], image, subject, extra, row.where)


def read_list(path: Path, columns: Mapping[str, str]) -> list[Row]:
    """Returns the rows of a list.

    Args:
      path: the csv file.
      columns: key -> name of the column; see config.data.columns.

    Raises:
      UserError: if there are no rows, if a required column is missing, or if a row has no path, label or
        split.
    """
    rows = []
    for number, found in read_csv(path, (columns['path'], columns['label'])):
        texts = {meant: found[name] for meant, name in columns.items() if name in found}
        where = f'{path}: row {number}'
        empty = [columns[key] for key in ('path', 'label', 'split') if texts.get(key) == '']
        if empty:
            raise UserError(f'{where}: expected a value for {", ".join(empty)}, found none')
        rows.append(Row(where, texts))
    if not rows:
        raise UserError(f'{path}: expected rows of images, found none')
    lacking = [name for name in BOX if name not in rows[0].texts]
    if 0 < len(lacking) < len(BOX):
        raise UserError(f'{path}: expected all of the columns for {", ".join(BOX)} or none')
    return rows


def _list_path(folder, name):
    return user_path(folder) / user_path(name)


def _find_image(name, list_path, folder):
    """Returns the path of an image, relative to the list's folder or else to `folder`; resolves `..`."""
    beside = Path(os.path.normpath(list_path.parent / name))
    return beside if beside.exists() else Path(os.path.normpath(folder / name))


def _read_box(row, _):
    return parse_box([row.texts[name] for name in BOX], row.where) or (0, 0, 0, 0)


def _read_role(row, role):
    text = row.texts.get(role, '1').lower()
    if text not in YES_NO:
        raise UserError(f'{row.where}: expected 1 or 0 as {role}, found {row.texts[role]!r}')
    return YES_NO[text]
