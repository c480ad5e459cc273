import os

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from mtdml_jax.host.errors import LostProcessError, UserError
from mtdml_jax.host.process import (
    check_processes_agree,
    code_digest,
    noticing_lost_processes,
    quieten,
)
from mtdml_jax.scoring import embed


@pytest.fixture
def processes(monkeypatch):
    """Returns a function that simulates one of several processes, given the arrays of all."""

    def pretend(number, gathered):
        monkeypatch.setattr(jax, 'process_index', lambda: number)
        monkeypatch.setattr(jax, 'process_count', lambda: len(gathered))
        monkeypatch.setattr(multihost_utils, 'process_allgather', lambda own: np.stack(gathered))

    return pretend


def numbers_of(facts, processes, monkeypatch):
    """Returns the numbers that a process with these facts would send to the others."""
    told = []
    processes(0, [0, 0])
    monkeypatch.setattr(
        multihost_utils, 'process_allgather', lambda own: told.append(own) or np.stack([own, own])
    )
    check_processes_agree(lambda: facts)
    return told[0]


def test_what_differs_between_processes_is_named_with_who_has_it(processes, monkeypatch):
    facts = {'jax': '0.9', 'config.seed': 1}
    same, other = (
        numbers_of(facts | {'config.seed': seed}, processes, monkeypatch) for seed in (1, 7)
    )
    processes(2, [same, same, same])
    check_processes_agree(lambda: facts)
    processes(2, [same, other, other])
    with pytest.raises(
        UserError, match='config.seed differs .*: 1, 2 from 0; on process 2 it is 7'
    ):
        check_processes_agree(lambda: facts | {'config.seed': 7})


def test_code_has_one_number_until_it_changes(tmp_path, monkeypatch):
    from mtdml_jax.host import process

    monkeypatch.setattr(process, '__file__', str(tmp_path / 'process.py'))
    (tmp_path / 'sub').mkdir()
    (tmp_path / 'sub' / 'a.py').write_text('x = 1')
    first = code_digest()
    assert code_digest() == first
    (tmp_path / 'sub' / 'a.py').write_text('x = 2')
    assert code_digest() != first


def test_failure_of_jax_is_a_lost_process_only_among_several(processes):
    def fail():
        with noticing_lost_processes():
            raise jax.errors.JaxRuntimeError('UNKNOWN: Connection reset by peer')

    with pytest.raises(jax.errors.JaxRuntimeError):
        fail()
    processes(1, [0, 0, 0])
    with pytest.raises(LostProcessError, match='process 1 of 3 .* Connection reset by peer'):
        fail()


@pytest.mark.parametrize(('before', 'after'), [('1', '2'), ('0', '0')])
def test_tensorflow_warns_only_those_who_ask_for_it(monkeypatch, before, after):
    """Importing jax sets the level to 1 if the user has not set it."""
    monkeypatch.setenv('TF_ENABLE_ONEDNN_OPTS', '0')
    monkeypatch.setenv('TF_CPP_MIN_LOG_LEVEL', before)
    quieten()
    assert os.environ['TF_CPP_MIN_LOG_LEVEL'] == after


class Rows:
    """A fake split, whose labels are the numbers of its rows."""

    def __init__(self, labels):
        self.labels = labels

    def take(self, rows):
        return Rows(self.labels[rows])


@pytest.mark.parametrize('count', [1, 2, 5, 6, 7])
def test_shares_of_three_processes_are_together_each_row_once_and_in_order(processes, count):
    split, shares = Rows(np.arange(count)), []
    for number in range(3):
        processes(number, [0] * 3)
        shares.append(embed.share_of_rows(split).labels)
    assert len({len(share) for share in shares}) == 1
    processes(0, shares)
    np.testing.assert_array_equal(embed.gather_rows(shares[0], split), np.arange(count))
