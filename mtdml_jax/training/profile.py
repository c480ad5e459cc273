"""A trace of some steps, for XProf and TensorBoard."""

from pathlib import Path
from typing import Any

import jax


class Profile:
    """Writes what the devices and the host do from step `first` to step `last`, both included.

    The trace lies in the run's folder, in `plugins/profile`, where `tensorboard --logdir` with XProf
    (`pip install xprof`) finds it. A run that goes on behind `first` is not traced.
    """

    def __init__(self, folder: Path, steps: tuple[int, int] | None) -> None:
        """Without steps it does nothing."""
        self._folder, self._steps, self._is_tracing = folder, steps, False

    def __enter__(self) -> 'Profile':
        """The profile itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends a trace whose last step did not come."""
        self._stop()

    def before(self, step: int) -> None:
        """Starts the trace before its first step."""
        if self._steps and step == self._steps[0]:
            jax.profiler.start_trace(str(self._folder))
            self._is_tracing = True

    def after(self, step: int, results: Any) -> None:
        """Ends the trace after its last step, whose results it waits for."""
        if self._steps and step == self._steps[1]:
            jax.block_until_ready(results)
            self._stop()

    def _stop(self):
        if self._is_tracing:
            jax.profiler.stop_trace()
            self._is_tracing = False
