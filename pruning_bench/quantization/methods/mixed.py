"""Mixed precision: bits for each layer by measured sensitivity, under a budget for the size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from pruning_bench.contracts import Context
from pruning_bench.levels import bits_of
from pruning_bench.options import Checked, Count
from pruning_bench.quantization.bit_widths import choose_bits, output_errors
from pruning_bench.quantization.contract import QuantizationTags, QuantPlan, quantization_method
from pruning_bench.quantization.plans import choose_activations, choose_weight, fit_biases, observe, prepare

WIDTHS = (2, 3, 4, 6, 8)


@quantization_method
@dataclass(frozen=True)
class Mixed(Checked):
    """`mixed:w4`: 4 bits a weight on average over the model, each layer 2, 3, 4, 6 or 8 of them.

    The error of a layer at some bits is the mean squared change of the model's output when it alone is rounded to
    them; of all choices whose bits stay within the budget the one of smallest summed error is taken. `w4a8` quantizes
    activations too, to 8 bits everywhere. With activations of 8 bits every runtime runs it, each weight as int8.

    Args:
        granularity: of the weights: one scale per output channel, or one per tensor.
        images: of the calibration data, how many examples errors are measured on; at least 1.
    """

    name: ClassVar[str] = "mixed"
    examples: ClassVar[tuple[str, ...]] = ("mixed:w4",)
    tags: ClassVar[QuantizationTags] = QuantizationTags(
        level=bits_of,
        activations=False,
        reference="Dong et al., HAWQ-V2: Hessian Aware trace-Weighted Quantization of Neural Networks, NeurIPS 2020, "
        "arXiv 1911.03852",
    )

    granularity: Literal["per_channel", "per_tensor"] = "per_channel"
    images: Count = 64

    def plan(self, model: nn.Module, level: Any, context: Context) -> QuantPlan:
        """The plan for `model` with its batch norm folded.

        Args:
            level: the average bits of a weight, `w2` to `w8`; with bits of activations, `w4a8`, these too.
        Raises:
            LevelError: no such bits.
            ModelError: nothing to quantize, or calibration data that is missing, empty or not finite.
        """
        bits = bits_of(self.name, level)
        calibration = context.need_calibration(self.name)
        prepared = prepare(model, context, self.name)
        observe(prepared.program, prepared.points, calibration, self.name)  # says what is wrong with a batch
        weights = prepared.weights
        candidates = {
            name: {width: choose_weight(weight, width, self.granularity) for width in WIDTHS}
            for name, weight in weights.items()
        }
        batches = first_examples(calibration, self.images)
        errors = output_errors(prepared, candidates, batches, self.name, context.progress)
        counts = {name: weight.numel() for name, weight in weights.items()}
        widths = choose_bits(errors, counts, bits.weights * sum(counts.values()), self.name)
        chosen = {name: candidates[name][width] for name, width in widths.items()}
        if bits.activations is None:
            return QuantPlan(chosen)
        activations = choose_activations(prepared, bits.activations, calibration, self.name)
        return QuantPlan(fit_biases(chosen, activations, prepared), activations)


def first_examples(batches: Sequence[tuple[Tensor, ...]], count: int) -> list[tuple[Tensor, ...]]:
    """The first examples of some batches, in the same batches.

    Example:
        >>> import torch
        >>> [len(x) for (x,) in first_examples([(torch.zeros(4, 1),), (torch.zeros(4, 1),)], 6)]
        [4, 2]
    """
    taken = []
    for batch in batches:
        part = tuple(value[:count] for value in batch)
        if count > 0:
            taken.append(part)
        count -= len(part[0])
    return taken
