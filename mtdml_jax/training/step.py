"""One training step as a pure function, and the same over all devices."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict, FrozenConfigDict

from mtdml_jax.host.errors import UserError, check_choice
from mtdml_jax.loss.memory import remember
from mtdml_jax.loss.microbatch import embed_in_parts
from mtdml_jax.loss.multi_threshold import global_mean, multi_threshold_loss
from mtdml_jax.loss.thresholds import sample_thresholds, threshold_range
from mtdml_jax.models import Network, make_network
from mtdml_jax.training.state import TrainState, create_state, make_optimizer, make_schedule

# The mapped axis over whose devices a batch is spread.
AXIS = 'batch'


def make_training(
    config: ConfigDict, class_counts: np.ndarray, *, read_pretrained: bool = True
) -> tuple[Network, TrainState, Callable]:
    """What the config describes: the network, its first state, and the step over all devices.

    Args:
      config: the whole config.
      class_counts: number of faces of each class to train on, int [C].
      read_pretrained: as of `create_state`.

    Returns:
      (network, state, step); the step takes the state replicated over the devices (and gives it
      back), and a batch as `split_over_devices` leaves it.

    Raises:
      UserError: settings that do not exist or do not fit.
    """
    class_weights = make_class_weights(class_counts, config.loss.class_weights)
    network, optimizer, step = _make_step(
        *(FrozenConfigDict(config[name]) for name in ('model', 'loss', 'optim')),
        config.train.num_steps,
        config.train.ema_decay,
        config.data.micro_batch,
        len(class_counts),
        tuple(make_thresholds(config, len(class_counts)).tolist()),
        None if class_weights is None else tuple(class_weights.tolist()),
    )
    state = create_state(network, optimizer, config, read_pretrained=read_pretrained)
    return network, state, step


# The folds of a cross-validation are trained by one step, traced and compiled once.
@functools.lru_cache(maxsize=4)
def _make_step(
    model, loss, optim, num_steps, ema_decay, micro_batch, num_classes, thresholds, class_weights
):
    """(network, optimizer, step) of these sections and keys of a config."""
    network = make_network(model, num_classes, None if model.batch_norm == 'device' else AXIS)
    schedule = make_schedule(optim, num_steps)
    optimizer = make_optimizer(optim, schedule)
    joint_loss = make_loss(
        network,
        jnp.array(thresholds),
        loss,
        AXIS,
        None if class_weights is None else jnp.array(class_weights),
        micro_batch=micro_batch,
        batch_norm=model.batch_norm,
    )
    step = make_train_step(joint_loss, optimizer, schedule, ema_decay, AXIS, loss.memory_start)
    return network, optimizer, jax.pmap(step, axis_name=AXIS, donate_argnums=0)


def split_over_devices(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays [B, ...] to [local devices, B / local devices, ...], as pmap takes them."""
    devices = jax.local_device_count()
    return {name: x.reshape(devices, -1, *x.shape[1:]) for name, x in batch.items()}


def on_host(tree: Any) -> Any:
    """Of arrays that are replicated over devices, as pmap returns them, one replica in NumPy arrays."""
    # Copied: what a NumPy array borrows, a later step may overwrite.
    return jax.tree.map(lambda x: np.array(x.addressable_data(0))[0], tree)


def make_thresholds(config: ConfigDict, num_classes: int) -> jax.Array:
    """The thresholds of the slices, [S]: as configured, or over the valid range.

    Raises:
      UserError: another number of thresholds than of slices, or an unknown distance.
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
    """Weights of the classes in cross-entropy, [C], or None for equal ones; only ratios matter.

    They fall with the number n of a class's faces, as 1 / n ('inverse') or 1 / sqrt(n) ('sqrt').

    Args:
      class_counts: number of faces of each class, int [C].
      kind: 'none', 'inverse' or 'sqrt'.

    Raises:
      UserError: another kind.
    """
    powers = {'none': 0.0, 'inverse': -1.0, 'sqrt': -0.5}
    check_choice('loss.class_weights', kind, powers)
    if kind == 'none':
        return None
    return jnp.maximum(class_counts, 1.0) ** powers[kind]


def make_loss(
    network: Network,
    thresholds: jax.Array,
    loss: ConfigDict,
    axis_name: str | None,
    class_weights: jax.Array | None = None,
    *,
    micro_batch: int = 0,
    batch_norm: str = 'batch',
) -> Callable:
    """The joint loss of a batch, a function of (params, batch_stats, batch, memory=None).

    It returns (loss, (batch_stats, memory, metrics)), the memory with this batch in it, with

    loss = metric_weight * multi-threshold loss + softmax_weight * softmax cross-entropy

    Cross-entropy is that of each slice's classifier, averaged; the accuracy is that of the mean of
    their logits. A term of weight 0 is still reported, but adds no gradient.

    Args:
      network: the network.
      thresholds: one a slice, [S].
      loss: the section `loss` of the config.
      axis_name: mapped axis over whose devices the batch is spread.
      class_weights: weight of each class in cross-entropy, [C]; None for equal ones.
      micro_batch: images that a device embeds at a time (`embed_in_parts`); 0 for all.
      batch_norm: 'running' where BatchNorm's statistics stay what they are; else they are those of the
        images embedded together, over all devices as far as the network says so.
    """

    def joint_loss(params, batch_stats, batch, memory=None):
        def embed(images):
            outputs, updated = network.apply(
                {'params': params, 'batch_stats': batch_stats},
                images,
                train=batch_norm != 'running',
                mutable=['batch_stats'],
            )
            return outputs, updated.get('batch_stats', {})

        if micro_batch:
            outputs, batch_stats = embed_in_parts(embed, batch['image'], micro_batch, has_aux=True)
        else:
            outputs, batch_stats = embed(batch['image'])
        labels, mask = batch['label'], batch['mask']
        metric_loss, aux = multi_threshold_loss(
            outputs.embedding,
            labels,
            thresholds,
            distance=loss.distance,
            dual=loss.dual,
            mining=loss.mining,
            quantile=loss.quantile,
            softness=loss.softness,
            reduction=loss.reduction,
            mask=mask,
            memory=memory,
            axis_name=axis_name,
        )
        if memory is not None:
            memory = remember(memory, outputs.embedding, labels, mask=mask, axis_name=axis_name)
        # Labels that are votes of several people are shares of the classes.
        shares = batch.get('votes', jax.nn.one_hot(labels, outputs.logits.shape[-1]))
        targets = optax.smooth_labels(shares, loss.label_smoothing)
        cross_entropy = optax.softmax_cross_entropy(outputs.logits, targets[:, None]).mean(axis=1)
        if class_weights is not None:
            weights = shares @ class_weights
            cross_entropy *= weights / global_mean(weights, mask, axis_name)
        softmax_loss = global_mean(cross_entropy, mask, axis_name)
        correct = jnp.argmax(outputs.logits.mean(axis=1), axis=-1) == labels
        metrics = {
            'metric_loss': metric_loss,
            'softmax_loss': softmax_loss,
            'accuracy': global_mean(correct, mask, axis_name),
            **{f'slice_{name}': value for name, value in aux._asdict().items()},
        }
        total = loss.metric_weight * metric_loss + loss.softmax_weight * softmax_loss
        return total, (batch_stats, memory, metrics)

    return joint_loss


def make_train_step(
    joint_loss: Callable,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    ema_decay: float,
    axis_name: str | None,
    memory_start: int = 0,
) -> Callable[[TrainState, dict], tuple[TrainState, dict]]:
    """The step: (state, batch) -> (state, metrics), for pmap, shard_map, or plain jit.

    Args:
      joint_loss: as made by `make_loss` with the same `axis_name`.
      optimizer: the optimizer.
      schedule: learning rate of a step, for the metrics.
      ema_decay: decay of the running mean of the variables; 0 for none.
      axis_name: mapped axis over whose devices the batch is spread; None for one device.
      memory_start: first step whose embeddings are remembered, if the state has a memory.
    """

    def train_step(state, batch):
        params, batch_stats = state.variables['params'], state.variables['batch_stats']
        gradient = jax.value_and_grad(joint_loss, has_aux=True)
        (loss, (batch_stats, memory, metrics)), grads = gradient(
            params, batch_stats, batch, state.memory
        )
        if axis_name is not None:
            # BatchNorm averaged over the devices in the forward pass already; the mean keeps replicas
            # equal to the bit where the sums of two devices are rounded differently.
            grads, batch_stats = jax.lax.pmean((grads, batch_stats), axis_name)
        updates, opt_state = optimizer.update(grads, state.opt_state, params)
        variables = {
            'params': optax.apply_updates(params, updates),
            'batch_stats': batch_stats,
        }
        metrics |= {
            'loss': loss,
            'grad_norm': optax.tree.norm(grads),
            'learning_rate': schedule(state.step),
        }
        ema = state.ema
        if ema_decay:
            # The early mean would otherwise remember the random start for 1 / (1 - decay) steps.
            decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
            ema = optax.incremental_update(variables, ema, 1 - decay)
        # Until then the memory stays empty: what a network says at first is soon untrue.
        starts = state.step >= memory_start
        memory = jax.tree.map(lambda new, old: jnp.where(starts, new, old), memory, state.memory)
        return TrainState(state.step + 1, variables, opt_state, ema, memory), metrics

    return train_step
