"""Makes the model of an evaluated run, and smaller models whose scores are measured again."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mtdml_jax.data.pipeline import eval_batches
from mtdml_jax.data.protocol import load_protocol_split
from mtdml_jax.host.errors import UserError
from mtdml_jax.images.pixels import Preprocessing
from mtdml_jax.inference.model import Model
from mtdml_jax.models.choose_slices import choose_slices, take_slices
from mtdml_jax.models.model_file import (
    FORMAT,
    ModelData,
    NetworkSettings,
    Settings,
    read_model,
    write_model,
)
from mtdml_jax.scoring.classify import classify_and_score
from mtdml_jax.scoring.embed import EmbeddedSplit, make_embedder


def model_of_run(
    config: ConfigDict,
    variables: Any,
    thresholds: np.ndarray,
    gallery: EmbeddedSplit,
    evaluation: dict,
) -> ModelData:
    """Makes the model of a run, with the scores that its evaluation measured.

    Args:
      config: the run's config.
      variables: the network's variables that were evaluated.
      thresholds: thresholds of the slices, [S].
      gallery: the training faces, whose mean embeddings become the centres of the classes.
      evaluation: content of evaluation.json.
    """
    names = evaluation['class_names']
    counts = np.bincount(gallery.labels, minlength=len(names))
    sums = np.zeros((len(names), gallery.embeddings.shape[1]))
    np.add.at(sums, gallery.labels, gallery.embeddings)
    pixels = {key: _plain(config.data[key]) for key in Preprocessing._fields}
    settings = Settings(
        format=FORMAT,
        network=NetworkSettings(**{key: config.model[key] for key in NetworkSettings._fields}),
        preprocessing=Preprocessing(**pixels),
        flip=config.eval.flip,
        has_head=config.loss.softmax_weight > 0,
        class_names=tuple(names),
        thresholds=tuple(thresholds.tolist()),
        distance=config.loss.distance,
        class_counts=tuple(counts.tolist()),
        gallery_labels=(),
        gallery_names=(),
        measured={key: evaluation[key] for key in ('split', 'num_examples', 'classifiers')},
        trained={
            'data': config.data.name,
            'variant': config.data.variant,
            'split': config.data.train_split,
            'seed': config.seed,
            **{key: evaluation['run'][key] for key in ('checkpoint_step', 'commit', 'mtdml_jax')},
        },
        license='',
    )
    centres = (sums / np.maximum(counts, 1)[:, None]).astype(np.float32)
    return ModelData(settings, variables, centres, np.zeros((0, sums.shape[1]), np.float32))


def shrink(
    config: ConfigDict,
    data: ModelData,
    *,
    slices: int | Sequence[int] | None = None,
    dtype: str = 'float32',
) -> ModelData:
    """Makes a model with fewer slices or coarser weights, and measures it on the evaluated split.

    Args:
      config: the run's config.
      data: the run's model.
      slices: numbers of the slices to keep; or how many to keep, which `choose_slices` chooses on the
        validation split.
      dtype: see `write_model`.

    Raises:
      UserError: the model does not have the slices, or the data cannot be read.
    """
    trained = data.settings.trained
    if isinstance(slices, int):
        validation = load_protocol_split(config.data, 'validation')
        scores = _slice_scores(config, data, validation)
        slices = choose_slices(scores, validation.labels, slices)
        trained = trained | {'slices_chosen_on': config.data.validation_split}
    if slices is not None:
        data, trained = take_slices(data, slices), trained | {'slices': list(slices)}
    data = _round(data, dtype)
    measured = _measure(config, data, data.settings.measured['split'])
    return data._replace(settings=data.settings._replace(trained=trained, measured=measured))


def _slice_scores(config, data, split):
    """Returns class scores of each slice, [N, S, C], up to a constant for each face and slice."""
    model, scores = Model(data), []
    classify = model.make_classifier().classify
    for batch in eval_batches(split, config.data, config.eval.batch_size):
        found = classify(*model.forward(batch['image'], config.eval.batch_size)())
        scores.append(found.slice_probabilities[batch['mask']])
    # A model without classifiers gives a class without training faces the probability 0.
    return np.log(np.maximum(np.concatenate(scores), np.finfo(np.float32).tiny))


def _round(data, dtype):
    """Returns the model as it is read from a file with this type of weights."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'model'
        write_model(path, data, dtype)
        return read_model(path)


def _measure(config, data, split):
    queries, gallery = (
        load_protocol_split(config.data, split),
        load_protocol_split(config.data, 'train'),
    )
    if tuple(queries.class_names) != data.settings.class_names:
        raise UserError(
            f'{config.data.name} now has the classes {", ".join(queries.class_names)}, not '
            f'{", ".join(data.settings.class_names)}'
        )
    embed = make_embedder(data.network, config)
    _, scores = classify_and_score(
        embed(data.variables, gallery),
        embed(data.variables, queries),
        len(queries.class_names),
        num_neighbors=config.eval.num_neighbors,
    )
    return {'split': split, 'num_examples': len(queries.labels), 'classifiers': scores}


def _plain(value):
    return tuple(map(float, value)) if isinstance(value, (tuple, list)) else value
