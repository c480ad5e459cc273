"""ResNet-10, -18, -34 and -50 backbones."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mtdml_jax.host.errors import check_choice
from mtdml_jax.models.layers import conv, make_norm, max_pool

# Stem -> stride of the first convolution.
STEMS = {'imagenet': 2, 'small': 2, 'cifar': 1}


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
        make = partial(conv, self.features, (3, 3), dtype=self.dtype)
        y = nn.relu(self.norm()(make(strides=self.strides)(x)))
        y = self.norm()(make()(y))
        return nn.relu(y + _shortcut(self, x, y.shape))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with a shortcut: [B, H, W, C] -> [..., 4 * features].

    The 3x3 convolution has the strides, as in torchvision. In He et al. and in Caffe's networks the
    first 1x1 convolution has them.
    """

    features: int
    strides: int
    norm: Callable[..., nn.Module]
    dtype: Any
    expansion: int = 4

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the block."""
        make = partial(conv, dtype=self.dtype)
        y = nn.relu(self.norm()(make(self.features, (1, 1), padding=0)(x)))
        y = nn.relu(self.norm()(make(self.features, (3, 3), strides=self.strides)(y)))
        y = make(self.expansion * self.features, (1, 1), padding=0)(y)
        y = self.norm()(y)
        return nn.relu(y + _shortcut(self, x, y.shape))


def _shortcut(block, x, shape):
    if x.shape == shape:
        return x
    x = conv(shape[-1], (1, 1), strides=block.strides, padding=0, dtype=block.dtype)(x)
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
      depth: 'resnet18', 'resnet34' or 'resnet50'; or 'resnet10', which is not in the paper and has one
        block per stage, for first trials and tests.
      width_factor: multiplies the 64, 128, 256 and 512 channels of the four stages.
      stem: 'imagenet' has a 7x7 convolution with stride 2 and a max-pool, for 224 px. 'small' has a 3x3
        convolution with stride 2 and no max-pool, for up to 64 px. With the ImageNet stem such images
        would end on 2x2 maps, on which convolutions run at a fiftieth of their speed on a CPU. 'cifar'
        has a 3x3 convolution with stride 1: each stage has as many pixels as 'small' has for images of
        twice the side.
      dtype: type of the computation; parameters are float32.
      axis_name: mapped axis over whose devices BatchNorm takes its batch statistics.

    References:
      He et al., "Deep residual learning for image recognition", CVPR 2016. The last BatchNorm of a
      block starts at scale 1, as in the paper. With scale 0 a block starts as its shortcut; such
      blocks learned half as fast on small grey faces (docs/results/early_steps.md).
    """

    depth: str = 'resnet18'
    width_factor: float = 1.0
    stem: str = 'imagenet'
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images [B, H, W, any number of channels] -> features [B, F], averaged over the map."""
        norm = make_norm(train, self.dtype, self.axis_name)
        block, stage_sizes = RESNETS[self.depth]
        width = max(1, round(64 * self.width_factor))
        x = images.astype(self.dtype)
        if self.stem == 'imagenet':
            x = conv(width, (7, 7), strides=2, padding=3, dtype=self.dtype)(x)
            # Zeros never win a max-pool after a ReLU, so they pad it correctly. The padding is a step of
            # its own because jax2onnx drops the padding of a max-pool.
            x = jnp.pad(nn.relu(norm()(x)), ((0, 0), (1, 1), (1, 1), (0, 0)))
            x = max_pool(x)
        else:
            strides = STEMS[self.stem]
            x = nn.relu(norm()(conv(width, (3, 3), strides=strides, dtype=self.dtype)(x)))
        for stage, num_blocks in enumerate(stage_sizes):
            for number in range(num_blocks):
                strides = 2 if stage > 0 and number == 0 else 1
                x = block(width * 2**stage, strides, norm, self.dtype)(x)
        return jnp.mean(x.astype(jnp.float32), axis=(1, 2))


def make_resnet(model: Any, *, dtype: Any, axis_name: str | None) -> ResNet:
    """See `Backbone`."""
    check_choice('model.stem', model.stem, STEMS)
    return ResNet(model.backbone, model.width_factor, model.stem, dtype, axis_name)


def torch_names(model: Any) -> dict[str, tuple[str, ...]]:
    """Returns torchvision's names; see `Backbone`."""
    block, stage_sizes = RESNETS[model.backbone]
    num_convs = 3 if block is Bottleneck else 2
    layers: list[tuple[str, str, tuple[str, ...], int]] = [('conv1', 'bn1', (), 0)]
    numbers = iter(range(sum(stage_sizes)))
    for stage, num_blocks in enumerate(stage_sizes, start=1):
        for index in range(num_blocks):
            theirs, module = f'layer{stage}.{index}.', (f'{block.__name__}_{next(numbers)}',)
            layers += [
                (f'{theirs}conv{i + 1}', f'{theirs}bn{i + 1}', module, i) for i in range(num_convs)
            ]
            if index == 0 and (stage > 1 or block.expansion > 1):
                shortcut = f'{theirs}downsample.'
                layers.append((f'{shortcut}0', f'{shortcut}1', module, num_convs))
    places: dict[str, tuple[str, ...]] = {}
    for kernel, norm, ours, i in layers:
        places |= {
            f'{kernel}.weight': ('params', *ours, f'Conv_{i}', 'kernel'),
            f'{norm}.weight': ('params', *ours, f'BatchNorm_{i}', 'scale'),
            f'{norm}.bias': ('params', *ours, f'BatchNorm_{i}', 'bias'),
            f'{norm}.running_mean': ('batch_stats', *ours, f'BatchNorm_{i}', 'mean'),
            f'{norm}.running_var': ('batch_stats', *ours, f'BatchNorm_{i}', 'var'),
        }
    return places


def advise(found: tuple[int, ...], expected: tuple[int, ...]) -> list[str]:
    """See `Backbone`."""
    settings = []
    (width, _, side, _), stems = found, {7: 'imagenet', 3: 'small'}
    if side != expected[2] and side in stems:
        settings.append(f'config.model.stem={stems[side]}')
    if width != expected[0]:
        settings.append(f'config.model.width_factor={width / 64}')
    return settings
