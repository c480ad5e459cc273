import re
from pathlib import Path

import numpy as np

README = Path(__file__).parents[1] / 'README.md'


def code_of(section):
    """The only Python block under a heading of the README."""
    (text,) = re.findall(
        rf'^## {re.escape(section)}\n(.*?)(?=^## |\Z)',
        README.read_text(encoding='utf-8'),
        re.DOTALL | re.MULTILINE,
    )
    (code,) = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
    return code


def test_example_of_the_readme_tells_digits_apart_and_keeps_only_the_low_thresholds():
    names = {}
    exec(code_of('Use the loss in your own JAX project'), names)
    assert names['accuracy'] > 0.95
    # After one step the neighbours are as good (98 %): the loss, which starts at 0.99, says whether
    # training had an effect, and the active shares whether every slice has its own threshold.
    assert names['loss'] < 0.1
    active = np.asarray(names['aux'].active_share)
    assert active.shape == (8,)
    assert active[:4].max() < 0.1
    assert active[-1] > 0.9


def test_example_of_the_readme_uses_the_model_of_the_repository(tmp_path, monkeypatch, capsys):
    (tmp_path / 'models').symlink_to(README.parent / 'models')
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code_of('Use what was trained'), names)
    expressions, distances, enrolled = capsys.readouterr().out.splitlines()
    assert expressions == "['Neutral', 'Happy']"  # Collins smiles.
    assert 0.1 < float(distances.strip('[]')) < 2
    assert enrolled == "['stern']"
    assert names['found'].slice_probabilities.shape == (2, 8, 7)
    assert Path('mine.safetensors').stat().st_size > 1e6
