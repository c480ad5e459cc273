"""What mypy and pyright say to the users of the installed package.

    make types

runs this file in the environment `types` of run.py. types_right.py is a user's file without a mistake.
In types_wrong.py, the lines with a mistake are marked.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mtdml_jax

HERE = Path(__file__).absolute().parent
RIGHT, WRONG = 'types_right.py', 'types_wrong.py'
MYPY = ('-m', 'mypy', '--strict', '--output=json', '--config-file=', RIGHT, WRONG)
PYRIGHT = ('-m', 'pyright', '--outputjson', f'--pythonpath={sys.executable}', RIGHT, WRONG)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder outside the clone: a checker finds the package only as it is installed."""
    folder = tmp_path_factory.mktemp('user')
    for name in (RIGHT, WRONG):
        shutil.copy(HERE / name, folder)
    return folder


def run(folder, *arguments):
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )


def errors_of_mypy(folder):
    """Returns (file, line) -> message."""
    found = run(folder, *MYPY)
    assert found.returncode == 1, found.stdout + found.stderr
    errors = [json.loads(line) for line in found.stdout.splitlines()]
    return {(x['file'], x['line']): x['message'] for x in errors if x['severity'] == 'error'}


def errors_of_pyright(folder):
    """Returns (file, line) -> message."""
    found = run(folder, *PYRIGHT)
    assert found.returncode == 1, found.stdout + found.stderr
    return {
        (Path(x['file']).name, x['range']['start']['line'] + 1): x['message']
        for x in json.loads(found.stdout)['generalDiagnostics']
    }


@pytest.fixture(scope='module', params=[errors_of_mypy, errors_of_pyright])
def errors(request, folder):
    return request.param(folder)


def test_checker_accepts_a_file_that_is_right(errors):
    assert {place: message for place, message in errors.items() if place[0] == RIGHT} == {}


def test_checker_finds_an_error_in_exactly_the_lines_that_are_wrong(errors):
    lines = (HERE / WRONG).read_text(encoding='utf-8').splitlines()
    marked = {number for number, line in enumerate(lines, start=1) if line.endswith('# wrong')}
    found = {line: message for (file, line), message in errors.items() if file == WRONG}
    assert {lines[line - 1]: found[line] for line in found.keys() - marked} == {}
    assert [lines[line - 1] for line in sorted(marked - found.keys())] == []


def test_file_that_is_right_runs(folder):
    found = run(folder, '-W', 'error', RIGHT)
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize('file', [RIGHT, WRONG])
def test_files_use_every_public_function(file):
    text = (HERE / file).read_text(encoding='utf-8')
    functions = [name for name in mtdml_jax.__all__ if name.islower()]
    assert [name for name in functions if f'mt.{name}(' not in text] == []
