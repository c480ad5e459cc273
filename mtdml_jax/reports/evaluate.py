"""Evaluation of a run: from its checkpoint to evaluation.json, report.html and model.safetensors."""

import json
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

import mtdml_jax
from mtdml_jax.config import check_config
from mtdml_jax.data.pipeline import Split
from mtdml_jax.data.protocol import load_protocol_split
from mtdml_jax.host.errors import UserError
from mtdml_jax.host.files import write_whole
from mtdml_jax.host.system import processor
from mtdml_jax.inference.find import MODEL_NAME
from mtdml_jax.models import Network, make_network
from mtdml_jax.models.model_file import write_model
from mtdml_jax.reports.export import model_of_run
from mtdml_jax.reports.report import write_report
from mtdml_jax.scoring.classify import classify_and_score
from mtdml_jax.scoring.embed import EmbeddedSplit, make_embedder
from mtdml_jax.scoring.retrieval import retrieval_scores
from mtdml_jax.scoring.slice_scores import slice_study
from mtdml_jax.training import checkpoints
from mtdml_jax.training.metrics import read_metrics
from mtdml_jax.training.setup import make_thresholds
from mtdml_jax.training.state import TrainState, create_state, make_optimizer, make_schedule


class _Measured(NamedTuple):
    """What an evaluation measured, and what its report and its model file need besides.

    Attributes:
      evaluation: content of evaluation.json.
      variables: the network's variables that were evaluated.
      thresholds: thresholds of the slices, [S].
      predictions: classes by the name of the classifier.
      query_split, gallery_split: the evaluated split and the train split.
      queries, gallery: their embeddings.
    """

    evaluation: dict
    variables: Any
    thresholds: np.ndarray
    predictions: dict[str, np.ndarray]
    query_split: Split
    gallery_split: Split
    queries: EmbeddedSplit
    gallery: EmbeddedSplit


def evaluate(
    config: ConfigDict,
    workdir: Path,
    split: str,
    command: str = '',
    *,
    out: Path | None = None,
    show: Callable[[dict], object] | None = None,
) -> dict:
    """Evaluates the run in `workdir` on a split, with the train split as the gallery.

    Faces of classes that the gallery does not have are only retrieved, not classified. Writes
    evaluation.json, report.html and model.safetensors into a folder. If a run has several
    processes, all of them must call this function, because they read the checkpoint together. The first
    process writes the files.

    Args:
      config: the run's config.
      workdir: the run's folder.
      split: name of the split.
      command: how the run was started, for the report.
      out: folder of the files; None for the run's own.
      show: called by the first process with the content of evaluation.json before a file is written, so
        that a folder or disk that cannot be written costs no results.

    Returns:
      The content of evaluation.json.

    Raises:
      UserError: there is no checkpoint, the settings cannot work, the data lack the split, or the data
        have other classes.
      OSError: the files cannot be written.
    """
    check_config(config)
    measured = _measure(config, workdir, split, command)
    if jax.process_index() == 0:
        try:
            if show:
                show(measured.evaluation)
        finally:  # Nobody may read what is shown: `| head -1` closes the pipe.
            _publish(config, workdir, out or workdir, measured)
    return measured.evaluation


def _measure(config, workdir, split, command) -> _Measured:
    """Embeds both splits with the network of the checkpoint, and scores the embeddings."""
    data = config.data
    query_split, gallery_split = (
        load_protocol_split(data, split),
        load_protocol_split(data, 'train'),
    )
    num_classes = len(gallery_split.class_names)
    network = make_network(config.model, num_classes)
    thresholds = np.asarray(make_thresholds(config, num_classes))
    state, info = load_checkpoint(network, config, workdir)
    if info['class_names'] != query_split.class_names:
        raise UserError(
            f'the run in {workdir} was trained on the classes {", ".join(info["class_names"])}; '
            f'{data.name} now has {", ".join(query_split.class_names)}'
        )
    embed = make_embedder(network, config)
    gallery, queries = (embed(state.eval_variables, x) for x in (gallery_split, query_split))
    predictions, scores = _score(config, query_split, queries, gallery, thresholds)
    evaluation = {
        'split': split,
        'gallery_split': data.train_split,
        'num_examples': len(queries.labels),
        'class_names': query_split.class_names,
        **scores,
        'run': describe_run(config, workdir, state, info, command),
    }
    return _Measured(
        evaluation,
        state.eval_variables,
        thresholds,
        predictions,
        query_split,
        gallery_split,
        queries,
        gallery,
    )


def _score(config, query_split, queries, gallery, thresholds):
    """Returns the classes that each classifier predicts, and all scores of the queries."""
    neighbors = {'num_neighbors': config.eval.num_neighbors}
    predictions, classifiers = classify_and_score(
        gallery, queries, len(query_split.class_names), **neighbors
    )
    return predictions, {
        'classifiers': classifiers,
        'retrieval': retrieval_scores(
            queries.embeddings,
            queries.labels,
            is_query=query_split.is_query,
            is_gallery=query_split.is_gallery,
        ),
        'slices': slice_study(
            gallery if classifiers else None,
            queries,
            thresholds,
            distance=config.loss.distance,
            dual=config.loss.dual,
            batch_size=config.data.batch_size,
            **neighbors,
        ),
    }


def _publish(config, workdir, out, measured):
    """Writes the report, the model file, and last the evaluation."""
    out.mkdir(parents=True, exist_ok=True)
    evaluation, gallery = measured.evaluation, measured.gallery
    write_report(
        out / 'report.html',
        config=config.to_dict(),
        history=read_metrics(workdir / 'metrics.jsonl'),
        evaluation=evaluation,
        queries=measured.queries,
        gallery=gallery,
        query_image=measured.query_split.encoded_image,
        gallery_image=measured.gallery_split.encoded_image,
        predictions=measured.predictions,
        query_names=measured.query_split.file_names,
        seed=config.seed,
    )
    model = model_of_run(config, measured.variables, measured.thresholds, gallery, evaluation)
    write_model(out / MODEL_NAME, model)
    # The evaluation is written last. If there is an evaluation.json, the other two files are complete.
    write_whole(out / 'evaluation.json', json.dumps(evaluation, indent=2) + '\n')


def load_checkpoint(network: Network, config: ConfigDict, workdir: Path) -> tuple[TrainState, dict]:
    """Reads the checkpoint that `config.eval.checkpoint` names; returns (state, info).

    Raises:
      UserError: there is no checkpoint.
    """
    optimizer = make_optimizer(config.optim, make_schedule(config.optim, config.train.num_steps))
    target = create_state(network, optimizer, config, shapes_only=True)
    with checkpoints.open_checkpoints(workdir / 'checkpoints', config.train) as manager:
        step = checkpoints.choose_step(manager, config.eval.checkpoint, config.train.best_metric)
        return checkpoints.restore(manager, step, target)


def describe_run(
    config: ConfigDict, workdir: Path, state: TrainState, info: dict, command: str
) -> dict:
    """Returns what was run, where, and for how long: the 'run' of evaluation.json."""
    seconds = info['seconds']
    images = int(state.step) * config.data.batch_size
    parameters = jax.tree.leaves(state.variables['params'])
    return {
        'command': command,
        'workdir': str(workdir),
        'steps': config.train.num_steps,
        'checkpoint_step': int(state.step),
        'seconds': round(seconds['total'], 1),
        'images_per_second': round(images / max(seconds['steps'], 1e-9), 1),
        'num_parameters': sum(x.size for x in parameters),
        'devices': jax.device_count(),
        'device': _device_name(),
        'python': platform.python_version(),
        'jax': jax.__version__,
        'mtdml_jax': mtdml_jax.__version__,
        'commit': _commit(),
    }


def _device_name() -> str:
    """Returns the kind of device; for a CPU, its model and cores if the system names them."""
    device = jax.devices()[0]
    return (processor() if device.platform == 'cpu' else '') or device.device_kind


def _commit() -> str:
    """Returns the commit of the package's working tree; '' if there is no commit or no git."""
    if not shutil.which('git'):
        return ''
    found = subprocess.run(
        ['git', '-C', str(Path(__file__).parent), 'describe', '--always', '--dirty'],
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip()
