"""IR-50 in PyTorch with the parameter names of face.evoLVe, for comparison with our network."""

from torch import nn

# Width and number of units of each stage.
STAGES = [(64, 3), (128, 4), (256, 14), (512, 3)]


class Unit(nn.Module):
    """Two 3x3 convolutions with a shortcut; the second convolution has the stride."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.shortcut_layer = nn.MaxPool2d(1, stride)
        if inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut_layer = nn.Sequential(conv, nn.BatchNorm2d(outputs))
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False),
            nn.PReLU(outputs),
            nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x):
        """Maps [B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        return self.res_layer(x) + self.shortcut_layer(x)


class TorchIR(nn.Module):
    """IR-50 that returns the average of its last feature map instead of the output layer's embedding.

    Attributes:
      num_features: size F of the features.
    """

    def __init__(self):
        super().__init__()
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64)
        )
        units, inputs = [], 64
        for outputs, count in STAGES:
            for number in range(count):
                units.append(Unit(inputs, outputs, 2 if number == 0 else 1))
                inputs = outputs
        self.body = nn.Sequential(*units)
        self.num_features = inputs
        # Files for 112 px have this layer, which our reader must ignore.
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(512),
            nn.Dropout(),
            nn.Flatten(),
            nn.Linear(512 * 7 * 7, 512),
            nn.BatchNorm1d(512),
        )

    def forward(self, x):
        """Maps [B, 3, H, W] to features [B, F]."""
        return self.body(self.input_layer(x)).mean(dim=(2, 3))
