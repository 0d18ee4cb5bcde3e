"""The same sites as ONNX nodes: QuantizeLinear and DequantizeLinear around float operators (QDQ, opset 21).

The modules are only ever exported; a runtime fuses each float operator with the q/dq nodes around it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pruning_bench.errors import PlanError
from pruning_bench.quantization.affine import affine_of, quantize
from pruning_bench.quantization.contract import Affine, Coding, QuantPlan
from pruning_bench.quantization.integer import FloatLayer, bias_affine, bias_codes
from pruning_bench.quantization.lower import Site, lower
from pruning_bench.quantization.pooling import PlainAverage, Pooling

OPSET = 21
SHIFT = 128  # from int8 to uint8
NIBBLES, HIGHEST_NIBBLE = "nibbles", 7  # name of the tensors that the export stores as INT4
WHO = "onnx"


def storage(affine: Affine, where: str, who: str = WHO) -> torch.dtype:
    """The 8-bit integer type whose saturation is the affine's clamp; raises `PlanError` when there is none."""
    types = {(0, 255): torch.uint8, (-128, 127): torch.int8}
    if (affine.low, affine.high) not in types:
        found = f"activations in {affine.low}..{affine.high}"
        raise PlanError(who, found, "8 bits (w8a8); fewer can only be simulated, by the runtime eager", where)
    return types[affine.low, affine.high]


def to_qdq(
    plan: QuantPlan, float_model: nn.Module, example_inputs: tuple[Tensor, ...], *, saturating: bool = False
) -> nn.Module:
    """The quantized model as a module to be exported to ONNX; with an empty plan the float model in the same form.

    Args:
        saturating: see `Layer`.
    Raises:
        PlanError: as `simulation.simulate`; and activations are 8-bit floats, or integers of other than 8 bits.
    """
    return lower(plan, float_model, example_inputs, Qdq(saturating))


@dataclass(frozen=True)
class Qdq:
    """Modules that export to ONNX nodes."""

    saturating: bool
    every_value = True
    sums_in_layers = False
    epsilon_of_codes = False

    def layer(self, site: Site) -> tuple[nn.Module, bool]:
        """A float operator with dequantized weight and bias."""
        assert site.weight is not None
        assert site.weight_coding is not None
        if site.alone and site.block is None:  # no kernel: made float once, not each run
            return FloatLayer(site.function, site.weight, site.weight_coding, site.bias, site.arguments), False
        affine = affine_of(site.weight_coding, site.name, WHO)
        if site.dynamic:
            return DynamicLinear(site.weight, affine, site.bias, self.saturating), False
        if site.alone:
            return WeightOnlyLinear(site.weight, affine, site.bias), False
        x = None if site.inputs[0] is None else affine_of(site.inputs[0], site.name, WHO)
        common = (site.function, site.weight, affine, site.bias, site.arguments)
        return Layer(*common, x, self.saturating), False

    def add(self, site: Site) -> tuple[nn.Module, bool] | None:
        """The float operator as it is."""
        return None

    def pool(self, site: Site, dims: int) -> tuple[nn.Module, bool] | None:
        """A node that has an integer kernel."""
        return GlobalAveragePool(), False

    def average(self, site: Site, pooling: Pooling) -> tuple[nn.Module, bool] | None:
        """The float operator as it is, where all runtimes compute it alike."""
        coding, padded = site.inputs[0], pooling.counts_padding and any(pooling.padding)
        codes_pad = padded and isinstance(coding, Affine) and int(coding.zero_point) != 0
        alike = not (codes_pad or pooling.hangs_over or pooling.divisor is not None)
        return None if alike else (PlainAverage(pooling), False)

    def value(self, coding: Coding, name: str) -> nn.Module:
        """A pair of q and dq nodes."""
        return QuantizeDequantize(affine_of(coding, name, WHO), name)


class Constant(nn.Module):
    """An integer tensor with its DequantizeLinear, the float values of a weight or bias."""

    codes: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, codes: Tensor, affine: Affine) -> None:
        super().__init__()
        self.axis = affine.axis
        self.register_buffer("codes", codes)
        self.register_buffer("scale", affine.scale.clone())
        self.register_buffer("zero_point", affine.zero_point.to(codes.dtype))

    def forward(self) -> Tensor:
        """float32, the shape of the codes."""
        attributes = {} if self.axis is None else {"axis": self.axis}
        return _node("DequantizeLinear", (self.codes, self.scale, self.zero_point), torch.float32, attributes)


class QuantizeDequantize(nn.Module):
    """A value rounded to its grid: QuantizeLinear, DequantizeLinear."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, affine: Affine, where: str) -> None:
        super().__init__()
        self.dtype = storage(affine, where)
        self.register_buffer("scale", affine.scale.clone())
        self.register_buffer("zero_point", affine.zero_point.to(self.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """float32, same shape."""
        codes = _node("QuantizeLinear", (x, self.scale, self.zero_point), self.dtype)
        return _node("DequantizeLinear", (codes, self.scale, self.zero_point), torch.float32)


class Layer(nn.Module):
    """A convolution or linear layer with an 8-bit weight and, when its input is quantized, an int32 bias.

    Args:
        saturating: uint8 x int8 products are summed in pairs of 16 bits. A weight whose codes could overflow there is
            stored 128 higher, as uint8, for which kernels sum in 32 bits: the same values.
    """

    def __init__(
        self,
        operator: Callable[..., Tensor],
        weight: Tensor,
        affine: Affine,
        bias: Tensor | None,
        rest: Sequence[Any],
        x: Affine | None,
        saturating: bool = False,
    ) -> None:
        super().__init__()
        self.operator, self.rest = operator, tuple(rest)
        self.weight = Constant(*_stored(quantize(weight, affine), affine, saturating))
        self.whole_bias: Constant | None = None
        if bias is not None and x is not None:
            grid = bias_affine(x, affine)
            self.whole_bias = Constant(bias_codes(bias, grid), grid if grid.scale.numel() > 1 else _per_tensor(grid))
        self.register_buffer("bias", bias if self.whole_bias is None else None)

    def forward(self, x: Tensor) -> Tensor:
        """As the operator."""
        bias = self.bias if self.whole_bias is None else self.whole_bias()
        if self.operator is torch.ops.aten.linear.default and x.dim() > 2:  # an integer kernel takes [rows, in]
            rows: Tensor = self.operator(x.flatten(0, -2), self.weight(), bias)
            return rows.reshape(*x.shape[:-1], rows.shape[-1])
        return self.operator(x, self.weight(), bias, *self.rest)


class DynamicLinear(nn.Module):
    """A linear layer on codes, its input quantized at run time; see `quantization.dynamic`.

    Args:
        saturating: see `Layer`.
    """

    codes: Tensor
    zero_point: Tensor
    step: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, affine: Affine, bias: Tensor | None, saturating: bool = False) -> None:
        super().__init__()
        codes, stored = _stored(quantize(weight, affine), affine, saturating)
        self.register_buffer("codes", codes.t().contiguous())
        self.register_buffer("zero_point", stored.zero_point.reshape(-1)[0].to(codes.dtype))  # symmetric: all the same
        self.register_buffer("step", affine.scale.reshape(-1).clone())
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out], float32."""
        made = torch.onnx.ops.symbolic_multi_out(
            "DynamicQuantizeLinear",
            (x,),
            dtypes=(torch.uint8, torch.float32, torch.uint8),
            shapes=(x.shape, (), ()),
            version=OPSET,
        )
        codes, scale, zero_point = made
        total = torch.onnx.ops.symbolic(
            "MatMulInteger",
            (codes, self.codes, zero_point, self.zero_point),
            dtype=torch.int32,
            shape=(*x.shape[:-1], self.codes.shape[1]),
            version=OPSET,
        )
        y: Tensor = total.to(torch.float32) * (scale * self.step)
        return y if self.bias is None else y + self.bias


class WeightOnlyLinear(nn.Module):
    """A linear layer in float whose weight is read as codes: DequantizeLinear per channel or block, MatMul, Add.

    Rows are multiplied as [1, rows, in]: of two dimensions onnxruntime makes a Gemm, which has no kernel for codes.
    """

    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, affine: Affine, bias: Tensor | None) -> None:
        super().__init__()
        self.name = NIBBLES if affine.high <= HIGHEST_NIBBLE else "codes"
        self.register_buffer(self.name, quantize(weight, affine).to(torch.int8).t().contiguous())
        scale = affine.scale.t().contiguous() if affine.group else affine.scale.reshape(-1).expand(len(weight))
        self.register_buffer("scale", scale.contiguous())
        self.register_buffer("bias", bias)
        self.attributes = {"axis": 0, "block_size": affine.group} if affine.group else {"axis": 1}

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out], float32."""
        weight = _node("DequantizeLinear", (getattr(self, self.name), self.scale), torch.float32, self.attributes)
        y = torch.matmul(x[None] if x.dim() == 2 else x, weight)
        y = y if self.bias is None else y + self.bias
        return y.squeeze(0) if x.dim() == 2 else y


class GlobalAveragePool(nn.Module):
    """[N, C, *positions] -> [N, C, 1 ...] as one node; torch would export a mean, which has no integer kernel."""

    def forward(self, x: Tensor) -> Tensor:
        """float32."""
        shape = (*x.shape[:2], *[1] * (x.dim() - 2))
        return torch.onnx.ops.symbolic("GlobalAveragePool", (x,), dtype=x.dtype, shape=shape, version=OPSET)


def _stored(codes: Tensor, affine: Affine, saturating: bool) -> tuple[Tensor, Affine]:
    """A weight's codes as an 8-bit type, and the affine that reads them."""
    overflows = 2 * 255 * int(codes.abs().max()) > 2**15 - 1
    if not (saturating and overflows):
        return codes.to(torch.int8), affine
    shifted = Affine(affine.scale, affine.zero_point + SHIFT, affine.low + SHIFT, affine.high + SHIFT, affine.axis)
    return (codes + SHIFT).to(torch.uint8), shifted


def _per_tensor(affine: Affine) -> Affine:
    return Affine(affine.scale.reshape(()), affine.zero_point.reshape(()), affine.low, affine.high)


def _node(
    operator: str, inputs: tuple[Tensor, ...], dtype: torch.dtype, attributes: dict[str, Any] | None = None
) -> Tensor:
    """The one output, of the first input's shape, of an ONNX node."""
    made: Tensor = torch.onnx.ops.symbolic(
        operator, inputs, attributes, dtype=dtype, shape=inputs[0].shape, version=OPSET
    )
    return made
