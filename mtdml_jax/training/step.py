"""One training step as a pure function: the joint loss of a batch, and the update that follows."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from mtdml_jax.loss.memory import remember
from mtdml_jax.loss.microbatch import embed_in_parts
from mtdml_jax.loss.multi_threshold import global_mean, multi_threshold_loss
from mtdml_jax.models import Network
from mtdml_jax.training.state import TrainState, find_frozen

# Options of the multi-threshold loss that have the same name in the section `loss` of a config.
_OPTIONS = ('distance', 'dual', 'mining', 'quantile', 'softness', 'reduction')


def make_loss(
    network: Network,
    thresholds: jax.Array,
    loss: ConfigDict,
    axis_name: str | None,
    class_weights: jax.Array | None = None,
    *,
    micro_batch: int = 0,
    batch_norm: str = 'batch',
    frozen: str = '',
) -> Callable:
    """Returns the joint loss of a batch, a function of (params, batch_stats, batch, memory=None).

    The function returns (loss, (batch_stats, memory, metrics)). This batch is in the returned memory.

    loss = metric_weight * multi-threshold loss + softmax_weight * softmax cross-entropy

    The cross-entropy is the mean over the slices' classifiers. The accuracy is that of the mean of their
    logits. A term with weight 0 is still reported, but adds no gradient.

    Args:
      network: the network.
      thresholds: one threshold per slice, [S].
      loss: the section `loss` of the config.
      axis_name: mapped axis over whose devices the batch is spread; None for one device.
      class_weights: weight of each class in cross-entropy, [C]; None for equal weights.
      micro_batch: number of images that a device embeds at a time, see `embed_in_parts`; 0 for all.
      batch_norm: 'running' if BatchNorm uses and keeps its running statistics. Otherwise it takes the
        statistics of the images that are embedded together, over all devices if the network says so.
      frozen: pattern of the parameters that get no gradient, see `find_frozen`.
    """

    def joint_loss(params, batch_stats, batch, memory=None):
        params = jax.tree.map(
            lambda x, stops: jax.lax.stop_gradient(x) if stops else x,
            *(params, find_frozen(params, frozen)),
        )
        outputs, batch_stats = _forward(
            network,
            {'params': params, 'batch_stats': batch_stats},
            batch['image'],
            micro_batch,
            train=batch_norm != 'running',
        )
        labels, mask = batch['label'], batch['mask']
        metric_loss, aux = multi_threshold_loss(
            outputs.embedding,
            labels,
            thresholds,
            **{name: loss[name] for name in _OPTIONS},
            mask=mask,
            memory=memory,
            axis_name=axis_name,
        )
        if memory is not None:
            memory = remember(memory, outputs.embedding, labels, mask=mask, axis_name=axis_name)
        softmax_loss = _softmax_loss(
            outputs.logits, batch, class_weights, loss.label_smoothing, axis_name
        )
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


def _forward(network, variables, images, micro_batch, *, train):
    """Returns (outputs, batch_stats) of a forward pass over a batch or over its micro-batches."""

    def forward(images):
        outputs, updated = network.apply(variables, images, train=train, mutable=['batch_stats'])
        return outputs, updated.get('batch_stats', {})

    if not micro_batch:
        return forward(images)
    return embed_in_parts(forward, images, micro_batch, has_aux=True)


def _softmax_loss(logits, batch, class_weights, label_smoothing, axis_name):
    """Returns the cross-entropy of logits [N, S, C], averaged over slices and rows."""
    # If a label is the votes of several people, the target is each class's share of the votes.
    shares = batch.get('votes', jax.nn.one_hot(batch['label'], logits.shape[-1]))
    targets = optax.smooth_labels(shares, label_smoothing)
    cross_entropy = optax.softmax_cross_entropy(logits, targets[:, None]).mean(axis=1)
    if class_weights is not None:
        weights = shares @ class_weights
        cross_entropy *= weights / global_mean(weights, batch['mask'], axis_name)
    return global_mean(cross_entropy, batch['mask'], axis_name)


def make_train_step(
    joint_loss: Callable,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    ema_decay: float,
    axis_name: str | None,
    memory_start: int = 0,
) -> Callable[[TrainState, dict], tuple[TrainState, dict]]:
    """Returns the step, a function (state, batch) -> (state, metrics), for pmap, shard_map or jit.

    Args:
      joint_loss: the result of `make_loss` with the same `axis_name`.
      optimizer: the optimizer.
      schedule: learning rate of each step, for the metrics.
      ema_decay: decay of the running mean of the variables; 0 for no running mean.
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
            # BatchNorm has already averaged over the devices in the forward pass. Two devices may round
            # their sums differently, so this second mean keeps the replicas equal to the bit.
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
            # A smaller decay at first, or the random start would weigh on the mean for
            # 1 / (1 - decay) steps.
            decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
            ema = optax.incremental_update(variables, ema, 1 - decay)
        # The memory stays empty until memory_start, because early embeddings are soon out of date.
        starts = state.step >= memory_start
        memory = jax.tree.map(lambda new, old: jnp.where(starts, new, old), memory, state.memory)
        return TrainState(state.step + 1, variables, opt_state, ema, memory), metrics

    return train_step
