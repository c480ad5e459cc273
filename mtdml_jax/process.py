"""What a process does before it works: it finds the others and its devices, and keeps quiet."""

import logging
import os
import sys

from mtdml_jax.errors import UserError

# Is there where a driver for NVIDIA's GPUs is loaded.
NVIDIA_DRIVER = '/proc/driver/nvidia/version'


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
            jax.distributed.initialize()
        else:
            address, number, process = where.split(',')
            jax.distributed.initialize(address, int(number), int(process))
    except ValueError as error:
        reason = f'found {where!r}'
        if where == 'auto':
            reason = f'for nothing here tells it, as Cloud TPU or Slurm would ({error})'
        raise UserError(f'--distributed: expected HOST:PORT,NUM,ID, {reason}') from error


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
    if jax.process_index() != 0:
        return
    processes = f' of {jax.process_count()} processes' if jax.process_count() > 1 else ''
    kinds = ', '.join(sorted({device.device_kind for device in devices}))
    print(f'{len(devices)} {devices[0].platform} devices{processes}: {kinds}', file=sys.stderr)
    if devices[0].platform == 'cpu' and os.path.exists(NVIDIA_DRIVER):
        print(
            f'JAX uses the CPU, though {NVIDIA_DRIVER} tells of a GPU: pip install "jax[cuda12]"',
            file=sys.stderr,
        )


def quieten() -> None:
    """Leaves the terminal to what the user asked for; must come before TensorFlow is imported."""
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
    # It only feeds; with oneDNN on it says so at every start, whatever the log level.
    os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
    from absl import logging as absl_logging

    absl_logging.set_verbosity(absl_logging.ERROR)
    _quieten_orbax()
    for name in ('jax', 'urllib3'):
        logging.getLogger(name).setLevel(logging.ERROR)


def _quieten_orbax():
    """What it logs of a failure it raises too, and then it is told in one line."""
    logging.getLogger('absl').addFilter(lambda record: 'orbax' not in record.pathname)
    show = sys.unraisablehook

    def show_others(found):
        # Its event loop ends at the first failure, and the others find it closed.
        if str(found.exc_value) != 'Event loop is closed':
            show(found)

    sys.unraisablehook = show_others
