"""8-bit floats in eager: values rounded to them in float32, around operators in float32.

A product of two codes is exact there, and so are sums of few; kernels of GPUs add in other orders and, some of them,
with fewer bits. What is rounded, and by which scale, is the same.
"""

from __future__ import annotations

from torch import Tensor, nn

from pruning_bench.quantization.affine import fake_quantize
from pruning_bench.quantization.contract import Float8


class FakeFloat8(nn.Module):
    """x -> the nearest code times its scale, see `contract.Float8`; the scale is a buffer that moves with the model.

    Example:
        >>> import torch
        >>> FakeFloat8(Float8(torch.tensor(0.5), "e4m3"))(torch.tensor([0.3, 17.2, 1e9]))
        tensor([  0.3125,  18.0000, 224.0000])
    """

    scale: Tensor

    def __init__(self, coding: Float8) -> None:
        super().__init__()
        self.format = coding.format
        self.register_buffer("scale", coding.scale.clone())

    def forward(self, x: Tensor) -> Tensor:
        """float32, same shape."""
        return fake_quantize(x, Float8(self.scale, self.format))
