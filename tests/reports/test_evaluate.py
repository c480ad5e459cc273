from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from small_data import CONFIG

from mtdml_jax.config import load_config
from mtdml_jax.reports import evaluate as module
from mtdml_jax.reports.evaluate import describe_run, evaluate


def test_run_is_described_without_git_and_without_the_name_of_the_processor(monkeypatch):
    monkeypatch.setenv('PATH', '')
    monkeypatch.setattr('sys.platform', 'another')
    state = SimpleNamespace(step=3, variables={'params': {'kernel': np.zeros((2, 5))}})
    info = {'seconds': {'total': 4.0, 'steps': 2.0}}
    found = describe_run(load_config(CONFIG), Path('a'), state, info, 'train')
    assert (found['commit'], found['device'], found['num_parameters']) == ('', 'cpu', 10)


def test_results_are_shown_first_and_written_though_nobody_reads_them(monkeypatch):
    done = []

    def show(evaluation):
        done.append('shown')
        raise BrokenPipeError

    monkeypatch.setattr(module, '_measure', lambda *_: SimpleNamespace(evaluation={}))
    monkeypatch.setattr(module, '_publish', lambda *_: done.append('written'))
    with pytest.raises(BrokenPipeError):
        evaluate(load_config(CONFIG), Path('a'), 'test', show=show)
    assert done == ['shown', 'written']
