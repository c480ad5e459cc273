"""ResNets in PyTorch with torchvision's parameter names, for comparison with our networks."""

import torch
from torch import nn

# Kernel sizes of a block, output width divided by inner width, number of blocks of each stage.
NETWORKS = {
    'resnet18': ((3, 3), 1, (2, 2, 2, 2)),
    'resnet34': ((3, 3), 1, (3, 4, 6, 3)),
    'resnet50': ((1, 3, 1), 4, (3, 4, 6, 3)),
}
# Kernel size and stride of the first convolution for each value of config.model.stem.
STEMS = {'imagenet': (7, 2), 'small': (3, 2), 'cifar': (3, 1)}


class Block(nn.Module):
    """Convolutions of these sizes with a shortcut; the first one of size 3 has the stride."""

    def __init__(self, sizes, inputs, width, outputs, stride):
        super().__init__()
        self.sizes = sizes
        widths = [inputs] + [width] * (len(sizes) - 1) + [outputs]
        for i, size in enumerate(sizes):
            options = {'stride': stride if i == sizes.index(3) else 1, 'padding': size // 2}
            conv = nn.Conv2d(widths[i], widths[i + 1], size, bias=False, **options)
            self.add_module(f'conv{i + 1}', conv)
            self.add_module(f'bn{i + 1}', nn.BatchNorm2d(widths[i + 1]))
        self.downsample = None
        if stride > 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x):
        """Maps [B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        y = x
        for i in range(len(self.sizes)):
            y = self.get_submodule(f'bn{i + 1}')(self.get_submodule(f'conv{i + 1}')(y))
            y = torch.relu(y) if i + 1 < len(self.sizes) else y
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class TorchResNet(nn.Module):
    """A ResNet without its classifier.

    Attributes:
      num_features: size F of the features.
    """

    def __init__(self, depth, *, width=64, stem='imagenet', channels=3):
        super().__init__()
        sizes, expansion, stage_sizes = NETWORKS[depth]
        size, stride = STEMS[stem]
        self.conv1 = nn.Conv2d(channels, width, size, stride=stride, padding=size // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.pools = stem == 'imagenet'
        inputs = width
        for stage, num_blocks in enumerate(stage_sizes):
            features, blocks = width * 2**stage, []
            for i in range(num_blocks):
                stride = 2 if stage > 0 and i == 0 else 1
                blocks.append(Block(sizes, inputs, features, expansion * features, stride))
                inputs = expansion * features
            self.add_module(f'layer{stage + 1}', nn.Sequential(*blocks))
        self.num_features = inputs

    def forward(self, x):
        """Maps [B, channels, H, W] to features [B, F], averaged over the feature map."""
        x = torch.relu(self.bn1(self.conv1(x)))
        if self.pools:
            x = nn.functional.max_pool2d(x, 3, stride=2, padding=1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean(dim=(2, 3))
