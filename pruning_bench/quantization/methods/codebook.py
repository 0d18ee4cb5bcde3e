"""Weight sharing: the weights of a layer take few values, found by k-means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from pruning_bench.contracts import Context
from pruning_bench.levels import weight_bits_of
from pruning_bench.quantization.codebook import choose_codebook, nearest
from pruning_bench.quantization.contract import QuantizationTags, QuantPlan, quantization_method
from pruning_bench.quantization.plans import prepare


@quantization_method
@dataclass(frozen=True)
class Codebook:
    """`codebook:w4`: the weights of a layer share 2^bits values, 16 for w4, stored as a table and an index each.

    One value is zero, so that pruned weights stay exactly zero. Kernels compute in float: files are smaller, nothing is
    faster. Layers after batch norm is folded, whose channels may differ much in size, share one table too.
    """

    name: ClassVar[str] = "codebook"
    examples: ClassVar[tuple[str, ...]] = ("codebook:w4", "magnitude:0.8+codebook:w4")
    tags: ClassVar[QuantizationTags] = QuantizationTags(
        level=weight_bits_of,
        activations=False,
        needs_calibration=False,
        reference="Han et al., Deep Compression: Compressing Deep Neural Networks with Pruning, Trained Quantization "
        "and Huffman Coding, ICLR 2016, arXiv 1510.00149",
    )

    def plan(self, model: nn.Module, level: Any, context: Context) -> QuantPlan:
        """The plan for `model` with its batch norm folded: tables, and the weights that they make.

        Args:
            level: `w4`, 2 to 8 bits.
        Raises:
            LevelError: no such bits, or bits of activations too.
            ModelError: nothing to quantize, or weights that are not finite.
        """
        bits = weight_bits_of(self.name, level)
        weights = prepare(model, context, self.name).weights
        tables = {name: choose_codebook(weight, 2**bits.weights, self.name) for name, weight in weights.items()}
        writes = {name: table[nearest(weights[name], table)] for name, table in tables.items()}
        return QuantPlan({}, writes=writes, codebooks=tables)
