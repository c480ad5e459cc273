"""Evaluation of a run: from its checkpoint to evaluation.json and report.html."""

import json
import platform
import shutil
import subprocess
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

import mtdml_jax
from mtdml_jax.config import check_config
from mtdml_jax.data.protocol import load_protocol_split
from mtdml_jax.host.errors import UserError
from mtdml_jax.host.files import write_whole
from mtdml_jax.host.system import processor
from mtdml_jax.inference.model import MODEL_NAME
from mtdml_jax.models import Network, make_network
from mtdml_jax.models.model_file import write_model
from mtdml_jax.reports.export import model_of_run
from mtdml_jax.reports.report import write_report
from mtdml_jax.scoring.classify import classify_and_score
from mtdml_jax.scoring.embed import make_embedder
from mtdml_jax.scoring.retrieval import retrieval_scores
from mtdml_jax.scoring.slice_scores import slice_study
from mtdml_jax.training import checkpoints
from mtdml_jax.training.metrics import read_metrics
from mtdml_jax.training.state import TrainState, create_state, make_optimizer, make_schedule
from mtdml_jax.training.step import make_thresholds


def evaluate(config: ConfigDict, workdir: Path, split: str, command: str = '') -> dict:
    """Evaluates the run in `workdir` on a split, with the train split as the gallery.

    Classes that the gallery does not have are only retrieved, not classified. Writes evaluation.json,
    report.html and model.safetensors into the run's folder. Of several processes all must call this
    (they read the checkpoint together); the first writes.

    Args:
      config: the run's config.
      workdir: the run's folder.
      split: name of the split.
      command: how the run was started, for the report.

    Returns:
      The content of evaluation.json.

    Raises:
      UserError: no checkpoint, settings that cannot work, a split that the data lacks, or data with
        other classes.
    """
    check_config(config)
    data, options = config.data, config.eval
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
    neighbors = {'num_neighbors': options.num_neighbors}
    predictions, scores = classify_and_score(
        gallery, queries, num_classes, seed=config.seed, **neighbors
    )
    evaluation = {
        'split': split,
        'gallery_split': data.train_split,
        'num_examples': len(queries.labels),
        'class_names': query_split.class_names,
        'classifiers': scores,
        'retrieval': retrieval_scores(
            queries.embeddings,
            queries.labels,
            is_query=query_split.is_query,
            is_gallery=query_split.is_gallery,
        ),
        'slices': slice_study(
            gallery if scores else None,
            queries,
            thresholds,
            distance=config.loss.distance,
            dual=config.loss.dual,
            batch_size=data.batch_size,
            **neighbors,
        ),
        'run': describe_run(config, workdir, state, info, command),
    }
    if jax.process_index() != 0:
        return evaluation
    write_report(
        workdir / 'report.html',
        config=config.to_dict(),
        history=read_metrics(workdir / 'metrics.jsonl'),
        evaluation=evaluation,
        queries=queries,
        gallery=gallery,
        query_image=query_split.encoded_image,
        gallery_image=gallery_split.encoded_image,
        predictions=predictions,
        query_names=query_split.file_names,
        seed=config.seed,
    )
    data = model_of_run(config, state.eval_variables, thresholds, gallery, evaluation)
    write_model(workdir / MODEL_NAME, data)
    # Written last: if there is an evaluation.json, the evaluation is complete.
    write_whole(workdir / 'evaluation.json', json.dumps(evaluation, indent=2) + '\n')
    return evaluation


def load_checkpoint(network: Network, config: ConfigDict, workdir: Path) -> tuple[TrainState, dict]:
    """The (state, info) of the checkpoint that `config.eval.checkpoint` names.

    Raises:
      UserError: there is none.
    """
    optimizer = make_optimizer(config.optim, make_schedule(config.optim, config.train.num_steps))
    target = create_state(network, optimizer, config, read_pretrained=False)
    with checkpoints.open_checkpoints(workdir / 'checkpoints', config.train) as manager:
        step = checkpoints.choose_step(manager, config.eval.checkpoint, config.train.best_metric)
        return checkpoints.restore(manager, step, target)


def describe_run(
    config: ConfigDict, workdir: Path, state: TrainState, info: dict, command: str
) -> dict:
    """What was run, where, and for how long: the 'run' of evaluation.json."""
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
    """The kind of device; of a CPU its model and cores where the system tells them."""
    device = jax.devices()[0]
    return (processor() if device.platform == 'cpu' else '') or device.device_kind


def _commit() -> str:
    """The commit of the working tree of the package; '' if there is none, or no git."""
    if not shutil.which('git'):
        return ''
    found = subprocess.run(
        ['git', '-C', str(Path(__file__).parent), 'describe', '--always', '--dirty'],
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip()
