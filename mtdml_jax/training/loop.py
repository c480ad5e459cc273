"""The training loop: data in, steps over all devices, metrics, validation, checkpoints, resume."""

import contextlib
import logging
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from filelock import FileLock, Timeout
from flax import jax_utils
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from mtdml_jax.config import LOCATION_KEYS, check_config, claim_workdir, flatten
from mtdml_jax.data.pipeline import Split, check_trainable, train_batches
from mtdml_jax.data.prepare import prepare
from mtdml_jax.data.protocol import has_validation, load_protocol_split
from mtdml_jax.host.errors import UserError
from mtdml_jax.host.process import check_processes_agree, code_digest
from mtdml_jax.models import Network
from mtdml_jax.scoring.classify import fit_neighbors
from mtdml_jax.scoring.embed import make_embedder
from mtdml_jax.scoring.retrieval import retrieval_scores
from mtdml_jax.training import checkpoints
from mtdml_jax.training.metrics import RunLog
from mtdml_jax.training.profile import Profile
from mtdml_jax.training.step import AXIS, make_training, on_host, split_over_devices
from mtdml_jax.training.stopping import catch_signals

logger = logging.getLogger(__name__)


def train(config: ConfigDict, workdir: Path, profile: tuple[int, int] | None = None) -> bool:
    """Trains the run in `workdir`, or goes on with it, up to `config.train.num_steps` steps.

    Writes config.json, metrics.jsonl, TensorBoard events and checkpoints. SIGTERM and Ctrl-C save a
    checkpoint and return.

    Args:
      config: the whole config.
      workdir: the run's folder.
      profile: first and last step of which to write a trace (`Profile`).

    Returns:
      Whether the run is complete.

    Raises:
      UserError: data or settings that cannot be trained on, or no split `config.eval.split`.
      DivergenceError: the loss is no longer finite.
      OSError: a disk that is full, or a folder that cannot be written.
    """
    check_config(config, jax.device_count())
    check_processes_agree(
        lambda: {
            'jax': jax.__version__,
            'the code of mtdml_jax': code_digest(),
            **{f'config.{k}': x for k, x in flatten(config) if k not in LOCATION_KEYS},
        }
    )
    train_split, validation_split = load_training_splits(config.data)
    load_protocol_split(
        config.data, config.eval.split
    )  # Said now, and not after hours, if there is none.
    num_steps, folder = config.train.num_steps, workdir / 'checkpoints'
    class_counts = np.bincount(train_split.labels, minlength=len(train_split.class_names))
    resumes = checkpoints.has_checkpoint(folder)
    network, state, train_step = make_training(config, class_counts, read_pretrained=not resumes)
    validate = make_validation(network, config, train_split, validation_split)
    with _claimed(workdir, config), checkpoints.open_checkpoints(folder, config.train) as manager:
        info: dict[str, Any] = {}
        if resumes:
            state, info = checkpoints.restore_latest(manager, state)
        step = int(state.step)
        # From the host: of arrays on a device it would compile a copy for each shape.
        state = jax_utils.replicate(jax.device_get(state), axis_name=AXIS)
        batches = train_batches(
            train_split,
            config,
            start_step=step,
            host=jax.process_index(),
            num_hosts=jax.process_count(),
        )
        log = RunLog(workdir, step, info, config)
        with log, Profile(workdir, profile) as trace, catch_signals() as stopping:
            for step, batch in enumerate(log.watch(batches), start=step + 1):  # noqa: B020 (counts on)
                trace.before(step)
                state, metrics = train_step(state, split_over_devices(batch))
                trace.after(step, metrics)
                log.add(metrics)
                stop = stopping.now(manager, step)
                due = step == num_steps or step % config.train.checkpoint_every == 0
                # Before anything is saved: they raise if the loss is not finite.
                if due or step % config.train.log_every == 0:
                    log.flush(step)
                elif stop:
                    log.check(step)
                if due or stop:
                    host_state = on_host(state)
                    # Also in a hurry if it is due: a resumed run has to choose among the same scores.
                    found = validate(host_state.eval_variables) if due else None
                    log.validation(step, found or {})
                    info = {'class_names': train_split.class_names, **log.kept}
                    checkpoints.save(manager, host_state, found, info)
                if stop:
                    break
            checkpoints.finish(manager)
    return step == num_steps


@contextlib.contextmanager
def _claimed(workdir, config):
    """The folder is this run's, and no other process trains in it; the system frees it after a kill."""
    workdir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(workdir / '.lock')
    try:
        if jax.process_index() == 0:
            lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f'--workdir: another process is training in {workdir}') from None
    except NotImplementedError:
        logger.warning('%s: this disk has no locks; start one run in it only', workdir)
    try:
        claim_workdir(workdir, config)
        yield
    finally:
        lock.release()


def load_training_splits(data: ConfigDict) -> tuple[Split, Split | None]:
    """The train split, checked, and the validation split, or None if there is none to watch.

    Raises:
      UserError: data that cannot be read or trained on.
    """
    # Hosts may share a disk: the first prepares the data, then the others find it, or prepare theirs.
    if jax.process_index() == 0:
        prepare(data)
    multihost_utils.sync_global_devices('data prepared')
    train_split = load_protocol_split(data, 'train')
    check_processes_agree(lambda: {'the train split': _describe(train_split)})
    check_trainable(train_split, data)
    return train_split, load_protocol_split(data, 'validation') if has_validation(data) else None


def _describe(split):
    """Its size, and a number in hex of its files and labels."""
    number = zlib.crc32(repr((split.file_names, split.labels.tolist())).encode())
    return f'{len(split.labels)} faces, {number:08x}'


def make_validation(
    network: Network, config: ConfigDict, train_split: Split, validation_split: Split | None
) -> Callable[[dict], dict | None]:
    """A function from variables to scores on the validation split (None without such a split).

    kNN searches `config.eval.gallery_size` faces of the train split, the same ones each time. Classes
    that the train split does not have are only retrieved.

    Raises:
      UserError: the best checkpoint is to be chosen by an accuracy, and there is none.
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
        knn = fit_neighbors(gallery.embeddings, gallery.labels, config.eval.num_neighbors)
        predictions = {'knn_accuracy': knn.predict(queries.embeddings)}
        if queries.logits.shape[1]:
            predictions['softmax_accuracy'] = np.argmax(queries.logits, axis=1)
        return found | {
            name: float(np.mean(x == queries.labels)) for name, x in predictions.items()
        }

    return validate
