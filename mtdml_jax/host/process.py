"""Start-up of a process: joins other processes, finds devices, and silences libraries."""

import contextlib
import functools
import gc
import logging
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from mtdml_jax.host.errors import LostProcessError, UserError, listed
from mtdml_jax.host.system import NVIDIA_DRIVER, has_nvidia_driver

# JAX's coordinator takes a process that is silent for this long for dead, and ends the others.
HEARTBEAT_SECONDS = 30


def join_processes(where: str) -> None:
    """Joins the other processes of a run.

    Args:
      where: 'auto', or HOST:PORT,NUM,ID: coordinator, number of processes, index of this process.

    Raises:
      UserError: if `where` is neither, or if it is 'auto' and the environment does not say.
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
            reason = f'because nothing here says it, as Cloud TPU or Slurm would ({error})'
        raise UserError(f'--distributed: expected HOST:PORT,NUM,ID, {reason}') from error


def check_processes_agree(find_facts: Callable[[], dict[str, object]]) -> None:
    """Raises UserError on all processes if a fact differs between them.

    Args:
      find_facts: returns name -> fact. Facts are compared by their `repr`; the names must be the same on
        all processes. It is not called if there is only one process.
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
    """Returns a checksum of the package's own code, in hex."""
    number = 0
    for path in sorted(Path(__file__).parents[1].rglob('*.py')):
        number = zlib.crc32(path.read_bytes(), number)
    return f'{number:08x}'


@contextlib.contextmanager
def noticing_lost_processes() -> Iterator[None]:
    """Turns an error that JAX raises because another process has ended into a LostProcessError.

    If devices wait forever for a dead process, JAX's coordinator ends this process.
    """
    import jax

    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        raise LostProcessError(
            f'process {jax.process_index()} of {jax.process_count()} could not continue: '
            f'{str(error)[:200]}. If another process has died, JAX says which within '
            f'{HEARTBEAT_SECONDS} seconds; the same command continues from the last checkpoint'
        ) from error


def is_first_process() -> bool:
    """Whether this is the process that writes files and prints."""
    import jax

    return jax.process_index() == 0


def find_devices() -> list:
    """Returns JAX's devices. Must be called after processes have joined.

    Raises:
      UserError: if JAX finds no device of the kind that JAX_PLATFORMS asks for.
    """
    import jax

    try:
        return jax.devices()
    except (
        AssertionError,
        RuntimeError,
    ) as error:  # JAX without CUDA raises a bare AssertionError.
        asked = os.environ.get('JAX_PLATFORMS', '')
        raise UserError(
            f'JAX finds no device for JAX_PLATFORMS={asked!r} ({str(error) or "not installed"}); unset '
            f'it to use what is there, or install JAX for your accelerator: jax[cuda12], jax[tpu]'
        ) from error


def show_devices() -> None:
    """Prints which devices the command runs on. Raises the errors of `find_devices`."""
    import jax

    devices = find_devices()
    if not is_first_process():
        return
    processes = f' of {jax.process_count()} processes' if jax.process_count() > 1 else ''
    kinds = ', '.join(sorted({device.device_kind for device in devices}))
    print(f'{len(devices)} {devices[0].platform} devices{processes}: {kinds}', file=sys.stderr)
    if devices[0].platform == 'cpu' and has_nvidia_driver():
        print(
            f'JAX uses the CPU although {NVIDIA_DRIVER} shows a GPU: pip install "jax[cuda12]"',
            file=sys.stderr,
        )


def hasten_imports() -> None:
    """Makes imports of heavy libraries faster, for the rest of the process.

    The garbage collector seldom searches their many objects, none of which is garbage. TensorFlow, which
    only reads data here, is imported without Keras, which would import scikit-learn and matplotlib. So
    the process cannot import Keras. Only commands call this.
    """
    gc.set_threshold(50_000, 20, 20)
    # An import of a name that is None fails, and TensorFlow goes on without Keras.
    sys.modules.setdefault('keras', None)  # type: ignore[arg-type]  # Python allows None.


def quieten() -> None:
    """Silences the log messages of libraries. Must be called before TensorFlow is imported."""
    # TensorFlow would print hundreds of lines about a missing file. Importing JAX sets this to 1.
    if os.environ.get('TF_CPP_MIN_LOG_LEVEL', '1') == '1':
        os.environ['TF_CPP_MIN_LOG_LEVEL'] = '2'
    # TensorFlow only reads data here. With oneDNN on, it logs a line at every start at any log level.
    os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
    from absl import logging as absl_logging

    absl_logging.set_verbosity(absl_logging.ERROR)
    quieten_orbax()
    for name in ('jax', 'urllib3'):
        logging.getLogger(name).setLevel(logging.ERROR)


@functools.cache  # A second call in the same process would wrap the hook again.
def quieten_orbax() -> None:
    """Silences Orbax. It also raises the failures that it logs, and they are reported in one line."""
    logging.getLogger('absl').addFilter(lambda record: 'orbax' not in record.pathname)
    show = sys.unraisablehook

    def show_others(found):
        # Orbax closes its event loop at the first failure; later failures then find it closed.
        if str(found.exc_value) != 'Event loop is closed':
            show(found)

    sys.unraisablehook = show_others
