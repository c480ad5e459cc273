"""Signals that ask a run to save and stop."""

import contextlib
import signal
import sys
from collections.abc import Iterator

import jax
import orbax.checkpoint as ocp


class Stopping:
    """Whether the run was asked to stop; several processes stop at the same step."""

    def __init__(self) -> None:
        """Not yet."""
        self._asked = False

    def now(self, manager: ocp.CheckpointManager, step: int) -> bool:
        """Whether to stop after `step`; every process must ask after every step."""
        if jax.process_count() > 1:
            # JAX's coordination service, which has seen SIGTERM by itself, tells all of them.
            return manager.reached_preemption(step)
        return self._asked

    def ask(self, number: int, _frame: object = None) -> None:
        """Takes the first signal. The second Ctrl-C, in a hurry, is the system's."""
        self._asked = True
        if number != signal.SIGINT:
            return
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        print('\nstopping after this step; Ctrl-C again stops without saving', file=sys.stderr)
        if jax.process_count() > 1:
            signal.raise_signal(signal.SIGTERM)


@contextlib.contextmanager
def catch_signals() -> Iterator[Stopping]:
    """While it lasts, SIGTERM and Ctrl-C (SIGINT) ask the run to save and stop.

    A second Ctrl-C ends the process at once; the last complete checkpoint stays.
    """
    stopping = Stopping()
    # With several processes SIGTERM is the coordination service's.
    signals = [signal.SIGINT] + [signal.SIGTERM] * (jax.process_count() == 1)
    previous = {number: signal.signal(number, stopping.ask) for number in signals}
    try:
        yield stopping
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
