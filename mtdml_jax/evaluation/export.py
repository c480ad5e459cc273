"""From an evaluated run to a model file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mtdml_jax.inference.model_file import FORMAT, ModelData, NetworkSettings, Settings
from mtdml_jax.inference.pixels import Preprocessing

if TYPE_CHECKING:  # It loads TensorFlow, which nothing here needs.
    from mtdml_jax.evaluation.embed import EmbeddedSplit


def model_of_run(
    config, variables: Any, thresholds: np.ndarray, gallery: EmbeddedSplit, evaluation: dict
) -> ModelData:
    """The model of a run, with what its evaluation measured.

    Args:
      config: the run's config.
      variables: the network's, as evaluated.
      thresholds: of the slices, [S].
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


def _plain(value):
    return tuple(map(float, value)) if isinstance(value, (tuple, list)) else value
