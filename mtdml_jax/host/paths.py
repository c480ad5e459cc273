"""Paths of files and folders, as people write them."""

import os
import re
from pathlib import Path

from mtdml_jax.host.errors import UserError

# With one slash too, which is what pathlib leaves of two; of one letter it is a drive.
_ADDRESS = re.compile(r'[A-Za-z][A-Za-z0-9+.-]+:/')


def user_path(path: str | os.PathLike[str]) -> Path:
    """As the shell would have it, which leaves the ~ of --workdir=~/run alone.

    Raises:
      UserError: an address, such as s3://bucket/run, of which pathlib would make a folder 's3:'.
    """
    text = os.fspath(path)
    if _ADDRESS.match(text):
        raise UserError(
            f'{text} is an address, and files and folders are of this machine: mount it (gcsfuse, '
            f'rclone mount; to read, mount-s3 too) and name the folder, or use a disk and copy later'
        )
    return Path(text).expanduser()
