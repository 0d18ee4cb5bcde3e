"""Layers, additions and pools on integer codes, simulated exactly in float tensors.

What an integer kernel computes is a sum of products of small whole numbers, the same in any order. Here the codes are
held in float32 when no partial sum can reach 2^24, else in float64, so that the sum is exact and does not depend on the
machine, the batch size or the number of threads. What enters and leaves are floats on the grid of their affine.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pruning_bench.quantization.affine import fake_quantize, quantize
from pruning_bench.quantization.contract import Affine, Coding

EXACT_IN_FLOAT32 = 2**24
BIAS_LIMIT = 2**31 - 1


class Rounding(enum.Enum):
    """How a runtime finds the code, less the zero point z, of a value on a grid of scale s; they differ near ties.

    Each operation is rounded to float32. l and h are the least and the highest value of the grid, n its steps.
    """

    RECIPROCAL = "round(x * (1 / s))"  # as torch does
    DIVISION = "round(x / s)"
    SHIFTED = "round(x * (1 / s) + z) - z"
    ENDS = "round(x * (n / (h - l)) - l * (n / (h - l))) - z, l being code 0"


def bias_affine(x: Affine, weight: Affine) -> Affine:
    """The int32 affine of a bias: scale s_x * s_w per output channel, zero point 0."""
    scale = (x.scale * weight.scale).reshape(-1)
    return Affine(scale, torch.zeros_like(scale, dtype=torch.int32), -BIAS_LIMIT, BIAS_LIMIT, 0)


def bias_codes(bias: Tensor, affine: Affine) -> Tensor:
    """int32 [channels]: round(bias / scale); in float64, since float32 cannot hold every int32."""
    codes = torch.round(bias.double() / affine.scale.double())
    return codes.clamp(affine.low, affine.high).to(torch.int32).expand(bias.shape).contiguous()


class Grid(nn.Module):
    """The per-tensor affine of a value, held as buffers so that it moves and copies with the model."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, affine: Affine) -> None:
        super().__init__()
        self.register_buffer("scale", affine.scale.clone())
        self.register_buffer("zero_point", affine.zero_point.clone())
        self.low, self.high = affine.low, affine.high
        zero = int(affine.zero_point)
        self.least, self.most = affine.low - zero, affine.high - zero  # of code - zero_point

    @property
    def affine(self) -> Affine:
        """The affine, on the device where the buffers are."""
        return Affine(self.scale, self.zero_point, self.low, self.high)

    def centered(self, x: Tensor) -> Tensor:
        """code - zero_point of values that already lie on the grid; float32 whole numbers."""
        return (x * (1 / self.scale)).round_()

    def steps(self, x: Tensor, rounding: Rounding) -> Tensor:
        """code - zero_point of values as they come, before the clamp; float32 whole numbers."""
        if rounding is Rounding.RECIPROCAL:
            return (x * (1 / self.scale)).round_()
        if rounding is Rounding.DIVISION:
            return (x / self.scale).round_()
        if rounding is Rounding.SHIFTED:
            return (x * (1 / self.scale)).add_(self.zero_point).round_().sub_(self.zero_point)
        low, high = self.least * self.scale, self.most * self.scale
        factor = torch.full_like(low, self.most - self.least) / (high - low)  # a number / tensor rounds twice
        return (x * factor).sub_(low * factor).round_().add_(self.least)

    def settle(self, steps: Tensor, relu: bool = False) -> Tensor:
        """Values on this grid from real multiples of its scale (overwritten); a ReLU is the clamp at zero's code."""
        return steps.round_().clamp_(max(self.least, 0) if relu else self.least, self.most).mul_(self.scale)


class FakeQuantize(Grid):
    """x -> the nearest value of the grid.

    Args:
        rounding: to which of two neighbours near a tie.
    """

    def __init__(self, affine: Affine, rounding: Rounding) -> None:
        super().__init__(affine)
        self.rounding = rounding

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        return self.settle(self.steps(x, self.rounding))


class FloatLayer(nn.Module):
    """A convolution or linear layer in float whose weight lies on its grid.

    Args:
        operator: the ATen operator, called as `operator(x, weight, bias, *rest)`.
    """

    def __init__(
        self, operator: Callable[..., Tensor], weight: Tensor, coding: Coding, bias: Tensor | None, rest: Sequence[Any]
    ) -> None:
        super().__init__()
        self.operator, self.rest = operator, tuple(rest)
        self.register_buffer("weight", fake_quantize(weight, coding))
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """As the operator."""
        return self.operator(x, self.weight, self.bias, *self.rest)


class IntegerLayer(nn.Module):
    """A convolution or linear layer on codes: the exact sum of (x - z_x) * w, and what runtimes make of it in float32.

    By one factor:   code = clamp(round((sum + b) * (s_x * s_w / s_y)) + z_y), b being the bias's int32 code
    With a rounding: code = clamp(rounding(sum * (s_x * s_w) + b * (s_x * s_w)) + z_y)
    Float bias:      code = clamp(rounding(sum * s_x * s_w + bias) + z_y), from the left

    Without an output grid the output is the float that would be rounded, by one factor (sum + b) * (s_x * s_w).

    Args:
        x, y: affines of input and output; y None for float output.
        relu: a clamp from zero follows before the output is quantized.
        rounding: None for one factor, which goes with an integer bias.
        whole_bias: the bias is an int32 code of scale s_x * s_w.
    """

    codes: Tensor
    multiplier: Tensor
    float_bias: Tensor | None

    def __init__(
        self,
        operator: Callable[..., Tensor],
        weight: Tensor,
        affine: Affine,
        bias: Tensor | None,
        rest: Sequence[Any],
        x: Affine,
        y: Affine | None,
        relu: bool,
        rounding: Rounding | None = None,
        whole_bias: bool = True,
    ) -> None:
        super().__init__()
        self.operator, self.rest, self.relu = operator, tuple(rest), relu
        self.x, self.y, self.rounding = Grid(x), Grid(y) if y else None, rounding
        codes = quantize(weight, affine)
        grid = bias_affine(x, affine)
        whole = None if bias is None or not whole_bias else bias_codes(bias, grid).double()
        inside = whole if rounding is None else None  # what the sum begins with
        worst = codes.double().abs().flatten(1).sum(1) * max(-self.x.least, self.x.most)
        worst = worst if inside is None else worst + inside.abs()
        exact = torch.float32 if float(worst.max()) < EXACT_IN_FLOAT32 else torch.float64
        self.register_buffer("codes", codes.to(exact))
        self.register_buffer("bias", None if inside is None else inside.to(exact))
        shape = (-1, *[1] * (weight.dim() - 2)) if weight.dim() > 2 else (-1,)
        step = grid.scale.expand(len(codes))
        behind = None if rounding is None else bias if whole is None else whole.float() * step
        self.register_buffer("float_bias", None if behind is None else behind.reshape(shape))
        if rounding is None and y:
            step = step / y.scale
        elif not whole_bias:  # by the other factor first
            step = affine.scale.reshape(-1).expand(len(codes))
        self.first = None if whole_bias else float(x.scale)
        self.register_buffer("multiplier", step.reshape(shape).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """As the operator."""
        total = self.operator(self.x.centered(x).to(self.codes.dtype), self.codes, self.bias, *self.rest).float()
        total = total if self.first is None else total * self.first
        made = total * self.multiplier
        made = made if self.float_bias is None else made.add_(self.float_bias)
        if self.y is None:
            return made
        return self.y.settle(made if self.rounding is None else self.y.steps(made, self.rounding), self.relu)


class IntegerAdd(nn.Module):
    """a + b on codes: code = round(b * (s_b / s_y) + (a * (s_a / s_y) + fixed)), each step rounded to float32 once.

    fixed = z_y - (s_a / s_y * z_a + s_b / s_y * z_b). The order is that of fused multiply-adds in onnxruntime's kernel.
    """

    def __init__(self, a: Affine, b: Affine, y: Affine, relu: bool) -> None:
        super().__init__()
        self.a, self.b, self.y, self.relu = Grid(a), Grid(b), Grid(y), relu

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Shapes as for `torch.add`."""
        first, second, out = self.a.affine, self.b.affine, self.y.affine
        ratio_a, ratio_b = first.scale / out.scale, second.scale / out.scale
        fixed = out.zero_point - (ratio_a * first.zero_point + ratio_b * second.zero_point)
        code_a = self.a.centered(a).add_(first.zero_point).double()
        code_b = self.b.centered(b).add_(second.zero_point).double()
        partial = code_a.mul_(ratio_a.double()).add_(fixed.double()).float()
        codes = code_b.mul_(ratio_b.double()).add(partial).float()
        return self.y.settle(codes.round_().sub_(out.zero_point), self.relu)


class IntegerMean(nn.Module):
    """Global average pool on codes: code = round(sum(x - z_x) * (s_x / (s_y * n))) + z_y over n positions."""

    def __init__(self, x: Affine, y: Affine, dims: int) -> None:
        super().__init__()
        self.x, self.y, self.dims = Grid(x), Grid(y), tuple(range(-dims, 0))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, *positions] -> [N, C, 1 ...]."""
        count = 1
        for d in self.dims:
            count *= x.shape[d]
        total = self.x.centered(x).double().sum(self.dims, keepdim=True).float()
        return self.y.settle(total * (self.x.scale / (self.y.scale * count)))
