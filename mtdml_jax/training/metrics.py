"""What a run writes while it trains: metrics.jsonl, TensorBoard events, and alarms."""

import json
import logging
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np
from ml_collections import ConfigDict
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tqdm import tqdm

from mtdml_jax.host.errors import DivergenceError, listed
from mtdml_jax.host.files import write_whole
from mtdml_jax.training.devices import make_mapping

logger = logging.getLogger(__name__)

# Above this collapse score, a slice counts as one point: the mined unit vectors, whose distances can be
# up to 2, are within 0.057 of each other.
COLLAPSED = 0.96


class RunLog:
    """Collects the metrics of steps and writes their means to the run's folder.

    Rates and times go to TensorBoard and the progress bar only, so that two runs with the same seed have
    the same metrics.jsonl.

    Attributes:
      seconds: {'total': time that the run has taken over all its starts, 'steps': the share of that time
        that training steps took}.
    """

    def __init__(self, workdir: Path, start_step: int, kept: dict, config: ConfigDict) -> None:
        """Continues after `start_step`, with what was `kept` at that step; drops all later lines."""
        self.seconds = dict(kept.get('seconds', {'total': 0.0, 'steps': 0.0}))
        self._config, self._workdir, self._start_step = config, workdir, start_step
        self._on_host = make_mapping(config.train.mapping).on_host
        nothing = np.zeros(config.model.num_slices, int)
        self._collapsed_steps = np.array(kept.get('collapsed_steps', nothing))
        self._idle_steps = kept.get('idle_steps', 0)
        # Metrics of steps: those that are still on the devices, and those that were checked.
        self._window: list[dict] = []
        self._unwritten = [_as_metrics(step) for step in kept.get('unwritten', [])]
        self._flushed_at, self._waited = time.monotonic(), 0.0
        self._lines: IO[str] | None = None
        self._events: Any = None
        if jax.process_index() == 0:
            self._lines = _reopen_lines(workdir / 'metrics.jsonl', start_step)
            # SummaryWriter would hang: on a full disk its thread ends, and its queue is never emptied.
            self._events = EventsWriter(str(workdir / 'events'))
            # This event makes TensorBoard drop the later steps of an earlier start.
            start = SessionLog(status=SessionLog.START)
            self._events.write_event(Event(step=start_step + 1, session_log=start))
        self._bar = tqdm(
            total=config.train.num_steps,
            initial=start_step,
            unit='step',
            mininterval=1.0 if sys.stderr.isatty() else 30.0,
            disable=jax.process_index() != 0,
            postfix='compiling the step',
        )

    def __enter__(self) -> 'RunLog':
        """Returns the log itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the files and the progress bar."""
        self._bar.close()
        if self._lines is not None:
            self._lines.close()
            self._events.close()

    def watch(self, batches: Iterator) -> Iterator:
        """Yields the batches, and measures how long the run waits for them."""
        while True:
            start = time.monotonic()
            batch = next(batches, None)
            self._waited += time.monotonic() - start
            if batch is None:
                return
            yield batch

    def add(self, metrics: dict) -> None:
        """Adds the metrics of a step, replicated over devices, without waiting for them."""
        self._window.append(metrics)
        if self._bar.n == self._start_step:
            self._bar.unpause()  # The rate of steps leaves out the time of compiling the first one.
        self._bar.update()

    def check(self, step: int) -> None:
        """Checks the collected steps, the last of which is `step`.

        Raises:
          DivergenceError: the loss of a step is not finite.
        """
        window = self._on_host(self._window)
        self._window = []
        for number, metrics in enumerate(window, start=step - len(window) + 1):
            check_finite(number, metrics, self._config, self._workdir)
            self._watch_collapse(number, metrics)
            self._watch_triplets(number, metrics)
        self._unwritten += window

    @property
    def kept(self) -> dict:
        """What a resumed run needs to write the same lines, for JSON."""
        unwritten = [{name: x.tolist() for name, x in step.items()} for step in self._unwritten]
        return {
            'seconds': self.seconds,
            'collapsed_steps': self._collapsed_steps.tolist(),
            'idle_steps': self._idle_steps,
            'unwritten': unwritten,
        }

    def flush(self, step: int) -> None:
        """Checks the collected steps, the last of which is `step`, and writes their mean.

        Raises:
          DivergenceError: the loss of a step is not finite.
        """
        count = len(self._window)
        self.check(step)
        steps, self._unwritten = self._unwritten, []
        seconds = self._tick('steps')
        mean = {name: np.mean([found[name] for found in steps], axis=0) for name in steps[0]}
        memory = peak_device_memory()
        machine = {
            'images_per_second': count * self._config.data.batch_size / seconds,
            'step_seconds': seconds / count,
            'data_wait_share': self._waited / seconds,
            **memory,
        }
        self._waited = 0.0
        self._write(step, 'train', mean, **machine)
        gigabytes = ''.join(f', {x:.1f} GB' for x in memory.values())
        # Without a softmax term nothing trains the classifier, and its accuracy means nothing.
        accuracy = f'accuracy {mean["accuracy"]:.1%}, ' if self._config.loss.softmax_weight else ''
        self._bar.set_postfix_str(
            f'loss {mean["loss"]:.3f}, {accuracy}active '
            f'{np.mean(mean["slice_active_share"]):.0%}, {machine["images_per_second"]:.0f} images/s, '
            f'{machine["data_wait_share"]:.0%} waiting for data{gigabytes}'
        )

    def validation(self, step: int, metrics: dict) -> None:
        """Writes the scores on the validation split."""
        self._tick('validation')
        self._write(step, 'validation', metrics)
        if self._events is not None:
            self._events.flush()
        if metrics:
            found = ', '.join(f'{name} {value:.2%}' for name, value in metrics.items())
            self._say(f'step {step}: validation {found}')

    def _tick(self, kind):
        """Returns the seconds since the last tick, and adds them to the run's time."""
        now = time.monotonic()
        seconds, self._flushed_at = now - self._flushed_at, now
        self.seconds['total'] += seconds
        if kind in self.seconds:
            self.seconds[kind] += seconds
        return seconds

    def _write(self, step, prefix, metrics, **only_events):
        if self._lines is None or not metrics:
            return
        values = {f'{prefix}/{name}': np.asarray(x).tolist() for name, x in metrics.items()}
        self._lines.write(json.dumps({'step': step, **values}) + '\n')
        timings = {f'{prefix}/{name}': value for name, value in only_events.items()}
        scalars: dict[str, float] = {}
        for name, value in (values | timings).items():
            several = isinstance(value, list)
            scalars |= {f'{name}/{i}': x for i, x in enumerate(value)} if several else {name: value}
        summary = [Summary.Value(tag=name, simple_value=x) for name, x in scalars.items()]
        self._events.write_event(
            Event(wall_time=time.time(), step=step, summary=Summary(value=summary))
        )

    def _watch_collapse(self, step, metrics):
        count = count_collapsed_steps(self._collapsed_steps, metrics)
        self._collapsed_steps = count
        if np.any(count == self._config.train.collapse_steps):
            collapsed = np.flatnonzero(count >= self._config.train.collapse_steps)
            self._write(step, 'alarm', {'collapsed_slices': collapsed})
            self._say(collapse_alarm(step, collapsed, self._config))

    def _watch_triplets(self, step, metrics):
        self._idle_steps = 0 if np.any(metrics['slice_num_valid']) else self._idle_steps + 1
        if self._idle_steps == self._config.train.collapse_steps:
            self._write(step, 'alarm', {'steps_without_triplets': self._idle_steps})
            self._say(idle_alarm(step, self._config))

    def _say(self, text):
        if not self._bar.disable:
            self._bar.write(text, file=sys.stderr)


def _as_metrics(step):
    """Converts a step's metrics from JSON to arrays of their original types."""
    arrays = {name: np.array(x) for name, x in step.items()}
    return {name: x.astype(np.float32) if x.dtype == float else x for name, x in arrays.items()}


def peak_device_memory() -> dict[str, float]:
    """Returns {'peak_device_gigabytes': peak memory of the first device}; {} if it is not known."""
    stats = jax.local_devices()[0].memory_stats() or {}
    peak = stats.get('peak_bytes_in_use')
    return {} if peak is None else {'peak_device_gigabytes': peak / 1e9}


def _reopen_lines(path, last_step):
    """Removes the lines after `last_step` from a metrics.jsonl and opens it for appending."""
    kept = [json.dumps(line) + '\n' for line in read_metrics(path) if line['step'] <= last_step]
    write_whole(path, ''.join(kept))
    return path.open('a', encoding='utf-8', buffering=1)


def read_metrics(path: Path) -> list[dict]:
    """Returns the lines of a metrics.jsonl, without damaged ones, for which it logs a warning.

    An incomplete last line, which a kill leaves behind, gives no warning.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding='utf-8', errors='replace').split('\n')[:-1]
    found = {number: _parse_line(line) for number, line in enumerate(lines, start=1) if line}
    damaged = [str(number) for number, line in found.items() if line is None]
    if damaged:
        logger.warning('%s: skipped damaged lines: %s', path, listed(damaged))
    return [line for line in found.values() if line is not None]


def _parse_line(line):
    """Returns the content of a line, or None if the line is damaged."""
    try:
        found = json.loads(line)
    except json.JSONDecodeError:
        return None
    return found if isinstance(found, dict) and isinstance(found.get('step'), int) else None


def check_finite(step: int, metrics: dict, config: ConfigDict, workdir: Path) -> None:
    """Raises DivergenceError if the loss or the gradient is not finite.

    The message has the step, the terms of the loss and the settings that matter most.

    Args:
      step: number of the step, from 1.
      metrics: the metrics of the step.
      config: the whole config.
      workdir: the run's folder.
    """
    if math.isfinite(metrics['loss']) and math.isfinite(metrics['grad_norm']):
        return
    optim, loss = config.optim, config.loss
    raise DivergenceError(
        f'step {step}: the loss is no longer finite (loss {metrics["loss"]}, gradient norm '
        f'{metrics["grad_norm"]}, metric loss {metrics["metric_loss"]} x config.loss.metric_weight='
        f'{loss.metric_weight}, softmax loss {metrics["softmax_loss"]} x config.loss.softmax_weight='
        f'{loss.softmax_weight}, learning rate {metrics["learning_rate"]:.3g} of '
        f'config.optim.learning_rate={optim.learning_rate}, config.optim.clip_norm='
        f'{optim.clip_norm}). Config of the run: {workdir / "config.json"}. The last checkpoint was '
        f'saved before this step; try a lower config.optim.learning_rate in a new workdir.'
    )


def count_collapsed_steps(count: np.ndarray, metrics: dict) -> np.ndarray:
    """Counts for how many steps in a row each slice has been collapsed to almost one point.

    A slice is collapsed if its collapse score (`LossAux`) is above `COLLAPSED`. Full collapse is a
    stationary point: all distances are 0, so the triplet loss is the threshold and its gradient is 0.

    Args:
      count: the counts before this step, int [S].
      metrics: the metrics of the step.

    Returns:
      The counts after this step, int [S].
    """
    return np.where(np.asarray(metrics['slice_collapse']) > COLLAPSED, count + 1, 0)


def collapse_alarm(step: int, collapsed: np.ndarray, config: ConfigDict) -> str:
    """Returns the message for slices that have collapsed.

    Args:
      step: the step at which the alarm goes off.
      collapsed: numbers of the collapsed slices.
      config: the whole config.
    """
    loss = config.loss
    advice = [
        f'a lower config.loss.metric_weight (now {loss.metric_weight})',
        f'a lower config.optim.learning_rate (now {config.optim.learning_rate})',
    ]
    if loss.softmax_weight == 0:
        advice.insert(0, 'config.loss.softmax_weight=1.0 (now 0: nothing else holds classes apart)')
    if not loss.dual:
        advice.append('config.loss.dual=True')
    return (
        f'COLLAPSE at step {step}: for {config.train.collapse_steps} steps slices '
        f'{", ".join(map(str, collapsed))} (of {config.model.num_slices}) have mapped all faces to '
        f'almost one point: distances are near 0 and the loss stays at the threshold, where the '
        f'triplet loss has no gradient. The run is unlikely to recover. Try {"; or ".join(advice)}.'
    )


def idle_alarm(step: int, config: ConfigDict) -> str:
    """Returns the message for config.train.collapse_steps steps in which no anchor had a triplet.

    Args:
      step: the last of these steps.
      config: the whole config.
    """
    data = config.data
    return (
        f'NO TRIPLETS at step {step}: for {config.train.collapse_steps} steps no face had both a '
        f'positive and a negative under config.loss.mining={config.loss.mining}, so the metric loss '
        f'was 0 and had no gradient. Try config.loss.mining=hard, or more faces in a batch '
        f'(config.data.batch_size={data.batch_size}, config.data.samples_per_class='
        f'{data.samples_per_class}).'
    )
