"""Opens videos with PyAV, which is imported only when it is needed."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def open_video(path: Path) -> Any:
    """Opens a video file of this machine; returns a context manager, PyAV's container.

    FFmpeg takes the text before a colon for a protocol, and some formats name other files or addresses.
    So the protocol is said here, and no other one is allowed.

    Raises:
      ImportError: PyAV is not installed.
      OSError, ValueError, av.FFmpegError: the file cannot be opened.
    """
    import av

    return av.open(f'file:{os.fspath(path)}', options={'protocol_whitelist': 'file'})


def timed_frames(container: Any) -> Iterator[tuple[Any, float | None]]:
    """Yields each frame of a container's first video stream with its time.

    The time is that of the frame's display, in seconds since the first frame. It never goes back, and is
    None if the video gives no times.

    AVI has no times of display, and with B-frames PyAV gives those of other frames in their place
    (findings/pyav_avi_times.sh). There the time is that of the packet that completed the frame, which
    is late by the same number of packets for all frames.
    """
    stream = container.streams.video[0]
    stream.thread_type = 'AUTO'
    field = 'dts' if container.format.name == 'avi' else 'pts'
    step = 1 / float(stream.average_rate) if stream.average_rate else 0.0
    first = last = None
    for frame in container.decode(stream):
        ticks = getattr(frame, field)
        if ticks is not None and first is None:
            first = ticks
        if ticks is not None:
            last = max(last or 0.0, float((ticks - first) * frame.time_base))
        elif last is not None:  # No packet is left that could complete the frame.
            last += step
        yield frame, last
