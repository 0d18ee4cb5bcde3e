"""Bias correction: biases that give every output channel the mean that it has in float."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from pruning_bench.contracts import Context
from pruning_bench.levels import bits_of
from pruning_bench.quantization.affine import fake_quantize
from pruning_bench.quantization.contract import QuantizationTags, QuantPlan, quantization_method
from pruning_bench.quantization.equalization import equalize
from pruning_bench.quantization.layerwise import Layer, decide_layers
from pruning_bench.quantization.plans import choose_weight, complete, prepare, write


@quantization_method
@dataclass(frozen=True)
class BiasCorrection:
    """`bias_correction:w8a8`, `:w4`: weights to nearest, and biases that make up for the mean error.

    With W' the rounded weight, x the inputs of a layer in the float model and x' those that the corrected layers before
    it give: b' = b + W E[x] - W' E[x'], E over all calibration examples and positions, so that every output channel
    has the mean that it has in float. A layer without bias stays as it is.

    Args:
        granularity: of the weights: one scale per output channel, or one per tensor.
        equalize: equalize the weights first, see `cross_layer_equalization`.
    Reference:
        Nagel et al., Data-free quantization through weight equalization and bias correction, ICCV 2019,
        arXiv 1906.04721, empirical bias correction.
    """

    granularity: Literal["per_channel", "per_tensor"] = "per_channel"
    equalize: bool = False
    name: ClassVar[str] = "bias_correction"
    examples: ClassVar[tuple[str, ...]] = ("bias_correction:w8a8", "bias_correction:w8a8,equalize=true")
    tags: ClassVar[QuantizationTags] = QuantizationTags(
        level=bits_of,
        reference="Nagel et al., Data-free quantization through weight equalization and bias correction, ICCV 2019, "
        "arXiv 1906.04721",
    )

    def plan(self, model: nn.Module, level: Any, context: Context) -> QuantPlan:
        """The plan for `model` with its batch norm folded; its writes are biases, and weights if they are equalized.

        Args:
            level: `w8a8` or `w8` (weights alone), 2 to 8 bits each.
        Raises:
            LevelError: no such bits.
            ModelError: nothing to quantize, or calibration data that is missing, empty or not finite.
        """
        bits = bits_of(self.name, level)
        calibration = context.need_calibration(self.name)
        prepared = prepare(model, context, self.name)
        equal = equalize(prepared) if self.equalize else {}
        write(prepared, equal)
        weights = {name: choose_weight(w, bits.weights, self.granularity) for name, w in prepared.weights.items()}

        def decide(layer: Layer) -> Mapping[str, Tensor]:
            rounded = {layer.name: fake_quantize(layer.weight, weights[layer.name])}
            if layer.bias is None or layer.bias_name is None:
                return rounded
            missing = mean_output(layer.weight, layer.watch_float) - mean_output(rounded[layer.name], layer.watch)
            return rounded | {layer.bias_name: layer.bias + missing.to(layer.bias.dtype)}

        decided = decide_layers(prepared, calibration, decide, context, self.name)
        biases = {name: values for name, values in decided.items() if name not in weights}
        return complete(prepared, weights, equal | biases, bits, calibration, self.name)


def mean_output(weight: Tensor, watch: Callable[[Callable[[Tensor], None]], None]) -> Tensor:
    """W E[x], float64 [outputs]."""
    total: list[Tensor] = []
    count = 0

    def see(patches: Tensor) -> None:
        nonlocal count
        count += patches.shape[1]
        found = patches.sum(1, dtype=torch.float64)
        total[:] = [total[0] + found if total else found]

    watch(see)
    mean = total[0] / count
    rows = weight.double().reshape(len(mean), len(weight) // len(mean), -1)
    return (rows @ mean[:, :, None]).flatten()
