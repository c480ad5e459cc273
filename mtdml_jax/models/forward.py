"""From images to unit slices and class scores: the one definition, by which runs are evaluated too."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from mtdml_jax.loss.slicing import merge_slices, split_slices
from mtdml_jax.models import Network


class Seen(NamedTuple):
    """What a network sees in a batch of images.

    Attributes:
      slices: unit slices, float32 [B, S, D].
      logits: class scores of each slice, float32 [B, S, C]; their mean over slices is the answer.
    """

    slices: jax.Array
    logits: jax.Array


def make_look(network: Network, flip: bool) -> Callable[[Any, jax.Array], Seen]:
    """A function (variables, images [B, H, W, channels]) -> `Seen`; pure, not compiled yet.

    Args:
      network: the network.
      flip: whether an image and its mirror image are averaged.
    """

    def look_once(variables, images):
        outputs: Any = network.apply(variables, images, train=False)
        return Seen(split_slices(outputs.embedding, network.num_slices), outputs.logits)

    def look(variables, images):
        seen = look_once(variables, images)
        if not flip:
            return seen
        mirrored = look_once(variables, images[:, :, ::-1])
        mean = merge_slices((seen.slices + mirrored.slices) / 2)
        # The mean of two unit slices is shorter: it is made a unit slice again.
        slices = split_slices(mean, network.num_slices)
        return Seen(slices, (seen.logits + mirrored.logits) / 2)

    return look
