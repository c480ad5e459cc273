"""MobileNetV3-small in PyTorch with torchvision's parameter names, for comparison with our network."""

import torch
from torch import nn

# Kernel size, inner width, output width, squeeze and excite, activation, stride.
BLOCKS = [
    (3, 16, 16, True, nn.ReLU, 2),
    (3, 72, 24, False, nn.ReLU, 2),
    (3, 88, 24, False, nn.ReLU, 1),
    (5, 96, 40, True, nn.Hardswish, 2),
    (5, 240, 40, True, nn.Hardswish, 1),
    (5, 240, 40, True, nn.Hardswish, 1),
    (5, 120, 48, True, nn.Hardswish, 1),
    (5, 144, 48, True, nn.Hardswish, 1),
    (5, 288, 96, True, nn.Hardswish, 2),
    (5, 576, 96, True, nn.Hardswish, 1),
    (5, 576, 96, True, nn.Hardswish, 1),
]


def layer(inputs, outputs, size, activation=None, stride=1, groups=1):
    """Returns a convolution with BatchNorm and activation."""
    conv = nn.Conv2d(
        inputs, outputs, size, stride, padding=(size - 1) // 2, groups=groups, bias=False
    )
    norm = nn.BatchNorm2d(outputs, eps=0.001, momentum=0.01)
    return nn.Sequential(conv, norm, *([activation()] if activation else []))


class SqueezeExcite(nn.Module):
    """Multiplies each channel by a weight that depends on the means of all channels."""

    def __init__(self, channels):
        super().__init__()
        # A quarter of the channels, rounded to a multiple of 8. Rounding removes less than a tenth of
        # each width above.
        hidden = max(8, (channels // 4 + 4) // 8 * 8)
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x):
        """Maps [B, C, H, W] to the same shape."""
        hidden = torch.relu(self.fc1(nn.functional.adaptive_avg_pool2d(x, 1)))
        return x * nn.functional.hardsigmoid(self.fc2(hidden))


class Block(nn.Module):
    """Expansion, depthwise convolution, squeeze and excite, projection."""

    def __init__(self, inputs, size, inside, outputs, squeezes, activation, stride):
        super().__init__()
        layers = [] if inside == inputs else [layer(inputs, inside, 1, activation)]
        layers.append(layer(inside, inside, size, activation, stride, groups=inside))
        if squeezes:
            layers.append(SqueezeExcite(inside))
        self.block = nn.Sequential(*layers, layer(inside, outputs, 1))
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x):
        """Maps [B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        return x + self.block(x) if self.adds else self.block(x)


class TorchMobileNet(nn.Module):
    """MobileNetV3-small without its classifier.

    Attributes:
      num_features: size F of the features.
    """

    def __init__(self):
        super().__init__()
        width, layers = 16, [layer(3, 16, 3, nn.Hardswish, stride=2)]
        for size, inside, outputs, *options in BLOCKS:
            layers.append(Block(width, size, inside, outputs, *options))
            width = outputs
        self.num_features = 6 * width
        self.features = nn.Sequential(*layers, layer(width, 6 * width, 1, nn.Hardswish))

    def forward(self, x):
        """Maps [B, 3, H, W] to features [B, F], averaged over the feature map."""
        return self.features(x).mean(dim=(2, 3))
