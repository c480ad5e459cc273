"""The forward pass from images to unit slices and class scores; training's evaluation uses it too."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtdml_jax.loss.slicing import merge_slices, split_slices
from mtdml_jax.models.fold import fold_norms
from mtdml_jax.models.model_file import ModelData
from mtdml_jax.models.network import Network


class SliceOutputs(NamedTuple):
    """The outputs of a forward pass.

    Attributes:
      slices: unit slices, float32 [B, S, D].
      logits: class scores of each slice, float32 [B, S, C]; the model predicts by their mean.
    """

    slices: jax.Array
    logits: jax.Array


# Most parameters that become constants of the compiled programs, of which there is one for each size of
# a batch; so they take at most 16 MB in each.
MOST_CONSTANTS = 2**22
# A pure, uncompiled function (variables, images [B, H, W, channels]) -> `SliceOutputs`.
Forward = Callable[[Any, jax.Array], SliceOutputs]


def make_forward(network: Network, flip: bool, apply: Callable | None = None) -> Forward:
    """Makes the forward pass of a network.

    Args:
      network: the network.
      flip: whether to average the outputs of an image and its mirror image.
      apply: computes the outputs of variables and images; the default is `network.apply`.
    """
    apply = apply or partial(network.apply, train=False)

    def forward_once(variables, images):
        outputs: Any = apply(variables, images)
        return SliceOutputs(split_slices(outputs.embedding, network.num_slices), outputs.logits)

    def forward(variables, images):
        outputs = forward_once(variables, images)
        if not flip:
            return outputs
        mirrored = forward_once(variables, images[:, :, ::-1])
        mean = merge_slices((outputs.slices + mirrored.slices) / 2)
        # The mean of two unit slices is shorter than 1, so it becomes a unit slice again.
        slices = split_slices(mean, network.num_slices)
        return SliceOutputs(slices, (outputs.logits + mirrored.logits) / 2)

    return forward


def make_folded_forward(data: ModelData) -> tuple[Forward, Any]:
    """Makes the forward pass of a model file with folded BatchNorm, and its variables, on the device."""
    network = data.network
    images = jax.ShapeDtypeStruct((1, *data.settings.preprocessing.shape), jnp.float32)
    apply, variables = fold_norms(network, data.variables, images)
    return make_forward(network, data.settings.flip, apply), jax.device_put(variables)


def compile_forward(data: ModelData) -> Callable[[jax.typing.ArrayLike], SliceOutputs]:
    """Returns the compiled function images [B, H, W, channels] -> `SliceOutputs` of a model file.

    XLA for CPUs prepares weights that are constants once, and weights that are arguments in every call.
    With constants one face takes three quarters of the time (models/fer2013.safetensors, jax 0.10).
    """
    forward, variables = make_folded_forward(data)
    count = sum(x.size for x in jax.tree.leaves(variables))
    if jax.default_backend() == 'cpu' and count <= MOST_CONSTANTS:
        return jax.jit(partial(forward, variables))
    return partial(jax.jit(forward), variables)
