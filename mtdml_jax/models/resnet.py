"""ResNet-10, -18, -34 and -50 backbones."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

# Stem -> stride of its convolution.
STEMS = {'imagenet': 2, 'small': 2, 'cifar': 1}


class Conv(nn.Conv):
    """`flax.linen.Conv` whose input is computed once: XLA for CPUs would repeat what precedes it.

    For the gradient of the kernel it lays the input out anew, and fuses the BatchNorm, ReLU and
    shortcut that made it into that, where they run badly.
    """

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Applies the convolution."""
        if jax.default_backend() == 'cpu':
            inputs = jax.lax.optimization_barrier(inputs)
        return super().__call__(inputs)


_conv = partial(Conv, use_bias=False, kernel_init=nn.initializers.he_normal(), padding=1)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut: [B, H, W, C] -> [B, H/strides, W/strides, features]."""

    features: int
    strides: int
    norm: Callable[..., nn.Module]
    dtype: Any
    expansion: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the block."""
        conv = partial(_conv, self.features, (3, 3), dtype=self.dtype)
        y = nn.relu(self.norm()(conv(strides=self.strides)(x)))
        y = self.norm()(conv()(y))
        return nn.relu(y + _shortcut(self, x, y.shape))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with a shortcut: [B, H, W, C] -> [..., 4 * features].

    The 3x3 has the strides, as in torchvision; in He et al. and Caffe's networks the first 1x1 has them.
    """

    features: int
    strides: int
    norm: Callable[..., nn.Module]
    dtype: Any
    expansion: int = 4

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the block."""
        conv = partial(_conv, dtype=self.dtype)
        y = nn.relu(self.norm()(conv(self.features, (1, 1), padding=0)(x)))
        y = nn.relu(self.norm()(conv(self.features, (3, 3), strides=self.strides)(y)))
        y = conv(self.expansion * self.features, (1, 1), padding=0)(y)
        y = self.norm()(y)
        return nn.relu(y + _shortcut(self, x, y.shape))


def _shortcut(block, x, shape):
    if x.shape == shape:
        return x
    x = _conv(shape[-1], (1, 1), strides=block.strides, padding=0, dtype=block.dtype)(x)
    return block.norm()(x)


# Name -> (block, number of blocks in each of the four stages).
RESNETS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    'resnet10': (BasicBlock, (1, 1, 1, 1)),
    'resnet18': (BasicBlock, (2, 2, 2, 2)),
    'resnet34': (BasicBlock, (3, 4, 6, 3)),
    'resnet50': (Bottleneck, (3, 4, 6, 3)),
}


class ResNet(nn.Module):
    """Residual network without its classifier.

    Attributes:
      depth: 'resnet18', 'resnet34' or 'resnet50'; 'resnet10', which is not in the paper, has a block a
        stage, for first trials and tests.
      width_factor: multiplies the 64, 128, 256 and 512 channels of the four stages.
      stem: 'imagenet' (7x7 stride 2, max-pool: for 224 px) or 'small' (3x3 stride 2, no max-pool: for
        up to 64 px; with the ImageNet stem such images would end on 2x2 maps, on which convolutions
        run at a fiftieth of their speed on a CPU), or 'cifar' (3x3 stride 1: as many pixels in each
        stage as 'small' has at twice the side).
      dtype: type of the computation; parameters are float32.
      axis_name: mapped axis over whose devices BatchNorm takes its batch statistics.

    References:
      He et al., "Deep residual learning for image recognition", CVPR 2016. The last BatchNorm of a
      block starts at scale 1, as there: on small grey faces, blocks that start as their shortcuts
      (scale 0) learned half as fast (experiments/README.md).
    """

    depth: str = 'resnet18'
    width_factor: float = 1.0
    stem: str = 'imagenet'
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images [B, H, W, any number of channels] -> features [B, F], averaged over the map."""
        norm = partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=0.9,
            dtype=self.dtype,
            axis_name=self.axis_name,
        )
        block, stage_sizes = RESNETS[self.depth]
        width = max(1, round(64 * self.width_factor))
        x = images.astype(self.dtype)
        if self.stem == 'imagenet':
            x = _conv(width, (7, 7), strides=2, padding=3, dtype=self.dtype)(x)
            # After a ReLU zeros pad as nothing does; jax2onnx knows no padding of a max-pool.
            x = jnp.pad(nn.relu(norm()(x)), ((0, 0), (1, 1), (1, 1), (0, 0)))
            x = nn.max_pool(x, window_shape=(3, 3), strides=(2, 2))
        else:
            strides = STEMS[self.stem]
            x = nn.relu(norm()(_conv(width, (3, 3), strides=strides, dtype=self.dtype)(x)))
        for stage, num_blocks in enumerate(stage_sizes):
            for number in range(num_blocks):
                strides = 2 if stage > 0 and number == 0 else 1
                x = block(width * 2**stage, strides, norm, self.dtype)(x)
        return jnp.mean(x.astype(jnp.float32), axis=(1, 2))
