"""The pictures at the paths that a user names: images, folders, patterns, and videos frame by frame."""

import glob
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from mtdml_jax.images.folders import files_below, is_image, natural_order, warn_left_out
from mtdml_jax.images.pixels import MAX_PIXELS

# What is decoded as a video; of animated images the first frame is the image.
VIDEO_SUFFIXES = {
    '.avi',
    '.m4v',
    '.mkv',
    '.mov',
    '.mp4',
    '.mpeg',
    '.mpg',
    '.mts',
    '.ogv',
    '.webm',
    '.wmv',
    '.3gp',
}
# Of a frame, counter-clockwise in degrees -> what turns it so.
_TURNS = {
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    -180: Image.Transpose.ROTATE_180,
    -90: Image.Transpose.ROTATE_270,
}


class Picture(NamedTuple):
    """An image file, or a frame of a video.

    Attributes:
      path: of the file, as text.
      image: what `pixels.open_image` takes: the file, or the frame; None if there is an error.
      frame: number of the frame, from 0; None of an image.
      time: of the frame, in seconds; None of an image, or where the video does not tell.
      error: why there is no image; '' if there is one.
      name: where the picture stands below what the user named, as a relative path.
    """

    path: str
    image: Path | Image.Image | None = None
    frame: int | None = None
    time: float | None = None
    error: str = ''
    name: str = ''


def read_pictures(arguments: Iterable[str], every: int = 1) -> Iterator[Picture]:
    """The pictures at paths, one after the other; what cannot be found or read is one with an error.

    Args:
      arguments: image and video files; folders, which are read with all below them in natural order;
        glob patterns, of files; '-' for the lines of standard input, each a path in turn.
      every: of a video every n-th frame, from the first on.
    """
    for argument in arguments:
        if argument != '-':
            yield from _read_argument(argument, every)
            continue
        for line in sys.stdin.buffer:
            name = os.fsdecode(line.rstrip(b'\r\n'))
            if name:
                yield from _read_argument(name, every)


def _read_argument(argument, every):
    path = Path(argument).expanduser()
    try:
        if path.is_dir():
            files, root = _files_of_folder(path), path
        elif os.path.lexists(path) or not glob.has_magic(argument):
            files, root = [path], path.parent
        else:
            files, root = _files_of_pattern(path), path.parent
        is_empty = True
        for file in files:
            is_empty = False
            yield from _read_file(
                file, file.name if root == path.parent else _below(file, root), every
            )
    except (OSError, ValueError) as error:
        yield Picture(argument, error=f'it cannot be read ({_reason(error)})')
        return
    if is_empty:
        where = 'in this folder' if path.is_dir() else 'at this pattern'
        yield Picture(argument, error=f'no image and no video {where}')


def _below(file, root):
    return file.relative_to(root).as_posix()


def _files_of_folder(folder):
    """Images and videos; at the end a warning of what else there is."""
    others = []
    for path in files_below(folder):
        if is_image(path) or is_video(path):
            yield path
        else:
            others.append(path)
    warn_left_out(others, folder, 'neither images nor videos')


def _files_of_pattern(pattern):
    found = map(Path, glob.iglob(str(pattern), recursive=True))
    files = [path for path in found if not path.is_dir()]
    return sorted(files, key=lambda path: [natural_order(part) for part in path.parts])


def is_video(path: Path) -> bool:
    """Whether a file is called as videos are."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def _read_file(path, name, every):
    if is_video(path):
        yield from _read_video(path, name, every)
    else:
        yield Picture(str(path), path, name=name)


def _read_video(path, name, every):
    try:
        import av
    except ImportError:
        yield Picture(str(path), error="reading videos takes PyAV: pip install 'mtdml_jax[video]'")
        return
    number = 0
    try:
        with av.open(path) as container:
            if not container.streams.video:
                raise ValueError('no video in it')
            stream = container.streams.video[0]
            stream.thread_type = 'AUTO'
            for frame in container.decode(stream):
                if number % every == 0:
                    yield Picture(str(path), _upright(frame), number, frame.time, name=name)
                number += 1
            if number == 0:
                raise ValueError('no frame in it')
    except (OSError, ValueError, MemoryError, av.FFmpegError) as error:
        place = f' after {number} frames' if number else ''
        yield Picture(str(path), error=f'it cannot be decoded{place} ({_reason(error)})')


def _upright(frame):
    """Pillow's image of a frame, turned as the video says."""
    if frame.width * frame.height > MAX_PIXELS:
        raise ValueError(
            f'{frame.width} x {frame.height} pixels are more than {MAX_PIXELS:,} in all'
        )
    image = Image.fromarray(frame.to_ndarray(format='rgb24'))
    turn = _TURNS.get(frame.rotation)
    return image.transpose(turn) if turn is not None else image


def _reason(error):
    return getattr(error, 'strerror', None) or error
