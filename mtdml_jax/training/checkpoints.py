"""Checkpoints by Orbax: the latest k and the best one. The only module that knows Orbax."""

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
    """Orbax's; what it could not write is told as an OSError when it closes, too."""

    def close(self):
        with _writing(self):
            super().close()


def open_checkpoints(folder: Path, train: ConfigDict) -> ocp.CheckpointManager:
    """Opens the checkpoints in `folder`, for writing and reading.

    Those whose metrics are damaged are moved beside the folder.

    Args:
      folder: where they are.
      train: the section `train` of the config.
    """

    def score(metrics):
        return metrics[train.best_metric]

    keep = preservation_policy.AnyPreservationPolicy(
        [
            preservation_policy.LatestN(train.keep_checkpoints),
            # Those without metrics were saved in a hurry (preemption): LatestN looks after them.
            preservation_policy.BestN(
                get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False
            ),
        ]
    )
    # Without `best_fn` Orbax forgets the metrics; the policy alone decides what is kept.
    options = ocp.CheckpointManagerOptions(best_fn=score, preservation_policy=keep)
    # Orbax reads the metrics of all when it opens.
    _set_aside(folder, _with_damaged_metrics(folder) if jax.process_index() == 0 else {})
    return _Checkpoints(folder.absolute(), options=options)


def _with_damaged_metrics(folder):
    """Step -> what is wrong, of the checkpoints whose metrics are no JSON."""
    damaged = {}
    for path in folder.glob('*/metrics/metrics'):
        step = path.parts[-3]
        try:
            json.loads(path.read_text(encoding='utf-8'))
        except ValueError as error:
            if step.isdigit():  # What was left half-written Orbax does not read.
                damaged[int(step)] = f'{path}: {error}'
    return damaged


def has_checkpoint(folder: Path) -> bool:
    """Whether there is a checkpoint in `folder`, which need not exist; writes nothing.

    Args:
      folder: where checkpoints would be.
    """
    return any(ocp.path.step.standard_name_format().find_all(folder.absolute()))


def save(
    checkpoints: ocp.CheckpointManager, state: TrainState, metrics: dict | None, info: dict
) -> None:
    """Writes a checkpoint in the background; `finish` before the process ends.

    Args:
      checkpoints: as opened.
      state: the state, on the host (numpy).
      metrics: what the best checkpoint is chosen by; None if nothing was measured.
      info: JSON beside the state.

    Raises:
      OSError: this checkpoint, or the one before it, could not be written.
    """
    fields = _fields(state)
    info = info | {'digest': _digest(fields)}
    items = ocp.args.Composite(state=ocp.args.StandardSave(fields), info=ocp.args.JsonSave(info))
    with _writing(checkpoints):
        checkpoints.save(int(state.step), args=items, metrics=metrics)


def finish(checkpoints: ocp.CheckpointManager) -> None:
    """Waits for what is being written.

    Raises:
      OSError: it could not be written.
    """
    with _writing(checkpoints):
        checkpoints.wait_until_finished()


@contextlib.contextmanager
def _writing(checkpoints):
    try:
        yield
    except Exception as error:  # Of a full disk Orbax makes a ValueError, among others.
        raise OSError(
            f'no checkpoint could be written to {checkpoints.directory}, those before it are as they '
            f'were: {_short(error)}'
        ) from error


def _short(error):
    text = one_line(f'{type(error).__name__}: {error}')
    # The reason stands at the end.
    return text if len(text) < 300 else f'{text[:100]} ... {text[-180:]}'


def restore(
    checkpoints: ocp.CheckpointManager, step: int, target: TrainState
) -> tuple[TrainState, dict]:
    """Reads the checkpoint of `step`: (state on the host, info).

    Args:
      checkpoints: as opened.
      step: one of its steps.
      target: a state of the same structure (arrays or shapes).

    Raises:
      UserError: a checkpoint that is damaged, or of another structure.
    """
    abstract = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), _fields(target))
    items = ocp.args.Composite(
        state=ocp.args.StandardRestore(abstract), info=ocp.args.JsonRestore()
    )
    try:
        restored = checkpoints.restore(step, args=items)
    except Exception as error:  # Each of Orbax's layers has its own for what is missing or cut off.
        raise UserError(
            f'{checkpoints.directory / str(step)} cannot be read: {_short(error)}'
        ) from error
    # Those from before there was a digest are taken as they are.
    if restored.info.pop('digest', None) not in (None, _digest(restored.state)):
        raise UserError(
            f'{checkpoints.directory / str(step)} is not what was written: other numbers'
        )
    return TrainState(**restored.state), restored.info


def restore_latest(
    checkpoints: ocp.CheckpointManager, target: TrainState
) -> tuple[TrainState, dict]:
    """Reads the latest checkpoint that is whole; later, damaged ones are moved beside the folder.

    Args:
      checkpoints: as opened, with a checkpoint.
      target: as of `restore`.

    Raises:
      UserError: none of them can be read.
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
            logger.warning('going on from the checkpoint of step %d', step)
        return found
    reason = damaged[max(damaged)] if damaged else f'{checkpoints.directory} has none left'
    raise UserError(f'no checkpoint can be read; {reason}')


def _set_aside(folder, damaged):
    for step, error in damaged.items():
        aside = folder.parent / f'damaged_checkpoint_{step}'
        logger.warning('%s; moved to %s', error, aside)
        if jax.process_index() == 0:
            if aside.exists():
                shutil.rmtree(aside)
            (folder / str(step)).rename(aside)
    multihost_utils.sync_global_devices('damaged checkpoints moved')


def _digest(fields):
    """A number in hex of all arrays of a tree on the host, to the bit."""
    found = hashlib.blake2b(digest_size=16)
    for x in jax.tree.leaves(fields):
        found.update(f'{x.dtype} {x.shape}'.encode() + np.asarray(x).tobytes())
    return found.hexdigest()


def _fields(state):
    """What a checkpoint holds, by name: no memory where there is none, as before there were any."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: x for name, x in fields.items() if name != 'memory' or x is not None}


def choose_step(checkpoints: ocp.CheckpointManager, which: str, best_metric: str) -> int:
    """The step of the 'best' or 'latest' checkpoint.

    Without a measured checkpoint (no validation split) the best is the latest.

    Raises:
      UserError: no checkpoint.
    """
    steps = checkpoints.all_steps()
    if not steps:
        raise UserError(f'no checkpoint in {checkpoints.directory}')
    if which == 'latest':
        return max(steps)
    metrics = {step: checkpoints.metrics(step) for step in steps}
    measured = {step: found[best_metric] for step, found in metrics.items() if found}
    return max(measured, key=lambda step: measured[step], default=max(steps))
