"""MobileNetV2 with strides for 32 x 32 images.

Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018, arXiv 1801.04381, table 2. The first
convolution does not reduce the image, nor does the third stage from the end, so that the last one sees 4 x 4 points.
"""

from __future__ import annotations

from torch import nn

from pruning_bench.models.contract import reference_model

STAGES = (  # expansion, channels, blocks, stride of the first block; from 32 x 32 down to 4 x 4
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 1),
    (6, 320, 1, 1),
)


@reference_model
def mobilenet_v2(*, num_classes: int = 10, in_channels: int = 1, width: float = 0.5, dropout: float = 0.2) -> nn.Module:
    """torchvision's MobileNetV2, small-image strides and random weights; 0.7 million parameters at half width.

    Args:
        num_classes: width of the output.
        in_channels: 1 for grey, 3 for colour.
        width: multiplier of all channel counts.
        dropout: share of the last features dropped in training, in [0, 1).
    Example:
        >>> import torch
        >>> mobilenet_v2(width=0.25)(torch.zeros(2, 1, 32, 32)).shape
        torch.Size([2, 10])
    """
    from torchvision.models import MobileNetV2  # type: ignore[import-untyped,unused-ignore]

    model = MobileNetV2(num_classes, width, [list(stage) for stage in STAGES], dropout=dropout)
    stem = model.features[0]
    stem[0] = nn.Conv2d(in_channels, stem[0].out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(stem[0].weight, mode="fan_out")
    built: nn.Module = model
    return built
