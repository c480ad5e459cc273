"""The restart of the command line with huge pages."""

import os
import platform
import subprocess
import sys

import pytest

from mtdml_jax.huge_pages import TUNABLES, restart_with_huge_pages

# A program that restarts itself, then prints what it was called with.
PROGRAM = """
import os, sys
from mtdml_jax.huge_pages import restart_with_huge_pages
print('start', flush=True)
restart_with_huge_pages()
print(os.getpid(), os.environ.get('GLIBC_TUNABLES'), sys.flags.optimize, sys.argv[1:])
"""


def run_program(environment, *arguments):
    """(process number, lines printed)."""
    command = [sys.executable, '-O', '-c', PROGRAM, *arguments]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    return process.pid, process.communicate()[0].splitlines()


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='malloc of another C library')
def test_program_starts_again_once_as_the_same_process_with_the_same_arguments():
    environment = {k: v for k, v in os.environ.items() if k != 'GLIBC_TUNABLES'}
    pid, lines = run_program(environment, 'a b', '--c=')
    assert lines == ['start', 'start', f"{pid} {TUNABLES} 1 ['a b', '--c=']"]


def test_setting_of_the_user_stays():
    pid, lines = run_program({**os.environ, 'GLIBC_TUNABLES': 'glibc.malloc.check=0'})
    assert lines == ['start', f'{pid} glibc.malloc.check=0 1 []']


def test_other_c_library_is_left_alone(monkeypatch):
    monkeypatch.delenv('GLIBC_TUNABLES', raising=False)
    monkeypatch.setattr(platform, 'libc_ver', lambda: ('', ''))
    monkeypatch.setattr(os, 'execv', lambda *_: pytest.fail('started again'))
    restart_with_huge_pages()
    assert 'GLIBC_TUNABLES' not in os.environ
