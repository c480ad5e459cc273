"""Downloads of TFDS's own sets, which give up soon where there is no way to the host."""

import contextlib
import types
from collections.abc import Iterator
from typing import Any

import requests
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from tensorflow_datasets.core.download import downloader

from mtdml_jax.host.errors import UserError

# To a host that does not answer; a host may have two addresses, and each is tried again once.
SECONDS_TO_CONNECT = 3
NUM_RETRIES = 1


class _Session(requests.Session):
    """Connects within seconds, then reads for as long as it takes."""

    def request(self, *args: Any, **kwargs: Any) -> requests.Response:
        return super().request(*args, **kwargs | {'timeout': (SECONDS_TO_CONNECT, None)})


@contextlib.contextmanager
def downloading(data: ConfigDict) -> Iterator[None]:
    """While it lasts, TFDS's downloads that fail end soon, and with one line.

    Args:
      data: the section `data` of the config.

    Raises:
      UserError: a set that cannot be downloaded, or files that have to be put there by hand.
    """
    # TFDS 4.9.10 has no limit on a connection, and tries for minutes. For good: the other threads of a
    # download that failed go on, and the process waits for them.
    downloader.MAX_RETRIES = NUM_RETRIES
    downloader.requests = types.SimpleNamespace(**vars(requests) | {'Session': _Session})
    try:
        yield
    # Files that are to be put there by hand and are not end in an AssertionError.
    except (OSError, AssertionError, tfds.download.DownloadError) as error:
        raise UserError(
            f'{data.name} cannot be downloaded: {error}. Prepare it where it can be and copy '
            f'config.data.prepared_dir ({data.prepared_dir}), or put what it asks for into '
            f'config.data.dir ({data.dir})'
        ) from error
