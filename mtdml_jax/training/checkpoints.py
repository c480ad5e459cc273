"""Checkpoints, written and read by Orbax: the latest k and the best one."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import shutil
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from orbax.checkpoint.checkpoint_managers import preservation_policy

from mtdml_jax.host.errors import UserError, one_line
from mtdml_jax.training.state import TrainState

logger = logging.getLogger(__name__)


class _Checkpoints(ocp.CheckpointManager):
    """Orbax's manager; closing it raises OSError if a checkpoint could not be written."""

    def close(self):
        with _writing(self):
            super().close()


def open_checkpoints(folder: Path, train: ConfigDict) -> ocp.CheckpointManager:
    """Opens the checkpoints in `folder`, for writing and reading.

    Checkpoints whose metrics are damaged are moved beside the folder.

    Args:
      folder: the folder of the checkpoints.
      train: the section `train` of the config.
    """

    def score(metrics):
        return metrics[train.best_metric]

    keep = preservation_policy.AnyPreservationPolicy(
        [
            preservation_policy.LatestN(train.keep_checkpoints),
            # A checkpoint without metrics was saved because the run had to stop; LatestN keeps it.
            preservation_policy.BestN(
                get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False
            ),
        ]
    )
    # Without `best_fn`, Orbax forgets the metrics. The policy alone decides what is kept.
    options = ocp.CheckpointManagerOptions(best_fn=score, preservation_policy=keep)
    # Orbax reads the metrics of all checkpoints when it opens the folder.
    _set_aside(folder, _with_damaged_metrics(folder) if jax.process_index() == 0 else {})
    return _Checkpoints(folder.absolute(), options=options)


def _with_damaged_metrics(folder):
    """Returns {step: what is wrong} for the checkpoints whose metrics are not JSON."""
    damaged = {}
    for path in folder.glob('*/metrics/metrics'):
        step = path.parts[-3]
        try:
            json.loads(path.read_text(encoding='utf-8'))
        except ValueError as error:
            if step.isdigit():  # Orbax does not read half-written checkpoints.
                damaged[int(step)] = f'{path}: {error}'
    return damaged


def has_checkpoint(folder: Path) -> bool:
    """Returns whether there is a checkpoint in `folder`; writes nothing.

    Args:
      folder: the folder of the checkpoints, which need not exist.
    """
    return any(ocp.path.step.standard_name_format().find_all(folder.absolute()))


def save(
    checkpoints: ocp.CheckpointManager, state: TrainState, metrics: dict | None, info: dict
) -> None:
    """Writes a checkpoint in the background; call `finish` before the process ends.

    Args:
      checkpoints: the result of `open_checkpoints`.
      state: the state, as NumPy arrays.
      metrics: scores that choose the best checkpoint; None if nothing was measured.
      info: further facts to keep, for JSON.

    Raises:
      OSError: this checkpoint or the previous one could not be written.
    """
    fields = _fields(state)
    info = info | {'digest': _digest(fields)}
    items = ocp.args.Composite(state=ocp.args.StandardSave(fields), info=ocp.args.JsonSave(info))
    with _writing(checkpoints):
        checkpoints.save(int(state.step), args=items, metrics=metrics)


def finish(checkpoints: ocp.CheckpointManager) -> None:
    """Waits until all checkpoints are written.

    Raises:
      OSError: a checkpoint could not be written.
    """
    with _writing(checkpoints):
        checkpoints.wait_until_finished()


@contextlib.contextmanager
def _writing(checkpoints):
    """Raises OSError for any error of Orbax."""
    try:
        yield
    except Exception as error:  # For a full disk, Orbax raises ValueError, among others.
        raise OSError(
            f'a checkpoint could not be written to {checkpoints.directory}; earlier checkpoints are '
            f'unchanged: {_short(error)}'
        ) from error


def _short(error):
    text = one_line(f'{type(error).__name__}: {error}')
    # The reason is at the end.
    return text if len(text) < 300 else f'{text[:100]} ... {text[-180:]}'


def restore(
    checkpoints: ocp.CheckpointManager, step: int, target: TrainState
) -> tuple[TrainState, dict]:
    """Reads the checkpoint of `step`; returns (state as NumPy arrays, info).

    Args:
      checkpoints: the result of `open_checkpoints`.
      step: the step of a checkpoint.
      target: a state of the same structure (arrays or shapes).

    Raises:
      UserError: the checkpoint is damaged, or has another structure.
    """
    abstract = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), _fields(target))
    items = ocp.args.Composite(
        state=ocp.args.StandardRestore(abstract), info=ocp.args.JsonRestore()
    )
    try:
        restored = checkpoints.restore(step, args=items)
    except Exception as error:  # Orbax raises many kinds of errors for missing or truncated files.
        raise UserError(
            f'{checkpoints.directory / str(step)} cannot be read: {_short(error)}'
        ) from error
    # Old checkpoints have no digest, and are not checked.
    if restored.info.pop('digest', None) not in (None, _digest(restored.state)):
        raise UserError(
            f'{checkpoints.directory / str(step)} is damaged: its numbers differ from those written'
        )
    return TrainState(**restored.state), restored.info


def restore_latest(
    checkpoints: ocp.CheckpointManager, target: TrainState
) -> tuple[TrainState, dict]:
    """Reads the latest undamaged checkpoint; moves later, damaged ones beside the folder.

    Args:
      checkpoints: the result of `open_checkpoints`; there must be a checkpoint.
      target: see `restore`.

    Raises:
      UserError: no checkpoint can be read.
    """
    damaged: dict[int, object] = {}
    for step in sorted(checkpoints.all_steps(), reverse=True):
        try:
            found = restore(checkpoints, step, target)
        except UserError as error:
            damaged[step] = error
            continue
        if damaged:
            _set_aside(Path(checkpoints.directory), damaged)
            checkpoints.reload()
            logger.warning('resuming from the checkpoint of step %d', step)
        return found
    reason = damaged[max(damaged)] if damaged else f'{checkpoints.directory} has none left'
    raise UserError(f'no checkpoint can be read; {reason}')


def _set_aside(folder, damaged):
    """Moves damaged checkpoints, {step: error}, beside the folder; all processes must call it."""
    for step, error in damaged.items():
        aside = folder.parent / f'damaged_checkpoint_{step}'
        logger.warning('%s; moved to %s', error, aside)
        if jax.process_index() == 0:
            if aside.exists():
                shutil.rmtree(aside)
            (folder / str(step)).rename(aside)
    multihost_utils.sync_global_devices('damaged checkpoints moved')


def _digest(fields):
    """Returns a checksum in hex of all arrays of a tree, with their types and shapes."""
    found = hashlib.blake2b(digest_size=16)
    for x in jax.tree.leaves(fields):
        found.update(f'{x.dtype} {x.shape}'.encode() + np.asarray(x).tobytes())
    return found.hexdigest()


def _fields(state):
    """Returns what a checkpoint holds, by name.

    A state without a memory has no entry for it, like checkpoints from before the memory was added.
    """
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: x for name, x in fields.items() if name != 'memory' or x is not None}


def choose_step(checkpoints: ocp.CheckpointManager, which: str, best_metric: str) -> int:
    """Returns the step of the 'best' or 'latest' checkpoint.

    If no checkpoint was measured, because there is no validation split, the best is the latest.

    Raises:
      UserError: there is no checkpoint.
    """
    steps = checkpoints.all_steps()
    if not steps:
        raise UserError(f'no checkpoint in {checkpoints.directory}')
    if which == 'latest':
        return max(steps)
    metrics = {step: checkpoints.metrics(step) for step in steps}
    measured = {step: found[best_metric] for step, found in metrics.items() if found}
    return max(measured, key=lambda step: measured[step], default=max(steps))
