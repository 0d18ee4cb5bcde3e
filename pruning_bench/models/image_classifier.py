"""A plain convolutional classifier of 32 x 32 images: four convolutions, no batch norm, no skips."""

from __future__ import annotations

import itertools

from torch import Tensor, nn

from pruning_bench.models.activations import make_activation
from pruning_bench.models.contract import reference_model


class ImageClassifier(nn.Module):
    """conv 64, pool, conv 64, pool, conv 128, pool, conv 128, flatten, linear 512, linear classes.

    Convolutions are 3 x 3 with padding 1 and a bias; an activation follows each layer but the last; the three pools
    halve 32 x 32 to 4 x 4.

    Shapes: [N, in_channels, 32, 32] -> [N, num_classes] logits.
    """

    def __init__(self, num_classes: int, in_channels: int, activation: str, dropout: float) -> None:
        super().__init__()
        widths = (in_channels, 64, 64, 128, 128)
        layers: list[nn.Module] = []
        for index, (before, after) in enumerate(itertools.pairwise(widths)):
            layers += [nn.Conv2d(before, after, 3, padding=1), make_activation(activation)]
            if index < 3:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.flatten = nn.Flatten()
        self.hidden = nn.Linear(128 * 4 * 4, 512)
        self.activation = make_activation(activation)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(512, num_classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear) and layer is not self.classifier:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a batch of images."""
        hidden = self.activation(self.hidden(self.flatten(self.features(images))))
        logits: Tensor = self.classifier(self.dropout(hidden))
        return logits


@reference_model
def image_classifier(
    *, num_classes: int = 10, in_channels: int = 1, activation: str = "relu", dropout: float = 0.25
) -> nn.Module:
    """The plain classifier with random weights, 1.3 million parameters.

    Args:
        num_classes: width of the output.
        in_channels: 1 for grey, 3 for colour.
        activation: one of `models.activations.ACTIVATIONS`.
        dropout: share of the 512 hidden units dropped in training, in [0, 1).
    Example:
        >>> import torch
        >>> image_classifier()(torch.zeros(2, 1, 32, 32)).shape
        torch.Size([2, 10])
    """
    return ImageClassifier(num_classes, in_channels, activation, dropout)
