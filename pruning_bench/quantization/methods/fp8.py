"""8-bit floats: weights, and activations by ranges from calibration batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from pruning_bench.contracts import Context
from pruning_bench.errors import LevelError
from pruning_bench.levels import Bits, bits_of
from pruning_bench.quantization.affine import choose_float8
from pruning_bench.quantization.contract import QuantizationTags, QuantPlan, quantization_method
from pruning_bench.quantization.observers import weight_range
from pruning_bench.quantization.plans import observe, prepare


def eight_bits_of(who: str, level: Any) -> Bits:
    """The level as bits of which all are 8; raises `LevelError` otherwise."""
    bits = bits_of(who, level)
    if bits.weights != 8 or bits.activations not in (None, 8):
        raise LevelError(who, f"level {bits}", "w8a8, or w8 for weights alone")
    return bits


@quantization_method
@dataclass(frozen=True)
class Fp8:
    """`fp8:w8a8`, `fp8:w8`: weights, and unless they stand alone activations, as floats of 8 bits.

        scale = max |x| / largest,    x' = float8(clamp(x / scale, -largest, largest)) * scale

    One scale per output channel of a weight, one per activation, frozen at calibration; the largest number is 448 of
    e4m3 and 57344 of e5m2. From 2^-6 scales on (e5m2: 2^-14) the error is at most 1/16 of a value (e5m2: 1/8), whatever
    its size, so that an outlier costs the small values little. Zero is exact. Biases stay float32.

    Files hold a byte a weight. Activations are simulated, by the runtime eager: no runtime here has kernels for such
    floats on a CPU, and those of GPUs from compute capability 8.9 on (`torch._scaled_mm`) are not called. Weights alone
    run everywhere, as floats.

    Args:
        format: "e4m3" has finer steps, "e5m2" a range beyond what weights and activations need.
    Example:
        >>> import torch
        >>> from pruning_bench import compress
        >>> net, x = nn.Sequential(nn.Linear(2, 1, bias=False)), torch.tensor([[1.0, 0.3]])
        >>> _ = net[0].weight.data.copy_(torch.tensor([[44.8, 0.5]]))  # a scale of 0.1: 0.5 is 5 steps, exactly
        >>> made = compress(net, "fp8:w8a8", example_inputs=(x,), calibration=[(x,)])
        >>> round(float(made.model(x)) - 44.8, 4)  # 0.3 of 1 becomes 0.2857, 128 of 448 steps
        0.1429
    """

    name: ClassVar[str] = "fp8"
    examples: ClassVar[tuple[str, ...]] = ("fp8:w8a8", "fp8:w8")
    tags: ClassVar[QuantizationTags] = QuantizationTags(
        level=eight_bits_of,
        bits=(8,),
        sqnr_db={8: 15.0},
        expected_failures={
            "simulation_close": "errors of up to 1/16 of a value leave 17 dB; the bar of 20 dB is that of integers"
        },
        reference="Micikevicius et al., FP8 Formats for Deep Learning, arXiv 2209.05433",
    )

    format: Literal["e4m3", "e5m2"] = "e4m3"

    def plan(self, model: nn.Module, level: Any, context: Context) -> QuantPlan:
        """The plan for `model` with its batch norm folded.

        Args:
            level: `w8a8`, or `w8` for weights alone, which needs no calibration data.
        Raises:
            LevelError: other bits.
            ModelError: nothing to quantize, weights that are not finite, or calibration data that is missing, empty or
                not finite.
        """
        bits = eight_bits_of(self.name, level)
        calibration = None if bits.activations is None else context.need_calibration(self.name)
        prepared = prepare(model, context, self.name)
        weights = {
            name: choose_float8(*weight_range(weight, "per_channel"), self.format, axis=0, who=self.name)
            for name, weight in prepared.weights.items()
        }
        if calibration is None:
            return QuantPlan(weights)
        seen = observe(prepared.program, prepared.points, calibration, self.name)
        activations = {
            name: choose_float8(*values.ends(self.name), self.format, who=self.name) for name, values in seen.items()
        }
        return QuantPlan(weights, activations)
