"""A small vision transformer for 32 x 32 images.

Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021, arXiv 2010.11929; patches of 4 x 4.
"""

from __future__ import annotations

from torch import nn

from pruning_bench.models.contract import reference_model

IMAGE, PATCH = 32, 4


@reference_model
def vit_tiny(*, num_classes: int = 10, in_channels: int = 1, dropout: float = 0.0) -> nn.Module:
    """torchvision's VisionTransformer with 6 layers of width 96 and 4 heads, random weights, 0.46 million parameters.

    Args:
        num_classes: width of the output.
        in_channels: 1 for grey, 3 for colour.
        dropout: share dropped after embeddings, attention and the MLPs in training, in [0, 1).
    Example:
        >>> import torch
        >>> vit_tiny()(torch.zeros(2, 1, 32, 32)).shape
        torch.Size([2, 10])
    """
    from torchvision.models import VisionTransformer  # type: ignore[import-untyped,unused-ignore]

    model = VisionTransformer(
        IMAGE, PATCH, num_layers=6, num_heads=4, hidden_dim=96, mlp_dim=192, dropout=dropout, num_classes=num_classes
    )
    model.conv_proj = nn.Conv2d(in_channels, model.hidden_dim, PATCH, PATCH)
    nn.init.trunc_normal_(model.conv_proj.weight, std=(in_channels * PATCH * PATCH) ** -0.5)
    nn.init.zeros_(model.conv_proj.bias)
    built: nn.Module = model
    return built
