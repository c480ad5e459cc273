"""The docstring of every public function of the method has examples that print what it says."""

import doctest
import inspect

import pytest

import mtdml_jax as mt

# All of them except `load`, which the package itself defines: it is no part of the method.
FUNCTIONS = [
    name
    for name in mt.__all__
    if not inspect.isclass(getattr(mt, name)) and getattr(mt, name).__module__ != mt.__name__
]


@pytest.mark.parametrize('name', FUNCTIONS)
def test_examples_of_a_function_print_what_its_docstring_says(name):
    function, report = getattr(mt, name), []
    _, section, examples = function.__doc__.partition('\n    Examples:\n')
    assert section
    # Each example must import what it uses.
    test = doctest.DocTestParser().get_doctest(examples, {}, name, function.__module__, 0)
    failed, tried = doctest.DocTestRunner().run(test, out=report.append)
    assert tried > 1  # The first line is an import.
    assert failed == 0, ''.join(report)
