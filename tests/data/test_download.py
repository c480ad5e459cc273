import socket
import time

import pytest
import requests
import tensorflow_datasets as tfds
from face_trees import data_config

from mtdml_jax.data.download import downloading
from mtdml_jax.data.prepare import prepare
from mtdml_jax.host.errors import UserError


class Remote(tfds.core.GeneratorBasedBuilder):
    """A data set whose three files are on an unreachable host."""

    VERSION = tfds.core.Version('1.0.0')
    host = ''

    def _info(self):
        return tfds.core.DatasetInfo(builder=self)

    def _split_generators(self, dl_manager):
        dl_manager.download([f'{self.host}/{number}' for number in range(3)])

    def _generate_examples(self):
        yield from ()


def test_set_that_cannot_be_downloaded_is_given_up_soon_in_one_line(tmp_path, monkeypatch):
    with socket.socket() as closed:
        # The socket is bound but does not listen, so it refuses connections.
        closed.bind(('127.0.0.1', 0))
        monkeypatch.setattr(Remote, 'host', f'http://127.0.0.1:{closed.getsockname()[1]}')
        monkeypatch.setattr(
            time, 'sleep', lambda seconds: pytest.fail('waits') if seconds > 1 else None
        )
        message = (
            r'remote cannot be downloaded: .*127\.0\.0\.1.*config\.data\.prepared_dir .*prepared'
        )
        with pytest.raises(UserError, match=message) as error:
            prepare(data_config('remote', tmp_path / 'none'))
    assert '\n' not in str(error.value)


def test_only_the_connection_has_a_limit_and_only_in_downloads(tmp_path, monkeypatch):
    from tensorflow_datasets.core.download import downloader

    seen = []
    monkeypatch.setattr(requests.Session, 'request', lambda self, *_, **given: seen.append(given))
    with downloading(data_config('mnist', tmp_path)):
        downloader.requests.Session().get('http://127.0.0.1', stream=True)
    requests.Session().get('http://127.0.0.1')
    assert [given.get('timeout') for given in seen] == [(3, None), None]
    assert seen[0]['stream']
