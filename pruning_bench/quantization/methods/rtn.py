"""Round to nearest: weights alone, no data. What every other method for weights has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from pruning_bench.contracts import Context
from pruning_bench.levels import weight_bits_of
from pruning_bench.options import Checked, Group
from pruning_bench.quantization.contract import QuantizationTags, QuantPlan, quantization_method
from pruning_bench.quantization.plans import WeightObserverName, choose_weight, prepare


@quantization_method
@dataclass(frozen=True)
class Rtn(Checked):
    """`rtn:w8`, `rtn:w4,group=32`: weights of all convolutions and linear layers; activations stay in float.

        symmetric: scale = max |w| / (2^(bits-1) - 1),        code = round(w / scale)
        else:      scale = (max w - min w) / (2^bits - 1),    code = round(w / scale) + zero_point

    The file is smaller on every runtime. Whether anything is faster depends on the layer: runtimes have kernels that
    read such codes for linear layers (of `blocked.block_of`); elsewhere the rounded weights are floats again.

    Args:
        group: columns of a weight, seen as [channels, columns], that share a scale; 0 for all of a channel.
        observer: "minmax" takes the scale above, "mse" the smaller one, if any, whose squared error is least.
        symmetric: without zero points. With them 2 and 3 bits hold more; runtimes then read the weights as floats.
    """

    name: ClassVar[str] = "rtn"
    examples: ClassVar[tuple[str, ...]] = ("rtn:w8", "rtn:w4,group=32")
    tags: ClassVar[QuantizationTags] = QuantizationTags(
        level=weight_bits_of,
        activations=False,
        needs_calibration=False,
        sqnr_db={4: 4.0, 8: 30.0},
        reference="Dettmers and Zettlemoyer, The case for 4-bit precision: k-bit Inference Scaling Laws, ICML 2023, "
        "arXiv 2212.09720",
    )

    group: Group = 0
    observer: WeightObserverName = "minmax"
    symmetric: bool = True

    def plan(self, model: nn.Module, level: Any, context: Context) -> QuantPlan:
        """The plan for `model` with its batch norm folded.

        Args:
            level: `w4`, 2 to 8 bits.
        Raises:
            LevelError: no such bits, or bits of activations.
            ModelError: nothing to quantize.
        """
        bits = weight_bits_of(self.name, level)
        weights = prepare(model, context, self.name).weights
        granularity = "per_group" if self.group else "per_channel"
        return QuantPlan(
            {
                name: choose_weight(weight, bits.weights, granularity, self.group, self.observer, self.symmetric)
                for name, weight in weights.items()
            }
        )
