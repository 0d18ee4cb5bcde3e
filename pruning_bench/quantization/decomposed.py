"""The same sites as torch's own q/dq operators, `quantized_decomposed`: what inductor's int8 patterns look for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers the operators
from torch import Tensor, nn

from pruning_bench.quantization.affine import affine_of, quantize
from pruning_bench.quantization.contract import Affine, Coding
from pruning_bench.quantization.integer import FloatLayer
from pruning_bench.quantization.lower import Site
from pruning_bench.quantization.pooling import Pooling
from pruning_bench.quantization.qdq import storage

WHO = "compiled"


class QuantizeDequantize(nn.Module):
    """A value rounded to its grid; scale and zero point are constants of the graph."""

    def __init__(self, affine: Affine, where: str) -> None:
        super().__init__()
        zero_point = int(affine.zero_point)
        self.grid = (float(affine.scale), zero_point, affine.low, affine.high, storage(affine, where, WHO))

    def forward(self, x: Tensor) -> Tensor:
        """float32, same shape."""
        operators = torch.ops.quantized_decomposed
        codes = operators.quantize_per_tensor.default(x, *self.grid)
        value: Tensor = operators.dequantize_per_tensor.default(codes, *self.grid)
        return value


class Layer(nn.Module):
    """A convolution or linear layer with an int8 weight, one scale per output channel, and a float bias."""

    codes: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(
        self, operator: Callable[..., Tensor], weight: Tensor, affine: Affine, bias: Tensor | None, rest: Sequence[Any]
    ) -> None:
        super().__init__()
        self.operator, self.rest, self.low, self.high = operator, tuple(rest), affine.low, affine.high
        self.register_buffer("codes", quantize(weight, affine).to(torch.int8))
        self.register_buffer("scale", affine.scale.reshape(-1).expand(len(weight)).contiguous())
        self.register_buffer("zero_point", torch.zeros(len(weight), dtype=torch.int64))
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """As the operator."""
        weight = torch.ops.quantized_decomposed.dequantize_per_channel.default(
            self.codes, self.scale, self.zero_point, 0, self.low, self.high, torch.int8
        )
        return self.operator(x, weight, self.bias, *self.rest)


@dataclass(frozen=True)
class Decomposed:
    """The `lower.Form` of these modules: float operators between q/dq pairs, to be fused by patterns."""

    every_value = True
    sums_in_layers = False
    epsilon_of_codes = False

    def layer(self, site: Site) -> tuple[nn.Module, bool]:
        """A float operator with a dequantized weight; of weights alone, with one made float beforehand."""
        assert site.weight is not None
        assert site.weight_coding is not None
        if site.alone:
            return FloatLayer(site.function, site.weight, site.weight_coding, site.bias, site.arguments), False
        affine = affine_of(site.weight_coding, site.name, WHO)
        return Layer(site.function, site.weight, affine, site.bias, site.arguments), False

    def add(self, site: Site) -> tuple[nn.Module, bool] | None:
        """The float operator as it is."""
        return None

    def pool(self, site: Site, dims: int) -> tuple[nn.Module, bool] | None:
        """The float operator as it is."""
        return None

    def average(self, site: Site, pooling: Pooling) -> tuple[nn.Module, bool] | None:
        """The float operator as it is."""
        return None

    def value(self, coding: Coding, name: str) -> nn.Module:
        """A pair of q and dq operators."""
        return QuantizeDequantize(affine_of(coding, name, WHO), name)
