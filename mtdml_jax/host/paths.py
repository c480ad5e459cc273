"""Reads paths that users write."""

import os
import re
from pathlib import Path

from mtdml_jax.host.errors import UserError

# One slash is enough, because pathlib turns two into one. A single letter before the colon is a drive.
_ADDRESS = re.compile(r'[A-Za-z][A-Za-z0-9+.-]+:/')


def user_path(path: str | os.PathLike[str]) -> Path:
    """Returns a path with ~ expanded; the shell does not expand the ~ in --workdir=~/run.

    Raises:
      UserError: if the path is an address such as s3://bucket/run; pathlib would make a folder 's3:'.
    """
    text = os.fspath(path)
    if _ADDRESS.match(text):
        raise UserError(
            f'{text} is an address, but files and folders must be on this machine: mount it (gcsfuse, '
            f'rclone mount; to read, mount-s3 too) and name the folder, or use a disk and copy later'
        )
    return Path(text).expanduser()
