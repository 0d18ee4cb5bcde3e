"""Weights and arithmetic in a 16-bit floating-point type: what a dense model can gain without any compression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from pruning_bench.contracts import Context
from pruning_bench.errors import LevelError, ModelError
from pruning_bench.levels import DType, as_level
from pruning_bench.quantization.contract import FLOATS, QuantizationTags, QuantPlan, quantization_method


def float_of(who: str, level: Any) -> DType:
    """The level as one of `FLOATS`; raises `LevelError` otherwise."""
    level = as_level(level)
    if not isinstance(level, DType) or level.name not in FLOATS:
        found = "no level" if level is None else f"level {level}"
        instead = "; 8 bits are fp8:w8a8" if level == DType("fp8") else ""
        raise LevelError(who, found, " or ".join(FLOATS) + instead)
    return level


@quantization_method
@dataclass(frozen=True)
class Cast:
    """`cast:bf16`, `cast:fp16`: the whole model in that type, with float32 inputs and outputs.

    Whether that is faster depends on the processor: without instructions for the type it is emulated, exactly and
    slowly.
    """

    name: ClassVar[str] = "cast"
    tags: ClassVar[QuantizationTags] = QuantizationTags(
        level=float_of,
        weights=False,
        activations=False,
        needs_calibration=False,
        casts=True,
        reference="Kalamkar et al., A Study of BFLOAT16 for Deep Learning Training, arXiv 1905.12322",
    )

    def plan(self, model: nn.Module, level: Any, context: Context) -> QuantPlan:
        """The plan that holds the type alone.

        Args:
            level: `bf16` or `fp16`.
        Raises:
            LevelError: another level.
            ModelError: a weight that the type cannot hold: fp16 ends at 65504.
        """
        level = float_of(self.name, level)
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if value.is_floating_point() and not value.to(FLOATS[level.name]).isfinite().all():
                largest = float(value.detach().abs().max())
                raise ModelError(self.name, f"a value of {largest:.3g}", f"what {level} can hold", name)
        return QuantPlan({}, dtype=level.name)
