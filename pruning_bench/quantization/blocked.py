"""Linear layers whose weights alone are codes: which of them runtimes have kernels for, and what those compute.

A kernel that reads blocks of codes may round its input too: onnxruntime's MatMulNBits gives each block of a row a
symmetric 8-bit scale of its own and sums products of integers. The plan says nothing of it; the runtime lists the rule.

    scale = max |x| / 127 over the block,   x' = round(x * 127 / max |x|) * scale
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pruning_bench.quantization.affine import fake_quantize
from pruning_bench.quantization.contract import Affine, Coding, Float8

BLOCKS = (16, 32, 64, 128, 256)  # columns of a block that kernels take
BLOCK = 32  # where all of a channel shares one scale
HIGHEST = 127


def block_of(weight: Tensor, coding: Coding) -> int | None:
    """Columns that a kernel for codes of this weight takes at once; None where there is no kernel.

    There is one for linear layers, symmetric integers, and scales per tensor, per channel or per block of `BLOCKS`
    columns that divides them.

    Example:
        >>> scale, zero = torch.ones(8), torch.zeros(8, dtype=torch.int32)
        >>> affine = Affine(scale, zero, -7, 7, 0)
        >>> block_of(torch.zeros(8, 50), affine), block_of(torch.zeros(8, 4, 3, 3), affine)
        (32, None)
    """
    if weight.dim() != 2 or isinstance(coding, Float8):
        return None
    if coding.low + coding.high != 0 or bool(coding.zero_point.any()):
        return None
    if coding.group is None:
        return BLOCK
    return coding.group if coding.group in BLOCKS and weight.shape[1] % coding.group == 0 else None


def round_blocks(x: Tensor, block: int) -> Tensor:
    """`x` [..., columns] with each block of its last dimension rounded to 8 bits; the last one may be shorter.

    A block whose largest value is so small that 127 over it is no float is rounded to zero.

    Example:
        >>> round_blocks(torch.tensor([127.0, 0.6, 254.0, 2.9]), 2)
        tensor([127.,   1., 254.,   2.])
    """
    whole = nn.functional.pad(x, (0, -x.shape[-1] % block))
    parts = whole.reshape(*x.shape[:-1], whole.shape[-1] // block, block)
    most = parts.abs().amax(-1, keepdim=True)
    factor = HIGHEST / most
    codes = (parts * torch.where(factor.isfinite(), factor, 0.0)).round()
    return (codes * (most / HIGHEST)).flatten(-2)[..., : x.shape[-1]]


class BlockedLinear(nn.Module):
    """y = x' W^T + b, W by its affine and x' by `round_blocks`."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, affine: Affine, bias: Tensor | None, block: int) -> None:
        super().__init__()
        self.block = block
        self.register_buffer("weight", fake_quantize(weight, affine))
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out], float32."""
        return nn.functional.linear(round_blocks(x, self.block), self.weight, self.bias)
