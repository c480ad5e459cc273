"""The training loop: it reads batches, takes steps, validates, and writes metrics and checkpoints."""

import contextlib
import functools
import logging
import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from filelock import FileLock, Timeout
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from mtdml_jax.config import LOCATION_KEYS, check_config, claim_workdir, flatten
from mtdml_jax.data.pipeline import (
    Split,
    check_trainable,
    eval_batches,
    num_early_steps,
    train_batches,
)
from mtdml_jax.data.prepare import find_features, prepare
from mtdml_jax.data.protocol import has_validation, load_protocol_split
from mtdml_jax.host.errors import UserError
from mtdml_jax.host.process import check_processes_agree, code_digest
from mtdml_jax.models import Network, make_network
from mtdml_jax.models.neighbors import neighbor_votes
from mtdml_jax.models.recalibrate import recalibrate
from mtdml_jax.scoring.embed import make_embedder
from mtdml_jax.scoring.retrieval import retrieval_scores
from mtdml_jax.training import checkpoints
from mtdml_jax.training.devices import make_mapping
from mtdml_jax.training.metrics import RunLog
from mtdml_jax.training.profile import Profile
from mtdml_jax.training.setup import make_training
from mtdml_jax.training.stopping import catch_signals

logger = logging.getLogger(__name__)

# Number of training faces on which BatchNorm's statistics are measured (`model.batch_norm`).
NUM_MEASURED = 512


def train(
    config: ConfigDict,
    workdir: Path,
    profile: tuple[int, int] | None = None,
    *,
    on_step: Callable[[int, dict[str, jax.Array]], object] | None = None,
) -> bool:
    """Trains the run in `workdir` up to step `config.train.num_steps`, or resumes it.

    Writes config.json, metrics.jsonl, TensorBoard events and checkpoints. SIGTERM and Ctrl-C save a
    checkpoint and return.

    Args:
      config: the whole config.
      workdir: the run's folder.
      profile: first and last step of the trace to write, see `Profile`.
      on_step: called after each step with the number of the step, from 1, and its metrics. The call
        comes as soon as the devices have been given the step: `train` does not wait for the result, and
        the callback should not. The metrics are arrays on the devices: [devices, ...], with one replica
        per device, if `config.train.mapping` is 'pmap', and without that axis if it is 'shard_map'. A
        callback that reads their values waits for the step.

    Returns:
      Whether the run is complete.

    Raises:
      UserError: the data or the settings cannot be trained on, or there is no split `config.eval.split`.
      DivergenceError: the loss is no longer finite.
      OSError: the disk is full, or the folder cannot be written.
    """
    check_config(config, jax.device_count())
    mapping = make_mapping(config.train.mapping)
    check_processes_agree(lambda: _shared_facts(config))
    folder = workdir / 'checkpoints'
    resumes = checkpoints.has_checkpoint(folder)
    load_splits = functools.cache(lambda: load_training_splits(config.data))
    features = find_features(config.data)
    class_counts = _count_classes(config, features, load_splits)
    _, state, train_step = make_training(config, class_counts, shapes_only=resumes)
    # For several processes, pmap compiles a step only when it is called.
    is_ahead = not resumes and jax.process_count() == 1
    compiled = _compile_ahead(config, features, mapping, train_step, state) if is_ahead else None
    train_split, validation_split = load_splits()
    # If there is no split to evaluate, the run fails now and not after hours of training.
    load_protocol_split(config.data, config.eval.split)
    # The evaluation after training makes the same network, and so finds its compiled program.
    network = make_network(config.model, len(class_counts))
    validate = make_validation(network, config, train_split, validation_split)
    with _claimed(workdir, config), checkpoints.open_checkpoints(folder, config.train) as manager:
        info: dict[str, Any] = {}
        if resumes:
            state, info = checkpoints.restore_latest(manager, state)
        elif config.model.batch_norm == 'recalibrated':
            state = _recalibrated(network, state, train_split, config)
        step, state = int(state.step), mapping.replicate(state)
        log = RunLog(workdir, step, info, config)
        with log, Profile(workdir, profile) as trace, catch_signals() as stopping:
            batches = map(mapping.split, log.watch(_batches(train_split, config, step)))
            steps = _take_steps(train_step, state, batches, trace, step, compiled)
            for step, state, metrics in steps:
                log.add(metrics)
                if on_step:
                    on_step(step, metrics)
                stop = stopping.now(manager, step)
                is_due = step == config.train.num_steps or step % config.train.checkpoint_every == 0
                # Both raise an error if the loss is not finite, so that no such state is saved.
                if is_due or step % config.train.log_every == 0:
                    log.flush(step)
                elif stop:
                    log.check(step)
                if is_due or stop:
                    # A run that has to stop still validates a step that is due: the resumed run must
                    # choose its best checkpoint by the same scores.
                    scorer = validate if is_due else None
                    _save(manager, mapping.on_host(state), scorer, log, train_split.class_names)
                if stop:
                    break
            checkpoints.finish(manager)
    return step == config.train.num_steps


def _count_classes(config, features, load_splits):
    """Returns the number of training faces of each class, int [C]; zeros if classes have no weights.

    The step then depends on C alone, which is known before the data are prepared.
    """
    names = getattr(features.get('label'), 'names', None)
    if config.loss.class_weights == 'none' and names:
        return np.zeros(len(names), int)
    train_split, _ = load_splits()
    return np.bincount(train_split.labels, minlength=len(train_split.class_names))


def _recalibrated(network, state, train_split, config):
    """Returns the first state with BatchNorm's statistics measured on faces, without augmentation."""
    rows = np.random.default_rng(config.seed).permutation(len(train_split.labels))
    faces = train_split.take(np.sort(rows[:NUM_MEASURED]))
    (batch,) = eval_batches(faces, config.data, len(faces.labels))
    variables = recalibrate(network, state.variables, batch['image'])
    return state.replace(variables=variables, ema=None if state.ema is None else variables)


def _compile_ahead(config, features, mapping, train_step, state) -> Future:
    """Compiles the step of a new run in the background, while data are prepared and read."""
    data, rows = config.data, (config.data.batch_size,)
    side = data.early_image_size if num_early_steps(config) else data.image_size
    batch = {
        'image': jax.ShapeDtypeStruct((*rows, side, side, data.channels), np.float32),
        'label': jax.ShapeDtypeStruct(rows, np.int32),
        'mask': jax.ShapeDtypeStruct(rows, bool),
    }
    if 'votes' in features:
        shape = (*rows, *features['votes'].shape)
        batch['votes'] = jax.ShapeDtypeStruct(shape, features['votes'].np_dtype)
    shapes = mapping.shapes(state, batch)
    return ThreadPoolExecutor(1).submit(lambda: train_step.lower(*shapes).compile())


def _take_steps(train_step, state, batches, trace, last_step, compiled):
    """Takes a step for each batch without waiting for its result; yields (number, state, metrics)."""
    for step, batch in enumerate(batches, start=last_step + 1):
        if compiled:
            compiled.result()  # Until then, a call would compile the step once more.
        trace.before(step)
        state, metrics = train_step(state, batch)
        trace.after(step, metrics)
        yield step, state, metrics


def _save(manager, state, validate, log, class_names):
    """Saves a state on the host, with scores on the validation split unless `validate` is None."""
    scores = validate(state.eval_variables) if validate else None
    log.validation(int(state.step), scores or {})
    info = {'class_names': class_names, **log.kept}
    checkpoints.save(manager, state, scores, info)


def _batches(train_split, config, last_step):
    return train_batches(
        train_split,
        config,
        start_step=last_step,
        host=jax.process_index(),
        num_hosts=jax.process_count(),
    )


def _shared_facts(config):
    """Returns by name what must be the same on all processes of a run."""
    return {
        'jax': jax.__version__,
        'the code of mtdml_jax': code_digest(),
        **{f'config.{key}': x for key, x in flatten(config) if key not in LOCATION_KEYS},
    }


@contextlib.contextmanager
def _claimed(workdir, config):
    """Keeps other processes from training in the folder; the system frees it after a kill."""
    workdir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(workdir / '.lock')
    try:
        if jax.process_index() == 0:
            lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f'--workdir: another process is training in {workdir}') from None
    except NotImplementedError:
        logger.warning(
            '%s: this file system has no locks; start only one run in this folder', workdir
        )
    try:
        claim_workdir(workdir, config)
        yield
    finally:
        lock.release()


def load_training_splits(data: ConfigDict) -> tuple[Split, Split | None]:
    """Returns the train split, checked, and the validation split, or None if there is none.

    Raises:
      UserError: the data cannot be read or trained on.
    """
    # Hosts may share a disk. The first process prepares the data; after that, the others find it or
    # prepare their own.
    if jax.process_index() == 0:
        prepare(data)
    multihost_utils.sync_global_devices('data prepared')
    train_split = load_protocol_split(data, 'train')
    check_processes_agree(lambda: {'the train split': _describe(train_split)})
    check_trainable(train_split, data)
    return train_split, load_protocol_split(data, 'validation') if has_validation(data) else None


def _describe(split):
    """Returns the size of a split, and a checksum of its file names and labels."""
    number = zlib.crc32(repr((split.file_names, split.labels.tolist())).encode())
    return f'{len(split.labels)} faces, {number:08x}'


def make_validation(
    network: Network, config: ConfigDict, train_split: Split, validation_split: Split | None
) -> Callable[[dict], dict | None]:
    """Returns a function from variables to scores on the validation split (None without such a split).

    kNN searches `config.eval.gallery_size` faces of the train split, which are the same each time. If
    the train split has no class of the validation split, faces are only retrieved and not classified.

    Raises:
      UserError: the best checkpoint is chosen by an accuracy, and no face can be classified.
    """
    if validation_split is None:
        return lambda variables: None
    is_seen = np.isin(validation_split.labels, train_split.labels).any()
    if not is_seen and config.train.best_metric != 'map_at_r':
        raise UserError(
            'config.train.best_metric: no class of the validation split is trained on, so that nothing '
            'can be classified; set it to map_at_r'
        )
    rows = np.random.default_rng(config.seed).permutation(len(train_split.labels))
    gallery_split = train_split.take(np.sort(rows[: config.eval.gallery_size]))
    embed = make_embedder(network, config)

    def validate(variables):
        queries = embed(variables, validation_split)
        scores = retrieval_scores(
            queries.embeddings,
            queries.labels,
            is_query=validation_split.is_query,
            is_gallery=validation_split.is_gallery,
        )
        found = {'map_at_r': scores['map_at_r']}
        if not is_seen:
            return found
        gallery = embed(variables, gallery_split)
        votes = neighbor_votes(
            queries.embeddings,
            gallery.embeddings,
            gallery.labels,
            len(train_split.class_names),
            config.eval.num_neighbors,
        )
        predictions = {'knn_accuracy': np.argmax(votes, axis=1)}
        if queries.logits.shape[1]:
            predictions['softmax_accuracy'] = np.argmax(queries.logits, axis=1)
        return found | {
            name: float(np.mean(x == queries.labels)) for name, x in predictions.items()
        }

    return validate
