"""Dynamic quantization after training: per-channel weights, activations by the range that they have at run time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from pruning_bench.contracts import Context
from pruning_bench.errors import LevelError, ModelError
from pruning_bench.graphs import operator
from pruning_bench.levels import Bits, bits_of
from pruning_bench.quantization.contract import QuantizationTags, QuantPlan, quantization_method
from pruning_bench.quantization.plans import choose_weight, prepare


def dynamic_bits_of(who: str, level: Any) -> Bits:
    """The level as bits, 8 of activations; raises `LevelError` otherwise."""
    bits = bits_of(who, level)
    if bits.activations != 8:
        raise LevelError(who, f"level {bits}", "8 bits for activations, such as w8a8")
    return bits


@quantization_method
@dataclass(frozen=True)
class Dynamic:
    """`dynamic:w8a8`: linear layers only; symmetric weights, activations of each batch by their own range.

    Needs no calibration, and suits models whose activations range differently from input to input, such as encoders
    of text. Convolutions and embeddings stay in float.

    Args:
        granularity: of the weights: one scale per output channel, or one per tensor.
    """

    name: ClassVar[str] = "dynamic"
    tags: ClassVar[QuantizationTags] = QuantizationTags(
        level=dynamic_bits_of,
        dynamic=True,
        needs_calibration=False,
        reference="Zafrir et al., Q8BERT: Quantized 8Bit BERT, NeurIPS 2019 workshop, arXiv 1910.06188",
    )

    granularity: Literal["per_channel", "per_tensor"] = "per_channel"

    def plan(self, model: nn.Module, level: Any, context: Context) -> QuantPlan:
        """The plan for `model` with its batch norm folded.

        Args:
            level: `w8a8`, or fewer bits for the weights.
        Raises:
            LevelError: no such bits.
            ModelError: no linear layer.
        """
        bits = dynamic_bits_of(self.name, level)
        prepared = prepare(model, context, self.name)
        linear = {node.name for node in prepared.program.graph.nodes if operator(node) == "aten.linear"}
        names = dict.fromkeys(weight for node, weight in prepared.points.layers.items() if node in linear)
        if not names:
            raise ModelError(self.name, "no linear layer", "at least one to quantize")
        weights = prepared.weights
        return QuantPlan(
            {name: choose_weight(weights[name], bits.weights, self.granularity) for name in names}, dynamic=True
        )
