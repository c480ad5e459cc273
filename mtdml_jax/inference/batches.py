"""Lists of images, and batches of them whose work runs in the background."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from mtdml_jax.host.errors import UserError
from mtdml_jax.images.pixels import ImageLike


def as_list(images: Any) -> list[ImageLike]:
    """Returns one or many images as a list."""
    if isinstance(images, Iterator):
        raise UserError('images: found an iterator; predict_stream and embed_stream take one')
    if isinstance(images, (list, tuple)):
        return list(images)
    if isinstance(images, (set, frozenset, dict)):
        raise UserError(f'expected ordered images, found a {type(images).__name__}')
    if getattr(images, 'ndim', 0) == 4:
        return list(np.asarray(images))
    return [images]


def in_batches(items: Iterable, size: int) -> Iterator[list]:
    """Yields lists of `size` items; the last list may be shorter."""
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch


def one_behind(started: Iterable[Callable[[], Any]]) -> Iterator:
    """Calls functions that wait for background work, each after the next one has been started."""
    previous = None
    for wait in started:
        if previous:
            yield previous()
        previous = wait
    if previous:
        yield previous()
