"""A smaller model: some slices of another, and how they are chosen."""

from collections.abc import Sequence

import numpy as np

from mtdml_jax.host.errors import UserError
from mtdml_jax.models.model_file import ModelData


def take_slices(data: ModelData, chosen: Sequence[int]) -> ModelData:
    """The model of some slices: everything behind the backbone shrinks to them.

    Slices are normalised one by one, and each has its own classifier, so what is left of a slice says
    what it said before.

    Args:
      data: the whole model.
      chosen: numbers of slices, from 0, each once; they stay in this order.

    Raises:
      UserError: none, one twice, or one that the model does not have.
    """
    settings, network = data.settings, data.settings.network
    num_slices = network.num_slices
    if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(range(num_slices)):
        raise UserError(
            f'slices: expected some of 0 to {num_slices - 1}, each once, found '
            f'{",".join(map(str, chosen)) or "none"}'
        )

    # Slices lie side by side in the last axis.
    size = network.embedding_size // num_slices
    components = np.concatenate([np.arange(i * size, (i + 1) * size) for i in chosen])

    def take(array):
        return np.asarray(array)[..., components]

    # Of an embedding of unit slices, divided by the root of their number.
    longer = np.float32((num_slices / len(chosen)) ** 0.5)
    params, statistics = data.variables['params'], data.variables['batch_stats']
    params = params | {
        'embedding': {name: take(array) for name, array in params['embedding'].items()},
        'classes': np.asarray(params['classes'])[list(chosen)],
    }
    # Of the embedding's BatchNorm, where it has one; the others are the backbone's.
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
    """The slices that classify best together, found greedily: each is the best beside those before.

    Args:
      scores: class scores of each slice, [N, S, C]; their mean over slices is the answer.
      labels: true classes, int [N].
      count: how many to choose.

    Returns:
      Their numbers, ascending.

    Raises:
      UserError: fewer than 1, or more than there are.
    """
    num_slices = scores.shape[1]
    if not 1 <= count <= num_slices:
        raise UserError(f'slices: expected 1 to {num_slices} of them, found {count}')
    chosen: list[int] = []
    total = np.zeros(scores[:, 0].shape)
    for _ in range(count):
        left = [i for i in range(num_slices) if i not in chosen]
        # Among equally accurate ones the one that is surer of the truth.
        best = max(left, key=lambda i: _quality((total + scores[:, i]) / (len(chosen) + 1), labels))
        chosen.append(best)
        total += scores[:, best]
    return sorted(chosen)


def _quality(scores, labels):
    """(accuracy, mean log-likelihood) of class scores [N, C]."""
    shifted = scores - scores.max(axis=1, keepdims=True)
    likelihood = shifted[np.arange(len(labels)), labels] - np.log(np.exp(shifted).sum(axis=1))
    return np.mean(scores.argmax(axis=1) == labels), likelihood.mean()
