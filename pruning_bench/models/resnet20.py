"""ResNet-20 for 32 x 32 images.

He et al., Deep Residual Learning for Image Recognition, CVPR 2016, arXiv 1512.03385, section 4.2; with the 1 x 1
projection shortcuts of the paper's option B where the width changes.
"""

from __future__ import annotations

from torch import Tensor, nn

from pruning_bench.models.activations import make_activation
from pruning_bench.models.contract import reference_model

WIDTHS = (16, 32, 64)
BLOCKS = 3


class BasicBlock(nn.Module):
    """activation(bn(conv(activation(bn(conv(x))))) + shortcut(x)), both convolutions 3 x 3.

    Shapes: [N, before, H, W] -> [N, after, H / stride, W / stride].
    """

    def __init__(self, before: int, after: int, stride: int, activation: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.act1 = make_activation(activation)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.act2 = make_activation(activation)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both branches, activated."""
        inner = self.act1(self.bn1(self.conv1(x)))
        total: Tensor = self.act2(self.bn2(self.conv2(inner)) + self.shortcut(x))
        return total


class ResNet20(nn.Module):
    """conv 16, three blocks each of widths 16, 32, 64, global average pool, linear.

    Shapes: [N, in_channels, 32, 32] -> [N, num_classes] logits; other sizes work as well.
    """

    def __init__(self, num_classes: int, in_channels: int, activation: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, WIDTHS[0], 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(WIDTHS[0])
        self.act = make_activation(activation)
        stages, before = [], WIDTHS[0]
        for stage, width in enumerate(WIDTHS):
            first = BasicBlock(before, width, 1 if stage == 0 else 2, activation)
            rest = [BasicBlock(width, width, 1, activation) for _ in range(BLOCKS - 1)]
            stages.append(nn.Sequential(first, *rest))
            before = width
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(before, num_classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a batch of images."""
        features = self.stages(self.act(self.bn(self.conv(images))))
        logits: Tensor = self.classifier(self.flatten(self.pool(features)))
        return logits


@reference_model
def resnet20(*, num_classes: int = 10, in_channels: int = 1, activation: str = "relu") -> nn.Module:
    """ResNet-20 with random weights, 0.27 million parameters.

    Args:
        num_classes: width of the output.
        in_channels: 1 for grey, 3 for colour.
        activation: one of `models.activations.ACTIVATIONS`.
    Example:
        >>> import torch
        >>> resnet20()(torch.zeros(2, 1, 32, 32)).shape
        torch.Size([2, 10])
    """
    return ResNet20(num_classes, in_channels, activation)
