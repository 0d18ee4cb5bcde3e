"""Static quantization after training: per-channel weights, activation ranges from calibration batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from pruning_bench.contracts import Context
from pruning_bench.levels import both_bits_of
from pruning_bench.quantization.contract import QuantizationTags, QuantPlan, quantization_method
from pruning_bench.quantization.observers import ObserverName
from pruning_bench.quantization.plans import choose_activations, choose_weight, fit_biases, prepare


@quantization_method
@dataclass(frozen=True)
class Static:
    """`static:w8a8`: symmetric weights, asymmetric unsigned activations, ranges frozen at calibration.

    Weights have codes in -127..127 (w8). On x86 without VNNI instructions the fastest 8-bit kernels add two products
    of unsigned and signed codes in 16 bits: `static:w7a8` fits there, `static:w8a8` takes slower kernels.

    Args:
        granularity: of the weights: one scale per output channel, or one per tensor.
        observer: how activation ranges are found (`quantization.observers`): "minmax" is the range over all calibration
            batches, "moving_average" that of the batches on average; "percentile" and "mse" cut outliers off.
    """

    name: ClassVar[str] = "static"
    examples: ClassVar[tuple[str, ...]] = (
        "static:w8a8",
        "static:w8a8,granularity=per_tensor",
        "static:w8a8,observer=mse",
    )
    tags: ClassVar[QuantizationTags] = QuantizationTags(
        level=both_bits_of,
        sqnr_db={4: 4.0, 8: 20.0},
        reference="Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only "
        "Inference, CVPR 2018, arXiv 1712.05877",
    )

    granularity: Literal["per_channel", "per_tensor"] = "per_channel"
    observer: ObserverName = "minmax"

    def plan(self, model: nn.Module, level: Any, context: Context) -> QuantPlan:
        """The plan for `model` with its batch norm folded.

        Args:
            level: `w8a8`, 2 to 8 bits each.
        Raises:
            LevelError: no such bits.
            ModelError: nothing to quantize, or calibration data that is missing, empty or not finite.
        """
        bits = both_bits_of(self.name, level)
        assert bits.activations is not None
        calibration = context.need_calibration(self.name)
        prepared = prepare(model, context, self.name)
        weights = {
            name: choose_weight(weight, bits.weights, self.granularity) for name, weight in prepared.weights.items()
        }
        activations = choose_activations(prepared, bits.activations, calibration, self.name, self.observer)
        return QuantPlan(fit_biases(weights, activations, prepared), activations)
