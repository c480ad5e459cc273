"""The network: a backbone, a sliced embedding, and a classifier on each slice."""

from collections.abc import Collection
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from mtdml_jax.host.errors import UserError, check_choice
from mtdml_jax.loss.slicing import split_slices
from mtdml_jax.models.backbones import BACKBONES

if TYPE_CHECKING:  # Neither is needed to make a network.
    from ml_collections import ConfigDict

DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}
# Key of the section `model` of the config -> its values.
CHOICES: dict[str, Collection[object]] = {
    'backbone': BACKBONES,
    'embedding_norm': ('none', 'batch'),
    'dtype': DTYPES,
}


class NetworkSettings(NamedTuple):
    """The settings that `make_network` needs, from the section `model` of a config; see there."""

    backbone: str
    width_factor: float
    stem: str
    embedding_size: int
    num_slices: int
    embedding_norm: str
    logit_scale: float
    learn_logit_scale: bool
    dtype: str


class Outputs(NamedTuple):
    """The outputs of the network for a batch.

    Attributes:
      embedding: output of the last layer, not normalised, float32 [B, E].
      logits: class scores of each slice, float32 [B, S, C]; the model predicts by their mean.
    """

    embedding: jax.Array
    logits: jax.Array


class Network(nn.Module):
    """Backbone, embedding of S slices, and a cosine classifier on each slice.

    A classifier uses the normalised slice, like the metric loss; its logits are
    scale * cos(slice, class vector). Separate classifiers keep every slice from shrinking to a point,
    because a single classifier on all slices would need only one slice.

    Attributes:
      backbone: module from images to features [B, F].
      embedding_size: size E of the embedding.
      num_slices: number of slices S; it must divide E.
      num_classes: number of classes C.
      scale: (initial) scale of the logits.
      learn_scale: whether the scale is a learned parameter; otherwise it is fixed.
      norm: 'none', or 'batch' for a BatchNorm without scale and bias, which standardises each component
        of the embedding over the batch before the slices are normalised. Slices around the origin
        cannot all shrink to one point, which is how triplet losses collapse.
      axis_name: mapped axis over whose devices this BatchNorm takes its batch statistics.

    References:
      Wang et al., "NormFace: L2 hypersphere embedding for face verification", ACM MM 2017. BatchNorm
      on an embedding: Luo et al., "Bag of tricks and a strong baseline for deep person
      re-identification", CVPRW 2019, between triplet loss and classifier. Parts of an embedding as
      separate learners: Opitz et al., "BIER: boosting independent embeddings robustly", ICCV
      2017.
    """

    backbone: nn.Module
    embedding_size: int
    num_slices: int
    num_classes: int
    scale: float
    learn_scale: bool
    norm: str = 'none'
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> Outputs:
        """Maps images [B, H, W, channels] to `Outputs`; `train` makes BatchNorm use their statistics."""
        features = self.backbone(images, train=train)
        embedding = nn.Dense(self.embedding_size, name='embedding')(features)
        if self.norm == 'batch':
            embedding = nn.BatchNorm(
                use_running_average=not train,
                momentum=0.9,
                use_bias=False,
                use_scale=False,
                axis_name=self.axis_name,
            )(embedding)
        slices = split_slices(embedding, self.num_slices)
        kernel = self.param(
            'classes', nn.initializers.normal(1.0), (*slices.shape[1:], self.num_classes)
        )
        kernel /= jnp.linalg.norm(kernel, axis=1, keepdims=True)
        cosine = jnp.einsum('bsd,sdc->bsc', slices, kernel)
        scale: float | jax.Array = self.scale
        if self.learn_scale:
            scale = self.param('scale', nn.initializers.constant(self.scale), ())
        return Outputs(embedding, scale * cosine)


def make_network(
    model: 'ConfigDict | NetworkSettings', num_classes: int, axis_name: str | None = None
) -> Network:
    """Makes the network that the section `model` of the config describes.

    Args:
      model: the section `model`.
      num_classes: number of classes C.
      axis_name: mapped axis over which BatchNorm averages in training.

    Raises:
      UserError: a backbone, stem, norm or dtype does not exist, or the sizes do not fit.
    """
    for key, known in CHOICES.items():
        check_choice(f'model.{key}', getattr(model, key), known)
    if model.num_slices < 1 or model.embedding_size % model.num_slices:
        raise UserError(
            f'config.model.embedding_size ({model.embedding_size}) must be divisible by '
            f'config.model.num_slices ({model.num_slices})'
        )
    make = BACKBONES[model.backbone].make
    return Network(
        backbone=make(model, dtype=DTYPES[model.dtype], axis_name=axis_name),
        embedding_size=model.embedding_size,
        num_slices=model.num_slices,
        num_classes=num_classes,
        scale=model.logit_scale,
        learn_scale=model.learn_logit_scale,
        norm=model.embedding_norm,
        axis_name=axis_name,
    )
