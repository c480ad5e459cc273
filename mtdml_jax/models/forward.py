"""The forward pass from images to unit slices and class scores; training's evaluation uses it too."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from mtdml_jax.loss.slicing import merge_slices, split_slices
from mtdml_jax.models.network import Network


class SliceOutputs(NamedTuple):
    """The outputs of a forward pass.

    Attributes:
      slices: unit slices, float32 [B, S, D].
      logits: class scores of each slice, float32 [B, S, C]; the model predicts by their mean.
    """

    slices: jax.Array
    logits: jax.Array


def make_forward(network: Network, flip: bool) -> Callable[[Any, jax.Array], SliceOutputs]:
    """Makes a pure, uncompiled function (variables, images [B, H, W, channels]) -> `SliceOutputs`.

    Args:
      network: the network.
      flip: whether to average the outputs of an image and its mirror image.
    """

    def forward_once(variables, images):
        outputs: Any = network.apply(variables, images, train=False)
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
