"""LeNet-5 for 32 x 32 images.

LeCun et al., Gradient-Based Learning Applied to Document Recognition, Proceedings of the IEEE 1998, section II.B; with
max pooling, full connections between feature maps, and a linear output, as it is used today.
"""

from __future__ import annotations

from torch import Tensor, nn

from pruning_bench.models.activations import make_activation
from pruning_bench.models.contract import reference_model


class LeNet5(nn.Module):
    """conv 6, pool, conv 16, pool, flatten, linear 120, linear 84, linear classes; convolutions 5 x 5, unpadded.

    Shapes: [N, in_channels, 32, 32] -> [N, num_classes] logits.
    """

    def __init__(self, num_classes: int, in_channels: int, activation: str) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 6, 5),
            make_activation(activation),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            make_activation(activation),
            nn.MaxPool2d(2),
        )
        self.flatten = nn.Flatten()
        self.hidden = nn.Sequential(
            nn.Linear(16 * 5 * 5, 120), make_activation(activation), nn.Linear(120, 84), make_activation(activation)
        )
        self.classifier = nn.Linear(84, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a batch of images."""
        logits: Tensor = self.classifier(self.hidden(self.flatten(self.features(images))))
        return logits


@reference_model
def lenet5(*, num_classes: int = 10, in_channels: int = 1, activation: str = "relu") -> nn.Module:
    """LeNet-5 with random weights, 62 thousand parameters.

    Args:
        num_classes: width of the output.
        in_channels: 1 for grey, 3 for colour.
        activation: one of `models.activations.ACTIVATIONS`.
    Example:
        >>> import torch
        >>> lenet5()(torch.zeros(2, 1, 32, 32)).shape
        torch.Size([2, 10])
    """
    return LeNet5(num_classes, in_channels, activation)
