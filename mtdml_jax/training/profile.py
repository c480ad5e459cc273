"""A trace of a few steps, for XProf and TensorBoard."""

from pathlib import Path
from typing import Any

import jax


class Profile:
    """Writes a trace of the devices and the host from step `first` to step `last`, both included.

    The trace is in `plugins/profile` in the run's folder, where `tensorboard --logdir` with XProf
    (`pip install xprof`) finds it. A run that resumes after step `first` is not traced.
    """

    def __init__(self, folder: Path, steps: tuple[int, int] | None) -> None:
        """Takes (first, last); if `steps` is None, no trace is written."""
        self._folder, self._steps, self._is_tracing = folder, steps, False

    def __enter__(self) -> 'Profile':
        """Returns the profile itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the trace if the run ended before its last step."""
        self._stop()

    def before(self, step: int) -> None:
        """Starts the trace before its first step."""
        if self._steps and step == self._steps[0]:
            jax.profiler.start_trace(str(self._folder))
            self._is_tracing = True

    def after(self, step: int, results: Any) -> None:
        """Waits for the results of the last step of the trace, then ends the trace."""
        if self._steps and step == self._steps[1]:
            jax.block_until_ready(results)
            self._stop()

    def _stop(self):
        if self._is_tracing:
            jax.profiler.stop_trace()
            self._is_tracing = False
