"""Each room of the package imports only from the rooms below it, and no files import each other."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import mtdml_jax

PACKAGE = Path(mtdml_jax.__file__).parent
# Room -> the rooms below it, from which its files may import. Imports for type checking count too.
BELOW: dict[str, set[str]] = {'host': set(), 'loss': set()}
BELOW['images'] = {'host', 'loss'}
BELOW['models'] = BELOW['data'] = {'images', *BELOW['images']}
BELOW['config'] = {'configs', 'host', 'loss'}
BELOW['inference'] = {'models', *BELOW['models']}
BELOW['scoring'] = {'models', 'data', *BELOW['models']}
BELOW['training'] = {'scoring', 'config', *BELOW['scoring']}
BELOW['demo'] = {'inference', *BELOW['inference']}
BELOW['reports'] = {'training', 'inference', *BELOW['training']}
BELOW['cli'] = {'reports', 'demo', *BELOW['reports']}
BELOW['__init__'] = {'loss', 'inference'}
BELOW['__main__'] = {'cli', 'host'}


def imports_of(code):
    """Yields the names of the package's modules that code imports, without 'mtdml_jax.'."""
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.Import(names=names):
                found = [name.name for name in names]
            case ast.ImportFrom(module=str(module), names=names):
                found = [f'{module}.{name.name}' for name in names]
            case _:
                continue
        for name in found:
            package, _, rest = name.partition('.')
            if package == 'mtdml_jax' and rest:
                yield rest


def files():
    """Yields (room, path in the package, code) of each file."""
    for path in sorted(PACKAGE.rglob('*.py')):
        place = path.relative_to(PACKAGE)
        if place.parts[0] != 'configs':
            yield place.parts[0].removesuffix('.py'), place, path.read_text(encoding='utf-8')


def test_files_import_from_their_own_room_and_those_below_it():
    upward = [
        f'{place} imports {name}'
        for room, place, code in files()
        for name in imports_of(code)
        if name.split('.')[0] not in {room, '__version__', *BELOW[room]}
    ]
    assert upward == []


def test_no_files_import_one_another_in_a_circle():
    modules = {'.'.join(place.with_suffix('').parts): code for _, place, code in files()}
    graph = {}
    for module, code in modules.items():
        names = {part for name in imports_of(code) for part in (name, name.rpartition('.')[0])}
        graph[module] = names & modules.keys() - {module}
    # Raises CycleError, which names the circle.
    assert len([*TopologicalSorter(graph).static_order()]) == len(modules)


@pytest.mark.parametrize(
    'code',
    [
        'import mtdml_jax.reports.evaluate',
        'def f():\n    from mtdml_jax.reports import evaluate',
        'if TYPE_CHECKING:\n    from mtdml_jax.reports.evaluate import evaluate',
    ],
)
def test_an_import_is_found_wherever_it_stands(code):
    assert {name.split('.')[0] for name in imports_of(code)} == {'reports'}
