"""SmoothQuant: what is hard to quantize in activations is moved into the weights that read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pruning_bench.contracts import Context
from pruning_bench.levels import both_bits_of
from pruning_bench.options import Checked, Share
from pruning_bench.quantization.contract import QuantizationTags, QuantPlan, quantization_method
from pruning_bench.quantization.layerwise import Layer, decide_layers
from pruning_bench.quantization.plans import choose_weight, complete, prepare, write
from pruning_bench.quantization.seams import channel_values, find_seams, input_peaks, scale


@quantization_method
@dataclass(frozen=True)
class SmoothQuant(Checked):
    """`smoothquant:w8a8`: channels of large activations are made smaller, the weights that read them larger.

    s_j = max|X_j|^alpha / max|W_j|^(1 - alpha) for every channel j that a layer norm or a layer makes and that reaches
    layers alone, through operators such as ReLU or transposition: the norm's or the layer's channel j is divided by
    s_j, the weights of the readers are multiplied; the float model computes what it did. X are the inputs of the
    readers over all calibration examples, W the weights of all of them. Other layers stay as they are. Then as
    `static`, with one scale per output channel.

    Args:
        alpha: how much of the difficulty is moved from activations into weights, in [0, 1].
    Reference:
        Xiao et al., SmoothQuant: accurate and efficient post-training quantization for large language models,
        ICML 2023, arXiv 2211.10438.
    """

    alpha: Share = 0.5
    name: ClassVar[str] = "smoothquant"
    examples: ClassVar[tuple[str, ...]] = ("smoothquant:w8a8",)
    tags: ClassVar[QuantizationTags] = QuantizationTags(
        level=both_bits_of,
        reference="Xiao et al., SmoothQuant: accurate and efficient post-training quantization for large language "
        "models, ICML 2023, arXiv 2211.10438",
    )

    def plan(self, model: nn.Module, level: Any, context: Context) -> QuantPlan:
        """The plan for `model` with its batch norm folded; its writes are the weights of norms and layers.

        Args:
            level: `w8a8`, 2 to 8 bits each.
        Raises:
            LevelError: no such bits.
            ModelError: nothing to quantize, or calibration data that is missing, empty or not finite.
        """
        bits = both_bits_of(self.name, level)
        calibration = context.need_calibration(self.name)
        prepared = prepare(model, context, self.name)
        seams = find_seams(prepared)
        read = {name for seam in seams for name in seam.readers}
        peaks: dict[str, Tensor] = {}

        def decide(layer: Layer) -> Mapping[str, Tensor]:
            def see(patches: Tensor) -> None:
                found = patches.abs().amax(1)
                peaks[layer.name] = torch.maximum(peaks.get(layer.name, found), found)

            if layer.name in read:
                layer.watch(see)
            return {}

        decide_layers(prepared, calibration, decide, context, self.name)
        writes: dict[str, Tensor] = {}
        for seam in seams:
            now = prepared.parameters | writes
            channels = len(now[seam.weight])
            inputs = [
                channel_values(peaks[n], now[n], channels, repeats).amax(1) for n, repeats in seam.readers.items()
            ]
            weights = [input_peaks(now[n], channels, repeats) for n, repeats in seam.readers.items()]
            factors = smoothing(torch.stack(inputs).amax(0), torch.stack(weights).amax(0), self.alpha)
            writes |= scale(now, seam, factors)
        write(prepared, writes)
        affines = {name: choose_weight(w, bits.weights, "per_channel") for name, w in prepared.weights.items()}
        return complete(prepared, affines, writes, bits, calibration, self.name)


def smoothing(inputs: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """max|X|^alpha / max|W|^(1 - alpha) per channel; 1 where either is zero.

    Example:
        >>> smoothing(torch.tensor([16.0, 0.0]), torch.tensor([4.0, 1.0]), 0.5)
        tensor([2., 1.])
    """
    alive = (inputs > 0) & (weights > 0)
    return torch.where(alive, inputs.pow(alpha) / weights.pow(1 - alpha), 1.0)
