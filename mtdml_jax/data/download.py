"""Downloads TFDS's own data sets, and gives up soon if the host cannot be reached."""

import contextlib
import types
from collections.abc import Iterator
from typing import Any

import requests
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from tensorflow_datasets.core.download import downloader

from mtdml_jax.host.errors import UserError

# Limit for a host that does not answer. A host may have two addresses; each is retried once.
SECONDS_TO_CONNECT = 3
NUM_RETRIES = 1


class _Session(requests.Session):
    """A session that limits the time to connect, but not the time to read."""

    def request(self, *args: Any, **kwargs: Any) -> requests.Response:
        return super().request(*args, **kwargs | {'timeout': (SECONDS_TO_CONNECT, None)})


@contextlib.contextmanager
def downloading(data: ConfigDict) -> Iterator[None]:
    """A context in which TFDS's downloads that fail end soon, with an error of one line.

    Args:
      data: the section `data` of the config.

    Raises:
      UserError: if the data set cannot be downloaded, or needs files that the user must copy by hand.
    """
    # TFDS 4.9.10 has no time limit for connecting and retries for minutes. The limits are not reset
    # afterwards: the other threads of a failed download go on, and the process waits for them.
    downloader.MAX_RETRIES = NUM_RETRIES
    downloader.requests = types.SimpleNamespace(**vars(requests) | {'Session': _Session})
    try:
        yield
    # TFDS raises an AssertionError if files that must be copied by hand are missing.
    except (OSError, AssertionError, tfds.download.DownloadError) as error:
        raise UserError(
            f'{data.name} cannot be downloaded: {error}. Prepare it on a machine that can and copy '
            f'config.data.prepared_dir ({data.prepared_dir}), or put the files that it asks for into '
            f'config.data.dir ({data.dir})'
        ) from error
