"""Prepares data sets once, with TFDS."""

import contextlib
import difflib
import io
import os
import shutil
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import tensorflow as tf
import tensorflow_datasets as tfds
from filelock import FileLock
from google.protobuf import json_format
from ml_collections import ConfigDict

from mtdml_jax.data import sets  # noqa: F401 (importing registers the builders)
from mtdml_jax.data.decode import decode_image
from mtdml_jax.data.download import downloading
from mtdml_jax.data.findings import describe_unusable
from mtdml_jax.data.image_files import FaceBuilder
from mtdml_jax.host.errors import UserError
from mtdml_jax.host.paths import user_path


def prepare(data: ConfigDict) -> tfds.core.DatasetBuilder:
    """Returns the builder of `data.name`, and prepares the data set in `data.prepared_dir` if needed.

    An interrupted preparation leaves nothing that could be mistaken for a data set. The next preparation
    removes what a killed one left. Two processes never prepare the same data set at the same time.

    Args:
      data: the section `data` of the config.

    Raises:
      UserError: if the data set is unknown, if source files are missing, wrong or unreadable, or if the
        prepared data are damaged.
    """
    with _explaining(data):
        return _prepare(data)


def find_features(data: ConfigDict) -> dict[str, tfds.features.FeatureConnector]:
    """Returns name -> feature of `data.name`; they are known before the data set is prepared.

    Args:
      data: the section `data` of the config.

    Raises:
      UserError: see `make_builder`.
    """
    with _explaining(data):
        return dict(make_builder(data).info.features)


@contextlib.contextmanager
def _explaining(data):
    """Raises UserError for prepared data that are damaged, and for source files that cannot be read."""
    try:
        yield
    except json_format.ParseError as error:
        raise damaged(data, user_path(data.prepared_dir) / f'{data.name}*', error) from error
    except OSError as error:
        raise UserError(
            f'{data.name}, which is read from {data.dir} (config.data.dir): {error}'
        ) from error


def _prepare(data):
    builder = make_builder(data)
    path = Path(builder.data_path)
    if path.exists():
        if not builder.info.splits:
            raise damaged(data, path, 'it does not say which splits it has')
        return builder
    with _lock(path.parent):
        for half_done in path.parent.glob('incomplete.*'):
            shutil.rmtree(half_done)
        download = tfds.download.DownloadConfig(manual_dir=user_path(data.dir))
        # A log cannot overwrite its lines, so it gets no progress bar.
        tfds.display_progress_bar(sys.stderr.isatty())
        with _telling(builder) if _is_ours(builder) else downloading(data):
            builder.download_and_prepare(download_config=download)
    if not _is_ours(builder):
        try:
            check_builder(builder)
        except UserError:
            shutil.rmtree(path)
            raise
    return builder


def _is_ours(builder):
    """Whether a set is drawn by this package, or its images are checked while they are prepared."""
    return isinstance(builder, FaceBuilder) or type(builder).__module__.startswith(__package__)


def _telling(builder):
    """Prints what is prepared for a set of ours, in place of TFDS's message about a download."""
    print(f'{builder.name}: preparing its images once, in {builder.data_path}', file=sys.stderr)
    return contextlib.redirect_stdout(io.StringIO())


def damaged(data: ConfigDict, folder: str | os.PathLike, reason: object) -> UserError:
    """Returns the error for prepared data in `folder` that cannot be read."""
    return UserError(
        f'{data.name}: the prepared data in {folder} cannot be read ({str(reason).rstrip(".")}); remove '
        f'them, and the same command prepares them again'
    )


def make_builder(data: ConfigDict) -> tfds.core.DatasetBuilder:
    """Returns the builder of `data.name`. Each state of the source files has a folder of its own.

    Raises:
      UserError: if the data set is unknown, has no source files, or lacks a chosen option.
    """
    prepared_dir = user_path(data.prepared_dir)
    try:
        builder_class = tfds.builder_cls(data.name)
    except tfds.core.DatasetNotFoundError as error:
        near = difflib.get_close_matches(data.name, tfds.list_builders(), n=1)
        hint = f'; did you mean {near[0]!r}?' if near else ''
        raise UserError(f'config.data.name: no data set {data.name!r}{hint}') from error
    if not issubclass(builder_class, FaceBuilder):
        if not data.in_memory:
            raise UserError(
                f'config.data.in_memory=False: {data.name} is not read from image files'
            )
        config = {'config': data.variant} if data.variant else {}
        return builder_class(data_dir=prepared_dir, **config)
    config = builder_class.make_config(data)
    sources = builder_class.watched(user_path(data.dir), config)
    number = fingerprint(sources, config, folders_only=builder_class.LARGE)
    return builder_class(data_dir=prepared_dir / f'{data.name}-{number}', config=config)


def fingerprint(sources: Iterable[Path], settings: object, folders_only: bool = False) -> str:
    """Returns a checksum in hex of the names, sizes and times of all files, and of settings.

    Args:
      sources: files and folders.
      settings: anything whose `repr` has its whole content.
      folders_only: whether to use only the folders below a folder, and not each file in them.
    """
    checksum = zlib.crc32(repr(settings).encode())

    def add(path, name):
        nonlocal checksum
        # A broken link counts by itself.
        stat = os.stat(path) if os.path.exists(path) else os.lstat(path)
        text = f' {stat.st_size} {stat.st_mtime_ns}'
        checksum = zlib.crc32(os.fsencode(name) + text.encode(), checksum)

    for source in sources:
        add(source, source.name)
        for folder, below, files in os.walk(source):
            below.sort()  # os.walk visits them in this order.
            for name in below + ([] if folders_only else sorted(files)):
                add(f'{folder}{os.sep}{name}', name)
    return f'{checksum:08x}'


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Locks a folder; waits for another process. A killed process releases its lock."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / '.lock'):
        yield


def check_builder(builder: tfds.core.DatasetBuilder) -> None:
    """Decodes every image once, so that a corrupt image does not stop a run after many hours.

    Raises:
      UserError: if the features lack an image or a label, or if images cannot be decoded.
    """
    missing = {'image', 'label'} - set(builder.info.features)
    if missing:
        raise UserError(f'config.data.name: the data set {builder.name!r} has no {sorted(missing)}')
    for split, info in builder.info.splits.items():
        dataset = builder.as_dataset(split, decoders={'image': tfds.decode.SkipDecoding()})
        # Returns a pixel, because TensorFlow skips a decoding whose result is not used.
        decoded = dataset.enumerate().map(
            lambda row, example: (row, decode_image(example['image'], 3)[0, 0, 0]),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        good = {row for row, _ in decoded.ignore_errors().as_numpy_iterator()}
        corrupt = [f'row {row}' for row in range(info.num_examples) if row not in good]
        if corrupt:
            finding = describe_unusable(corrupt, info.num_examples)
            raise UserError(f'{builder.name}, split {split}: {finding}')
