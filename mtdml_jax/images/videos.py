"""Opens videos with PyAV, which is imported only when it is needed."""

import os
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
