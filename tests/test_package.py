import ast
import configparser
import re
import subprocess
import sys
from pathlib import Path

import mtdml_jax

ROOT = Path(__file__).absolute().parents[1]

HEAVY = ('tensorflow', 'tensorflow_datasets', 'flax', 'optax', 'orbax', 'sklearn', 'matplotlib')


def test_import_of_the_package_loads_nothing_heavier_than_jax():
    code = f'import sys, mtdml_jax; print([name for name in {HEAVY} if name in sys.modules])'
    found = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == '[]'


def test_version_stands_in_one_place_and_whoever_cites_it_agrees():
    setup = configparser.ConfigParser()
    setup.read(ROOT / 'setup.cfg', encoding='utf-8')
    assert setup['metadata']['version'] == 'attr: mtdml_jax.__version__'
    citation = (ROOT / 'CITATION.cff').read_text(encoding='utf-8')
    assert re.findall('^version: (.+)$', citation, re.MULTILINE) == [mtdml_jax.__version__]


def test_files_and_functions_fit_what_a_reader_can_hold():
    files = {
        path: path.read_text(encoding='utf-8')
        for path in Path(mtdml_jax.__file__).parent.rglob('*.py')
    }
    long = [path.name for path, code in files.items() if len(code.splitlines()) > 400]
    for path, code in files.items():
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.FunctionDef):
                docstring = ast.get_docstring(node, clean=False) or ''
                lines = node.end_lineno - node.lineno + 1 - len(docstring.splitlines())
                long += [f'{path.name}: {node.name}'] * (lines > 60)
    assert long == []
