import ast
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from mtdml_jax.host import system
from mtdml_jax.host.system import TUNABLES, processor, restart_with_huge_pages

# Modules and names of Python that do not exist on Windows or behave differently there.
POSIX_MODULES = {'fcntl', 'grp', 'posix', 'pty', 'pwd', 'resource', 'syslog', 'termios', 'tty'}
POSIX_NAMES = {
    'os': 'chown execv execve fork forkpty getpgid getuid killpg mkfifo nice pread sched_getaffinity '
    'setsid statvfs sync sysconf uname wait waitpid',
    'signal': 'SIGALRM SIGHUP SIGKILL SIGUSR1 SIGUSR2 alarm pause setitimer sigwait',
}
POSIX_FOLDERS = ('/dev/', '/etc/', '/proc/', '/sys/', '/tmp', '/usr/', '/var/')

# A program that restarts itself and then prints its arguments.
PROGRAM = """
import os, sys
from mtdml_jax.host.system import restart_with_huge_pages
print('start', flush=True)
restart_with_huge_pages()
print(os.getpid(), os.environ.get('GLIBC_TUNABLES'), sys.flags.optimize, sys.argv[1:])
"""


def run_program(environment, *arguments):
    """Runs the program; returns (process id, printed lines)."""
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


@pytest.mark.skipif(sys.platform != 'linux', reason='another system, which tells less')
def test_processor_has_a_model_and_cores():
    assert ', cores: ' in processor()


def find_posix(code):
    """Yields the POSIX-only modules and names that code uses."""
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.Import(names=names):
                found = {name.name for name in names} & POSIX_MODULES
            case ast.ImportFrom(module=module, names=names):
                known = POSIX_NAMES.get(module, '').split()
                found = {module} & POSIX_MODULES | {name.name for name in names} & {*known}
            case ast.Attribute(value=ast.Name(id=module), attr=name):
                found = {name} & {*POSIX_NAMES.get(module, '').split()}
            case ast.Constant(value=str(text)):
                found = {text} if text.startswith(POSIX_FOLDERS) else set()
            case _:
                continue
        yield from found


def test_only_one_module_knows_the_operating_system():
    package = Path(system.__file__).parents[1]
    found = {
        path.relative_to(package).as_posix(): sorted(uses)
        for path in package.rglob('*.py')
        if (uses := set(find_posix(path.read_text(encoding='utf-8'))))
    }
    assert found == {
        'host/system.py': [
            '/proc/cpuinfo',
            '/proc/driver/nvidia/version',
            'execv',
            'sched_getaffinity',
        ]
    }


@pytest.mark.parametrize(
    ('code', 'use'),
    [
        ('import fcntl', 'fcntl'),
        ('from resource import getrusage', 'resource'),
        ('from os import fork', 'fork'),
        ('os.kill(1, signal.SIGKILL)', 'SIGKILL'),
        ("open('/proc/self/maps')", '/proc/self/maps'),
    ],
)
def test_use_of_posix_alone_is_found(code, use):
    assert set(find_posix(code)) == {use}
