"""What a process does before it works: it finds the others and its devices, and keeps quiet."""

import contextlib
import functools
import logging
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from mtdml_jax.host.errors import LostProcessError, UserError, listed
from mtdml_jax.host.system import NVIDIA_DRIVER, has_nvidia_driver

# Without a sign of life for so long a process is dead, and JAX's coordinator ends the others.
HEARTBEAT_SECONDS = 30


def join_processes(where: str) -> None:
    """Joins the other processes of a run.

    Args:
      where: 'auto', or HOST:PORT,NUM,ID: coordinator, number of processes, number of this one.

    Raises:
      UserError: neither of these, or nothing here tells them.
    """
    import jax

    try:
        if where == 'auto':
            jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
        else:
            address, number, process = where.split(',')
            jax.distributed.initialize(
                address,
                int(number),
                int(process),
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            )
    except ValueError as error:
        reason = f'found {where!r}'
        if where == 'auto':
            reason = f'for nothing here tells it, as Cloud TPU or Slurm would ({error})'
        raise UserError(f'--distributed: expected HOST:PORT,NUM,ID, {reason}') from error


def check_processes_agree(find_facts: Callable[[], dict[str, object]]) -> None:
    """Raises UserError on all processes if something is not the same on all of them.

    Args:
      find_facts: gives name -> what must be the same, compared by its `repr`, with the same names on all
        processes. Not called where there is one.
    """
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return
    facts = find_facts()
    own = np.array([zlib.crc32(repr(fact).encode()) for fact in facts.values()], np.uint32)
    for name, numbers in zip(facts, multihost_utils.process_allgather(own).T, strict=True):
        others = np.flatnonzero(numbers != numbers[0])
        if len(others):
            raise UserError(
                f'--distributed: {name} differs between processes: {listed(map(str, others))} from 0; '
                f'on process {jax.process_index()} it is {str(facts[name])[:200]}'
            )


def code_digest() -> str:
    """A number in hex of the package's own code."""
    number = 0
    for path in sorted(Path(__file__).parents[1].rglob('*.py')):
        number = zlib.crc32(path.read_bytes(), number)
    return f'{number:08x}'


@contextlib.contextmanager
def noticing_lost_processes() -> Iterator[None]:
    """Raises LostProcessError where JAX fails because another process has ended.

    Where devices wait for a dead process for ever, JAX's coordinator ends this one.
    """
    import jax

    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        raise LostProcessError(
            f'process {jax.process_index()} of {jax.process_count()} could not go on: '
            f'{str(error)[:200]}. If another one has died, JAX says which within '
            f'{HEARTBEAT_SECONDS} seconds; the same command goes on from the last checkpoint'
        ) from error


def is_first_process() -> bool:
    """Whether this process is the one that writes and prints."""
    import jax

    return jax.process_index() == 0


def find_devices() -> list:
    """JAX's devices; the first look at them, after processes have joined.

    Raises:
      UserError: JAX finds none of the kind that JAX_PLATFORMS asks for.
    """
    import jax

    try:
        return jax.devices()
    except (AssertionError, RuntimeError) as error:  # CUDA's absence is a bare AssertionError.
        asked = os.environ.get('JAX_PLATFORMS', '')
        raise UserError(
            f'JAX finds no device by JAX_PLATFORMS={asked!r} ({str(error) or "not installed"}); unset '
            f'it to use what is there, or install the JAX of your accelerator: jax[cuda12], jax[tpu]'
        ) from error


def show_devices() -> None:
    """Says on which devices the command runs; raises as `find_devices`."""
    import jax

    devices = find_devices()
    if not is_first_process():
        return
    processes = f' of {jax.process_count()} processes' if jax.process_count() > 1 else ''
    kinds = ', '.join(sorted({device.device_kind for device in devices}))
    print(f'{len(devices)} {devices[0].platform} devices{processes}: {kinds}', file=sys.stderr)
    if devices[0].platform == 'cpu' and has_nvidia_driver():
        print(
            f'JAX uses the CPU, though {NVIDIA_DRIVER} tells of a GPU: pip install "jax[cuda12]"',
            file=sys.stderr,
        )


def quieten() -> None:
    """Leaves the terminal to what the user asked for; must come before TensorFlow is imported."""
    # Of a file that is gone it would tell in hundreds of lines. 1 is what importing JAX sets.
    if os.environ.get('TF_CPP_MIN_LOG_LEVEL', '1') == '1':
        os.environ['TF_CPP_MIN_LOG_LEVEL'] = '2'
    # It only feeds; with oneDNN on it says so at every start, whatever the log level.
    os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
    from absl import logging as absl_logging

    absl_logging.set_verbosity(absl_logging.ERROR)
    quieten_orbax()
    for name in ('jax', 'urllib3'):
        logging.getLogger(name).setLevel(logging.ERROR)


@functools.cache  # Once a process: a second time it would wrap itself.
def quieten_orbax() -> None:
    """What it logs of a failure it raises too, and then it is told in one line."""
    logging.getLogger('absl').addFilter(lambda record: 'orbax' not in record.pathname)
    show = sys.unraisablehook

    def show_others(found):
        # Its event loop ends at the first failure, and the others find it closed.
        if str(found.exc_value) != 'Event loop is closed':
            show(found)

    sys.unraisablehook = show_others
