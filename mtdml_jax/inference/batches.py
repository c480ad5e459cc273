"""Lists of images, and batches of them whose work runs in the background."""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from mtdml_jax.host.errors import UserError
from mtdml_jax.images.pixels import ImageLike

NUM_THREADS = min(os.cpu_count() or 1, 8)
# Threads gain nothing for arrays of at most so many values, because most of the work holds the GIL.
SMALL = 2**16


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


def run_batches(
    load: Callable[[ImageLike, Any], np.ndarray],
    forward: Callable[[np.ndarray], Callable[[], Any]],
    faces: Iterable[tuple[ImageLike, Any]],
    size: int,
) -> Iterator:
    """Yields what a network computes for each batch, and decodes the next batch meanwhile.

    Args:
      load: returns the input of the network for an image and a box.
      forward: starts the network on the stacked inputs, and returns the function that waits for it.
      faces: pairs of an image and a box.
      size: number of faces in a batch; a batch of one is answered before the next face is read.
    """
    with ThreadPoolExecutor(NUM_THREADS) as pool:

        def start(batch):
            return forward(np.stack(_load_all(pool, load, batch)))

        started = map(start, in_batches(faces, size))
        yield from (wait() for wait in started) if size == 1 else one_behind(started)


def _load_all(pool, load, faces):
    if len(faces) == 1 or all(_is_small(image) for image, _ in faces):
        return [load(*face) for face in faces]
    # Each thread gets one part of the faces, because a task takes longer than a small image.
    share = -(-len(faces) // NUM_THREADS)
    found = pool.map(lambda part: [load(*face) for face in part], in_batches(faces, share))
    return list(itertools.chain.from_iterable(found))


def _is_small(image):
    return isinstance(image, np.ndarray) and image.size <= SMALL
