"""AWQ: weights that meet large activations are scaled up before they are rounded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pruning_bench.contracts import Context
from pruning_bench.levels import Bits, weight_bits_of
from pruning_bench.options import Checked, Group
from pruning_bench.quantization.affine import fake_quantize
from pruning_bench.quantization.contract import QuantizationTags, QuantPlan, quantization_method
from pruning_bench.quantization.layerwise import Grams, Layer, decide_layers
from pruning_bench.quantization.plans import choose_group, choose_weight, complete, prepare, write
from pruning_bench.quantization.seams import Seam, channel_values, find_seams, scale

GRID = 20  # exponents that are tried


@quantization_method
@dataclass(frozen=True)
class Awq(Checked):
    """`awq:w4`, `awq:w4,group=32`: channels of large activations get finer weights, by scaling them up.

    For the channels that a layer norm or a layer makes and that reach layers alone: s = m^a / sqrt(max(m^a) *
    min(m^a)), m_j the mean of |x_j| over all calibration examples; the maker's channel j is divided by s_j, the weights
    W of the readers are multiplied. Of a = 0, 1/20 ... 19/20 the one is taken with which the sum over the readers of
    ||Q(W s) x / s - W x||^2 is least. The float model computes what it did. Other layers stay as they are, and all
    weights are rounded to nearest.

    Args:
        group: columns that share a scale, 0 for one scale per output channel.
    Reference:
        Lin et al., AWQ: activation-aware weight quantization for LLM compression and acceleration, MLSys 2024,
        arXiv 2306.00978.
    """

    group: Group = 0
    name: ClassVar[str] = "awq"
    examples: ClassVar[tuple[str, ...]] = ("awq:w4", "awq:w4,group=32")
    tags: ClassVar[QuantizationTags] = QuantizationTags(
        level=weight_bits_of,
        activations=False,
        reference="Lin et al., AWQ: activation-aware weight quantization for LLM compression and acceleration, "
        "MLSys 2024, arXiv 2306.00978",
    )

    def plan(self, model: nn.Module, level: Any, context: Context) -> QuantPlan:
        """The plan for `model` with its batch norm folded; its writes are the weights of norms and layers.

        Args:
            level: `w4`, 2 to 8 bits of weights alone.
        Raises:
            LevelError: no such bits.
            ModelError: nothing to quantize, or calibration data that is missing, empty or not finite.
        """
        bits = weight_bits_of(self.name, level)
        group = choose_group(self.name, self.group, bits)
        calibration = context.need_calibration(self.name)
        prepared = prepare(model, context, self.name)
        of_reader = {name: seam for seam in find_seams(prepared) for name in seam.readers}
        seen, grams, factors = dict[str, Read](), Grams(self.name), dict[str, Tensor]()

        def decide(layer: Layer) -> Mapping[str, Tensor]:
            seam = of_reader.get(layer.name)
            if seam is None:
                return {}
            seen[layer.name] = Read(layer.weight, mean_inputs(layer), grams.of(layer).float())
            if all(name in seen for name in seam.readers):
                reads = {name: seen.pop(name) for name in seam.readers}
                factors[seam.weight] = search(seam, reads, len(prepared.parameters[seam.weight]), bits, group)
            return {}

        decide_layers(prepared, calibration, decide, context, self.name)
        writes: dict[str, Tensor] = {}
        for seam in {seam.weight: seam for seam in of_reader.values()}.values():
            writes |= scale(prepared.parameters | writes, seam, factors[seam.weight])
        write(prepared, writes)
        granularity = "per_channel" if group is None else "per_group"
        weights = {name: choose_weight(w, bits.weights, granularity, group) for name, w in prepared.weights.items()}
        return complete(prepared, weights, writes, bits, calibration, self.name)


@dataclass(frozen=True)
class Read:
    """A layer that reads scaled channels.

    Args:
        weight: in float.
        means: E|x|, [parts, columns].
        gram: X X^T, float32 [parts, columns, columns].
    """

    weight: Tensor
    means: Tensor
    gram: Tensor


def mean_inputs(layer: Layer) -> Tensor:
    """E|x| of what a layer's weight is multiplied with, [parts, columns]."""
    total: list[Tensor] = []
    count = 0

    def see(patches: Tensor) -> None:
        nonlocal count
        count += patches.shape[1]
        found = patches.abs().sum(1)
        total[:] = [total[0] + found if total else found]

    layer.watch(see)
    return total[0] / count


def search(seam: Seam, reads: Mapping[str, Read], channels: int, bits: Bits, group: int | None) -> Tensor:
    """The factors of `Awq` with the least error, [channels]; all 1 where no others do better."""
    means = torch.stack(
        [channel_values(r.means, r.weight, channels, seam.readers[name]).mean(1) for name, r in reads.items()]
    ).mean(0)
    best, least = torch.ones(channels), float("inf")
    for step in range(GRID):
        powers = torch.where(means > 0, means, 1.0).pow(step / GRID)
        factors = powers / (powers.amax() * powers.amin()).sqrt()
        error = rounding_error(seam, reads, factors, bits, group)
        if error < least:
            best, least = factors, error
    return best


def rounding_error(seam: Seam, reads: Mapping[str, Read], factors: Tensor, bits: Bits, group: int | None) -> float:
    """||Q(W s) x / s - W x||^2, summed over readers and calibration examples."""
    weights = {name: read.weight for name, read in reads.items()}
    alone = Seam("", None, False, seam.readers)
    made = scale(weights | {"": factors}, alone, factors)
    granularity = "per_channel" if group is None else "per_group"
    total = 0.0
    for name, read in reads.items():
        rounded = fake_quantize(made[name], choose_weight(made[name], bits.weights, granularity, group))
        back = scale({"": factors, name: rounded}, Seam("", None, False, {name: seam.readers[name]}), 1 / factors)
        change = (back[name] - read.weight).reshape(len(read.gram), -1, read.gram.shape[1])
        total += float(((change @ read.gram) * change).sum(dtype=torch.float64))
    return total
