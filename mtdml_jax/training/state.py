"""The state that a training run carries from step to step, its optimizer and its learning rate."""

import re
from functools import partial
from typing import TYPE_CHECKING, Any

import flax
import jax
import jax.numpy as jnp
import optax

from mtdml_jax.host.errors import UserError
from mtdml_jax.loss.memory import Memory, empty_memory
from mtdml_jax.models import Network
from mtdml_jax.models.pretrained import load_backbone

if TYPE_CHECKING:  # The environment that compares ONNX exports does not have ml_collections.
    from ml_collections import ConfigDict


@flax.struct.dataclass
class TrainState:
    """State of a run between two steps: what a checkpoint holds.

    Attributes:
      step: number of completed steps, int32 scalar.
      variables: {'params', 'batch_stats'} of the network.
      opt_state: the optimizer's state.
      ema: running mean of `variables`, or None.
      memory: embeddings of earlier batches, or None.
    """

    step: jax.Array
    variables: Any
    opt_state: optax.OptState
    ema: Any
    memory: Memory | None = None

    @property
    def eval_variables(self) -> Any:
        """The variables to evaluate: the running mean if there is one."""
        return self.variables if self.ema is None else self.ema


def create_state(
    network: Network,
    optimizer: optax.GradientTransformation,
    config: 'ConfigDict',
    *,
    shapes_only: bool = False,
) -> TrainState:
    """Returns the state before the first step.

    Args:
      network: the network.
      optimizer: the optimizer.
      config: the whole config.
      shapes_only: whether to return shapes in place of arrays. A state that a checkpoint replaces
        needs no more, and not the file `config.model.pretrained`, which may no longer exist.

    Raises:
      UserError: the file does not hold this backbone.
    """
    shape = (config.data.image_size, config.data.image_size, config.data.channels)
    if shapes_only:
        return jax.eval_shape(
            lambda: _state_of(_call(network.init, config.seed, shape), optimizer, config)
        )
    variables = init_variables(network, config.seed, shape)
    if config.model.pretrained:
        variables = load_backbone(variables, config.model)
    return _state_of(variables, optimizer, config)


def _state_of(variables, optimizer, config):
    """Returns the state before the first step of these variables."""
    # Both are the same arrays. The step donates its state and needs two copies; `replicate` makes them.
    ema = variables if config.train.ema_decay else None
    # One program: without `jit` each shape of an array would be one.
    opt_state = jax.jit(optimizer.init)(variables['params'])
    size = config.loss.memory_size
    memory = empty_memory(size, config.model.embedding_size) if size else None
    return TrainState(jnp.zeros((), jnp.int32), variables, opt_state, ema, memory)


def init_variables(network: Network, seed: int, image_shape: tuple[int, ...]) -> Any:
    """Returns the initial {'params', 'batch_stats'} of a network for images [H, W, channels]."""
    # This program runs once, and without optimisation it compiles up to half a minute faster on a CPU.
    init = jax.jit(network.init, compiler_options={'xla_backend_optimization_level': 0})
    return _call(init, seed, image_shape)


def _call(init, seed, image_shape):
    # A backbone may have no BatchNorm.
    return {'batch_stats': {}, **init(jax.random.key(seed), jnp.zeros((1, *image_shape)))}


def make_schedule(optim: 'ConfigDict', num_steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the step.

    Args:
      optim: the section `optim` of the config.
      num_steps: number of steps of the run.

    Raises:
      UserError: the schedule is unknown.
    """
    warmup = round(optim.warmup * num_steps)
    peak = optim.learning_rate
    match optim.schedule:
        case 'cosine':
            return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, max(num_steps, warmup + 1))
        case 'constant':
            # After a warm-up of 0 steps, optax 0.2.8 would never leave the initial value.
            constant = optax.constant_schedule(peak)
            return optax.warmup_constant_schedule(0.0, peak, warmup) if warmup else constant
    raise UserError(f'config.optim.schedule: expected cosine or constant, found {optim.schedule!r}')


def make_optimizer(optim: 'ConfigDict', schedule: optax.Schedule) -> optax.GradientTransformation:
    """Returns the optimizer that the section `optim` of the config describes.

    Raises:
      UserError: the optimizer is unknown. Its `init` raises the errors of `find_frozen`.
    """

    def is_kernel(params):
        return jax.tree.map(lambda x: x.ndim > 1, params)

    match optim.name:
        case 'adamw':
            update = optax.adamw(schedule, weight_decay=optim.weight_decay, mask=is_kernel)
        case 'sgd':
            update = optax.chain(
                optax.add_decayed_weights(optim.weight_decay, is_kernel),
                optax.sgd(schedule, optim.momentum, nesterov=True),
            )
        case _:
            raise UserError(f'config.optim.name: expected adamw or sgd, found {optim.name!r}')
    if optim.frozen:
        mask = partial(find_frozen, pattern=optim.frozen)
        update = optax.chain(update, optax.masked(optax.set_to_zero(), mask))
    if not optim.clip_norm:
        return update
    return optax.chain(optax.clip_by_global_norm(optim.clip_norm), update)


def find_frozen(params: Any, pattern: str) -> Any:
    """Returns for each parameter whether it is frozen, in the shape of `params`.

    Args:
      params: the parameters of a network.
      pattern: regular expression that finds the frozen ones by their paths, 'backbone/Conv_0/kernel';
        '' for none.

    Raises:
      UserError: the pattern is no regular expression, or finds no parameter.
    """
    if not pattern:
        return jax.tree.map(lambda _: False, params)
    try:
        find = re.compile(pattern).search
    except re.error as error:
        raise UserError(f'config.optim.frozen: {pattern!r}: {error}') from error
    path_of = partial(jax.tree_util.keystr, simple=True, separator='/')
    frozen = jax.tree_util.tree_map_with_path(lambda path, _: bool(find(path_of(path))), params)
    if not any(jax.tree.leaves(frozen)):
        paths = [path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        raise UserError(
            f'config.optim.frozen: {pattern!r} finds no parameter, such as {", ".join(paths[:3])}'
        )
    return frozen
