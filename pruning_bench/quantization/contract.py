"""What a quantization method is, and the one plan that every runtime lowers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from pruning_bench.contracts import register_step

if TYPE_CHECKING:
    from pruning_bench.contracts import Context
    from pruning_bench.levels import LevelReader

C = TypeVar("C", bound=type)
FLOATS = {"bf16": torch.bfloat16, "fp16": torch.float16}
FLOATS8 = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


@dataclass(frozen=True)
class QuantizationTags:
    """Claims that switch checks on, and exemptions with reasons.

    Args:
        level: reads a level or raises `LevelError`, so that no recipe parses with one that is never taken; None: any.
        weights, activations: what is quantized.
        dynamic: plans are `dynamic`: of linear layers alone, whose inputs are quantized at run time.
        needs_calibration: `plan` reads `context.calibration`.
        bits: of the weights, those that its levels may ask for.
        sqnr_db: bits of weights -> signal over noise in dB that the outputs of the example of `conformance` have at
            least, activations (if any) at 8 bits.
        casts: plans hold a `dtype` and nothing else: every runtime runs them itself, none only simulates them.
        reference: the paper.
        expected_failures: check name -> reason; strict.
    """

    level: LevelReader | None = None
    weights: bool = True
    activations: bool = True
    dynamic: bool = False
    needs_calibration: bool = True
    bits: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)
    casts: bool = False
    reference: str = ""
    sqnr_db: Mapping[int, float] = field(default_factory=dict)
    expected_failures: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Affine:
    """code = clamp(round(x / scale) + zero_point, low, high); x ~ (code - zero_point) * scale.

    Args:
        scale: float32, positive and finite; shape [] (per tensor), [channels] (per channel) or [channels, groups].
        zero_point: int32, same shape, in [low, high].
        low, high: the range of the codes, inclusive; int8 is -128..127, narrow int8 -127..127.
        axis: the channel dimension of `scale`, None when per tensor.
        group: of a weight, seen as [channels, columns]: how many columns in a row share a scale (the last group may be
            shorter); `axis` is 0 then. None without groups.
    """

    scale: Tensor
    zero_point: Tensor
    low: int
    high: int
    axis: int | None = None
    group: int | None = None


@dataclass(frozen=True)
class Float8:
    """code = float8(clamp(x / scale, -largest, largest)); x ~ code * scale. Codes are numbers of 8 bits themselves.

    Micikevicius et al., FP8 Formats for Deep Learning, arXiv 2209.05433.

    Args:
        scale: float32, positive and finite; shape [] (per tensor) or [channels] (per channel).
        format: a key of `FLOATS8`: "e4m3", 4 bits of exponent and 3 of fraction, or "e5m2".
        axis: the channel dimension of `scale`, None when per tensor.
    """

    scale: Tensor
    format: str
    axis: int | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The type of the codes."""
        return FLOATS8[self.format]

    @property
    def largest(self) -> float:
        """The largest finite code: 448 of e4m3, 57344 of e5m2."""
        return torch.finfo(self.dtype).max


Coding: TypeAlias = Affine | Float8


@dataclass(frozen=True)
class QuantPlan:
    """Quantization of one model, the same for every runtime.

    Canonical: batch norm is folded first; every convolution and linear has a quantized input, weight and output,
    every add quantized inputs and output; the output quantizer stands after a directly following ReLU.

    Args:
        weights: parameter name in the folded model -> coding.
        activations: point name (`quantization.points`) -> coding; readable and stable across torch versions.
        writes: parameter name in the folded model -> replacement values before quantization (often none).
        codebooks: parameter name in the folded model -> the few values that its elements take, float32, ascending, zero
            among them; `writes` holds the parameter with these values, and `weights` leaves it out.
        dynamic: the inputs of the layers in `weights` are quantized at run time, each tensor as a whole by its own
            range, to uint8; `activations` is then empty.
        dtype: the short name (`FLOATS`) of the floating-point type that the whole model is cast to, with float32 inputs
            and outputs; then there is nothing else in the plan. None for a plan of codes.
    """

    weights: Mapping[str, Coding]
    activations: Mapping[str, Coding] = field(default_factory=dict)
    writes: Mapping[str, Tensor] = field(default_factory=dict)
    codebooks: Mapping[str, Tensor] = field(default_factory=dict)
    dynamic: bool = False
    dtype: str | None = None

    @property
    def weights_only(self) -> bool:
        """Are weights quantized, and nothing that is computed?"""
        return bool(self.weights) and not self.activations and not self.dynamic

    @property
    def computes_in_float8(self) -> bool:
        """Are there 8-bit floats among what is computed?"""
        return any(isinstance(coding, Float8) for coding in self.activations.values())


@runtime_checkable
class QuantizationMethod(Protocol):
    """Implemented by a frozen dataclass whose fields are the recipe's options; see `quantization_method`.

    A class attribute `examples`, recipe texts, makes benchmark cases of the profile nightly.
    """

    name: ClassVar[str]
    tags: ClassVar[QuantizationTags]

    def plan(self, model: nn.Module, level: Any, context: Context) -> QuantPlan:
        """How to quantize; never changes the model."""


def quantization_method(cls: C) -> C:
    """Registers a quantization method under its `name`; raises `PluginError` if it does not keep the contract."""
    return register_step(cls, QuantizationTags, "plan")
