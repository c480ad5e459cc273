"""Public functions are fully annotated. mypy (`make types`) cannot require this of them alone."""

import ast
import re
from pathlib import Path

import mtdml_jax

FOLDER = Path(mtdml_jax.__file__).parent
# In a clone, the configs are behind a symbolic link, which `**` does not follow.
MODULES = sorted({*FOLDER.rglob('*.py'), *FOLDER.glob('configs/*.py')})


def public_functions(tree):
    """Yields the public functions of a module and of its public classes."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith('_'):
            yield from public_functions(node)
        if isinstance(node, ast.FunctionDef) and not re.match('_(?!_)', node.name):
            yield node


def unannotated(function):
    """Returns the names of the arguments without annotation, and 'return' if it has none."""
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    every += filter(None, (arguments.vararg, arguments.kwarg))
    found = [x.arg for x in every if x.annotation is None and x.arg not in ('self', 'cls')]
    return found + ['return'] * (function.returns is None and function.name != '__init__')


def test_public_functions_are_annotated_completely():
    found = {
        f'{path.name}: {function.name}': missing
        for path in MODULES
        for function in public_functions(ast.parse(path.read_text(encoding='utf-8')))
        if (missing := unannotated(function))
    }
    assert found == {}


def test_each_type_that_is_ignored_has_a_reason_on_its_line():
    lines = [line for path in MODULES for line in path.read_text(encoding='utf-8').splitlines()]
    ignored = [line for line in lines if 'type: ignore' in line]
    assert ignored
    assert all(re.search(r'# type: ignore\[[\w-]+\]  # \w', line) for line in ignored)
