"""Reads the pictures at the paths that a user names: images, folders, patterns, and video frames."""

import glob
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from mtdml_jax.host.errors import UserError
from mtdml_jax.host.paths import user_path
from mtdml_jax.images.folders import files_below, is_image, natural_order, warn_left_out
from mtdml_jax.images.pixels import MAX_PIXELS
from mtdml_jax.images.videos import open_video, timed_frames

# Files with these endings are decoded as videos. An animated image counts as its first frame.
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
# Counter-clockwise rotation of a frame in degrees -> the transposition that applies it.
_TURNS = {
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    -180: Image.Transpose.ROTATE_180,
    -90: Image.Transpose.ROTATE_270,
}


class Picture(NamedTuple):
    """An image file, or a frame of a video.

    Attributes:
      path: path of the file, as text.
      image: what `pixels.open_image` takes: the file, or the frame; None if there is an error.
      frame: number of the frame, from 0; None for an image.
      time: seconds since the first frame; None for an image, or if the video does not give times.
      error: the reason why there is no image; '' if there is an image.
      name: relative path of the picture below the folder or pattern that the user named.
    """

    path: str
    image: Path | Image.Image | None = None
    frame: int | None = None
    time: float | None = None
    error: str = ''
    name: str = ''


def read_pictures(arguments: Iterable[str], every: int = 1) -> Iterator[Picture]:
    """Yields the pictures at paths; a path that cannot be found or read yields one with an error.

    Args:
      arguments: image and video files; folders, which are searched recursively in natural order; glob
        patterns of files; or '-' to read paths from standard input, one per line.
      every: reads every n-th frame of a video, starting with the first frame.
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
    try:
        path = user_path(argument)
    except UserError as error:
        yield Picture(argument, error=str(error).replace(argument, 'it', 1))
        return
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
    """Yields the images and videos of a folder, then warns about the other files in it."""
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
    """Whether the ending of a file's name is that of a video."""
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
        yield Picture(str(path), error="reading videos needs PyAV: pip install 'mtdml_jax[video]'")
        return
    number = 0
    try:
        with open_video(path) as container:
            if not container.streams.video:
                raise ValueError('it has no video stream')
            for frame, time in timed_frames(container):
                if number % every == 0:
                    yield Picture(str(path), _upright(frame), number, time, name=name)
                number += 1
            if number == 0:
                raise ValueError('it has no frames')
    except (OSError, ValueError, MemoryError, av.FFmpegError) as error:
        place = f' after {number} frames' if number else ''
        yield Picture(str(path), error=f'it cannot be decoded{place} ({_reason(error)})')


def _upright(frame):
    """Converts a frame to a Pillow image, rotated as the video's metadata says."""
    if frame.width * frame.height > MAX_PIXELS:
        raise ValueError(
            f'{frame.width} x {frame.height} pixels are more than {MAX_PIXELS:,} in all'
        )
    image = Image.fromarray(frame.to_ndarray(format='rgb24'))
    turn = _TURNS.get(frame.rotation)
    return image.transpose(turn) if turn is not None else image


def _reason(error):
    return getattr(error, 'strerror', None) or error
