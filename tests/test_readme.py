import re
from pathlib import Path

README = Path(__file__).parents[1] / 'README.md'


def test_python_of_the_readme_runs_and_gives_a_loss_of_every_slice():
    (code,) = re.findall(r'```python\n(.*?)```', README.read_text(encoding='utf-8'), re.DOTALL)
    names = {}
    exec(code, names)
    assert names['aux'].active_share.shape == (8,)
    assert names['gradient'].shape == (64, 256)
