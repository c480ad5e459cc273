"""Writing files so that a reader finds either the whole file or none."""

import uuid
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file (text as UTF-8) under a temporary name beside `path`, then renames it to `path`.

    A process that is killed never leaves half a file at `path`. Each call has its own temporary name, so
    that several processes may write the same file. An error removes the temporary file.

    Raises:
      OSError: if the file cannot be written. A file that was at `path` before is then unchanged.
    """
    data = content.encode() if isinstance(content, str) else content
    aside = path.with_name(f'{path.name}.{uuid.uuid4().hex}')
    try:
        aside.write_bytes(data)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
