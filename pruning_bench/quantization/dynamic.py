"""A linear layer whose input is quantized at run time, each tensor by its own range; simulated exactly.

    scale = (max(x, 0) - min(x, 0)) / 255 (1 where that is 0), zero_point = clamp(round(0 - min(x, 0) / scale))
    code  = clamp(round(x / scale) + zero_point), in 0..255
    y     = sum((code - zero_point) * weight code) * (scale * weight scale) + bias

All in float32 but the sum, which is exact; round half to even. These are the words of ONNX's DynamicQuantizeLinear.
A tensor is a whole batch: what stands beside an example in its batch has a say in how it is rounded. Where one
dimension of it counts the examples, each can be given the range that it has alone: many run at once as if one by one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pruning_bench.graphs import Examples
from pruning_bench.quantization.affine import quantize
from pruning_bench.quantization.contract import Affine

HIGHEST = 255


def dynamic_affine(x: Tensor, examples: Examples | None = None) -> tuple[Tensor, Tensor]:
    """Scale and zero point of a tensor by its own range, widened to hold zero; float32, both of shape [].

    Args:
        examples: where they lie: a range for each, of a shape that broadcasts against x.

    Example:
        >>> scale, zero_point = dynamic_affine(torch.tensor([-1.0, 1.55]))
        >>> round(float(scale), 6), float(zero_point)
        (0.01, 100.0)
    """
    if examples is not None:
        return _of_each(x, examples)
    low, high = x.amin().clamp(max=0.0), x.amax().clamp(min=0.0)
    return _affine(low, high)


def _of_each(x: Tensor, examples: Examples) -> tuple[Tensor, Tensor]:
    sizes, dim = (examples.outer, -1, examples.inner), examples.dim
    wide: Tensor = x.unflatten(dim, sizes)  # type: ignore[no-untyped-call]
    others = tuple(d for d in range(wide.dim()) if d != dim + 1)
    found = _affine(wide.amin(others, True).clamp(max=0.0), wide.amax(others, True).clamp(min=0.0))
    shape = [1] * dim + [*sizes] + [1] * (x.dim() - dim - 1)
    scale, zero_point = (part.expand(shape).flatten(dim, dim + 2) for part in found)
    return scale, zero_point


def _affine(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    scale = (high - low) / HIGHEST
    scale = torch.where(scale > 0, scale, 1.0)
    return scale, (0.0 - low / scale).clamp(0, HIGHEST).round()


class DynamicLinear(nn.Module):
    """y = x W^T + b on codes, see the module's text; W by its affine.

    Args:
        examples: where those lie in x that have ranges of their own; None: one range for all.
    """

    codes: Tensor
    step: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, affine: Affine, bias: Tensor | None, examples: Examples | None = None) -> None:
        super().__init__()
        self.examples = examples
        self.register_buffer("codes", quantize(weight, affine).double())  # exact: 255 * 127 * 2^38 terms fit
        self.register_buffer("step", affine.scale.reshape(-1).clone())
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out], float32."""
        scale, zero_point = dynamic_affine(x, self.examples)
        centered = ((x / scale).round() + zero_point).clamp(0, HIGHEST) - zero_point
        total = nn.functional.linear(centered.double(), self.codes).float() * (scale * self.step)
        return total if self.bias is None else total + self.bias
