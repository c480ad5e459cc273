"""Makes a smaller model from some slices of a model, and chooses these slices."""

from collections.abc import Sequence

import numpy as np

from mtdml_jax.host.errors import UserError
from mtdml_jax.models.model_file import ModelData


def take_slices(data: ModelData, chosen: Sequence[int]) -> ModelData:
    """Makes a model of some slices of a model; only the backbone keeps its size.

    Each slice is normalised separately and has its own classifier, so the outputs of a slice that stays
    do not change.

    Args:
      data: the whole model.
      chosen: numbers of slices, from 0, each once; the new model has them in this order.

    Raises:
      UserError: no slice is chosen, a slice is chosen twice, or the model does not have the slice.
    """
    settings, network = data.settings, data.settings.network
    num_slices = network.num_slices
    if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(range(num_slices)):
        raise UserError(
            f'slices: expected some of 0 to {num_slices - 1}, each once, found '
            f'{",".join(map(str, chosen)) or "none"}'
        )

    # The last axis is the concatenation of the slices.
    size = network.embedding_size // num_slices
    components = np.concatenate([np.arange(i * size, (i + 1) * size) for i in chosen])

    def take(array):
        return np.asarray(array)[..., components]

    # An embedding is the concatenation of unit slices, divided by the root of their number.
    longer = np.float32((num_slices / len(chosen)) ** 0.5)
    params, statistics = data.variables['params'], data.variables['batch_stats']
    params = params | {
        'embedding': {name: take(array) for name, array in params['embedding'].items()},
        'classes': np.asarray(params['classes'])[list(chosen)],
    }
    # Only the statistics of the embedding's BatchNorm, if there is one, depend on the slices.
    statistics = {
        name: values if name == 'backbone' else {key: take(x) for key, x in values.items()}
        for name, values in statistics.items()
    }
    settings = settings._replace(
        network=network._replace(
            num_slices=len(chosen),
            embedding_size=size * len(chosen),
        ),
        thresholds=tuple(settings.thresholds[i] for i in chosen),
    )
    variables = {'params': params, 'batch_stats': statistics}
    return ModelData(settings, variables, take(data.centres) * longer, take(data.gallery) * longer)


def choose_slices(scores: np.ndarray, labels: np.ndarray, count: int) -> list[int]:
    """Chooses slices that classify well together, greedily: each step adds the slice that helps most.

    Args:
      scores: class scores of each slice, [N, S, C]; the model predicts by their mean over the slices.
      labels: true classes, int [N].
      count: number of slices to choose.

    Returns:
      The numbers of the chosen slices, ascending.

    Raises:
      UserError: `count` is less than 1, or larger than the number of slices.
    """
    num_slices = scores.shape[1]
    if not 1 <= count <= num_slices:
        raise UserError(f'slices: expected 1 to {num_slices} of them, found {count}')
    chosen: list[int] = []
    total = np.zeros(scores[:, 0].shape)
    for _ in range(count):
        left = [i for i in range(num_slices) if i not in chosen]
        # Among equally accurate slices, the one with the higher likelihood of the true classes wins.
        best = max(left, key=lambda i: _quality((total + scores[:, i]) / (len(chosen) + 1), labels))
        chosen.append(best)
        total += scores[:, best]
    return sorted(chosen)


def _quality(scores, labels):
    """Returns (accuracy, mean log-likelihood) of class scores [N, C]."""
    shifted = scores - scores.max(axis=1, keepdims=True)
    likelihood = shifted[np.arange(len(labels)), labels] - np.log(np.exp(shifted).sum(axis=1))
    return np.mean(scores.argmax(axis=1) == labels), likelihood.mean()
