"""Signals that ask a run to save a checkpoint and stop."""

import contextlib
import signal
import sys
from collections.abc import Iterator

import jax
import orbax.checkpoint as ocp


class Stopping:
    """Knows whether the run was asked to stop. Several processes stop at the same step."""

    def __init__(self) -> None:
        """Initialises a run that was not asked to stop."""
        self._asked = False

    def now(self, manager: ocp.CheckpointManager, step: int) -> bool:
        """Returns whether to stop after `step`; every process must call this after every step."""
        if jax.process_count() > 1:
            # JAX's coordination service handles SIGTERM, and tells all processes the step.
            return manager.reached_preemption(step)
        return self._asked

    def ask(self, number: int, _frame: object = None) -> None:
        """Handles a signal. After the first Ctrl-C, the system handles the next one."""
        self._asked = True
        if number != signal.SIGINT:
            return
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        print('\nstopping after this step; Ctrl-C again stops without saving', file=sys.stderr)
        if jax.process_count() > 1:
            signal.raise_signal(signal.SIGTERM)


@contextlib.contextmanager
def catch_signals() -> Iterator[Stopping]:
    """Makes SIGTERM and Ctrl-C (SIGINT) ask the run to save and stop, within a `with` block.

    A second Ctrl-C ends the process at once; the last complete checkpoint stays.
    """
    stopping = Stopping()
    # With several processes, the coordination service handles SIGTERM.
    signals = [signal.SIGINT] + [signal.SIGTERM] * (jax.process_count() == 1)
    previous = {number: signal.signal(number, stopping.ask) for number in signals}
    try:
        yield stopping
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
