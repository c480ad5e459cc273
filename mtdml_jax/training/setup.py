"""What a config describes: thresholds, class weights, the network, its first state, and the step."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from mtdml_jax.host.errors import UserError, check_choice
from mtdml_jax.loss.thresholds import sample_thresholds, threshold_range
from mtdml_jax.models import Network, make_network
from mtdml_jax.training.devices import AXIS, make_mapping
from mtdml_jax.training.state import TrainState, create_state, make_optimizer, make_schedule
from mtdml_jax.training.step import make_loss, make_train_step


def make_training(
    config: ConfigDict,
    class_counts: np.ndarray,
    *,
    devices: Sequence[jax.Device] | None = None,
    shapes_only: bool = False,
) -> tuple[Network, TrainState, Callable]:
    """Makes what the config describes: the network, its first state, and the mapped step.

    Args:
      config: the whole config.
      class_counts: number of faces of each class to train on, int [C].
      devices: devices over which the step is mapped, see `make_mapping`; None for all.
      shapes_only: whether the state has shapes in place of arrays, see `create_state`.

    Returns:
      (network, state, step). The step is mapped by the `Mapping` of `config.train.mapping`: it takes the
      state from its `replicate` and a batch from its `split`. It returns the next state and the metrics,
      both replicated.

    Raises:
      UserError: a setting is unknown, or two settings do not fit together.
    """
    class_weights = make_class_weights(class_counts, config.loss.class_weights)
    facts = {
        'num_classes': len(class_counts),
        'thresholds': tuple(make_thresholds(config, len(class_counts)).tolist()),
        'class_weights': None if class_weights is None else tuple(class_weights.tolist()),
    }
    network, optimizer, step = _make_step(
        _settings_of_step(config),
        devices=None if devices is None else tuple(devices),
        **facts,
    )
    state = create_state(network, optimizer, config, shapes_only=shapes_only)
    return network, state, step


def _settings_of_step(config):
    """Returns all settings on which the step depends, and no others, so that they can be a key."""
    keys = {
        'train': ('num_steps', 'ema_decay', 'mapping'),
        'data': ('micro_batch',),
        **{name: tuple(config[name]) for name in ('model', 'loss', 'optim')},
    }
    return FrozenConfigDict(
        {name: {key: config[name][key] for key in found} for name, found in keys.items()}
    )


# The folds of a cross-validation share one step, which is traced and compiled once.
@functools.lru_cache(maxsize=4)
def _make_step(config, *, num_classes, thresholds, class_weights, devices):
    """Returns (network, optimizer, mapped step)."""
    model, loss = config.model, config.loss
    network = make_network(model, num_classes, None if model.batch_norm == 'device' else AXIS)
    schedule = make_schedule(config.optim, config.train.num_steps)
    optimizer = make_optimizer(config.optim, schedule)
    joint_loss = make_loss(
        network,
        jnp.array(thresholds),
        loss,
        AXIS,
        None if class_weights is None else jnp.array(class_weights),
        micro_batch=config.data.micro_batch,
        batch_norm=model.batch_norm,
        frozen=config.optim.frozen,
    )
    step = make_train_step(
        joint_loss, optimizer, schedule, config.train.ema_decay, AXIS, loss.memory_start
    )
    return network, optimizer, make_mapping(config.train.mapping, devices).map_step(step)


def make_thresholds(config: ConfigDict, num_classes: int) -> jax.Array:
    """Returns the thresholds of the slices, [S].

    They are those of the config, or the midpoints of equal bins of the valid range.

    Raises:
      UserError: the number of thresholds is not the number of slices, or the distance is unknown.
    """
    loss, model = config.loss, config.model
    if loss.thresholds and len(loss.thresholds) != model.num_slices:
        raise UserError(
            f'config.loss.thresholds: expected {model.num_slices} of them (config.model.num_slices), '
            f'found {len(loss.thresholds)}'
        )
    try:
        slice_dim = model.embedding_size // model.num_slices
        low, high = threshold_range(num_classes, slice_dim, loss.distance)
    except ValueError as error:
        raise UserError(f'config.loss: {error}') from error
    if loss.thresholds:
        return jnp.array(loss.thresholds, jnp.float32)
    return sample_thresholds(model.num_slices, low, high)


def make_class_weights(class_counts: np.ndarray, kind: str) -> jax.Array | None:
    """Returns the weights of the classes in cross-entropy, [C], or None for equal weights.

    A class with n faces has the weight 1 / n ('inverse') or 1 / sqrt(n) ('sqrt'). Only the ratios of the
    weights matter.

    Args:
      class_counts: number of faces of each class, int [C].
      kind: 'none', 'inverse' or 'sqrt'.

    Raises:
      UserError: the kind is unknown.
    """
    powers = {'none': 0.0, 'inverse': -1.0, 'sqrt': -0.5}
    check_choice('loss.class_weights', kind, powers)
    if kind == 'none':
        return None
    return jnp.maximum(class_counts, 1.0) ** powers[kind]
