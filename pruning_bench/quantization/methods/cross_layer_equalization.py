"""Cross-layer equalization: channels scaled between layers, so that all of a weight's channels use its range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from pruning_bench.contracts import Context
from pruning_bench.levels import bits_of
from pruning_bench.quantization.contract import QuantizationTags, QuantPlan, quantization_method
from pruning_bench.quantization.equalization import equalize
from pruning_bench.quantization.plans import choose_weight, complete, prepare, write


@quantization_method
@dataclass(frozen=True)
class CrossLayerEqualization:
    """`cross_layer_equalization:w8a8`, `:w8`: the model with equalized weights, then as `static` or to nearest.

    For two layers with at most homogeneous operators between them (ReLU, pooling; not ReLU6), r1_i the largest |weight|
    that makes channel i and r2_i the largest that reads it: the first layer's channel i and its bias are divided by
    s_i = sqrt(r1_i / r2_i) and the second's multiplied, so that both ranges become sqrt(r1_i * r2_i); over all pairs,
    again until nothing changes. The float model computes what it did. Pairs are found in the exported graph,
    depthwise convolutions included; layers without a partner stay as they are.

    Args:
        granularity: of the weights: one scale per tensor, where equalization matters most, or per output channel.
    Reference:
        Nagel et al., Data-free quantization through weight equalization and bias correction, ICCV 2019,
        arXiv 1906.04721.
    """

    granularity: Literal["per_channel", "per_tensor"] = "per_tensor"
    name: ClassVar[str] = "cross_layer_equalization"
    examples: ClassVar[tuple[str, ...]] = ("cross_layer_equalization:w8a8",)
    tags: ClassVar[QuantizationTags] = QuantizationTags(
        level=bits_of,
        reference="Nagel et al., Data-free quantization through weight equalization and bias correction, ICCV 2019, "
        "arXiv 1906.04721",
    )

    def plan(self, model: nn.Module, level: Any, context: Context) -> QuantPlan:
        """The plan for `model` with its batch norm folded; its writes are the equalized weights and biases.

        Args:
            level: `w8a8` or `w8` (weights alone), 2 to 8 bits each.
        Raises:
            LevelError: no such bits.
            ModelError: nothing to quantize, or calibration data that is missing, empty or not finite.
        """
        bits = bits_of(self.name, level)
        calibration = () if bits.activations is None else context.need_calibration(self.name)
        prepared = prepare(model, context, self.name)
        writes = equalize(prepared)
        write(prepared, writes)
        weights = {name: choose_weight(w, bits.weights, self.granularity) for name, w in prepared.weights.items()}
        return complete(prepared, weights, writes, bits, calibration, self.name)
