"""GPTQ: weights rounded column by column, each error made up for by the columns that are not rounded yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pruning_bench.contracts import Context
from pruning_bench.levels import bits_of
from pruning_bench.options import Checked, Group, Positive
from pruning_bench.pruning.inverse_hessians import inverse_root, sweep
from pruning_bench.quantization.affine import fake_quantize
from pruning_bench.quantization.contract import Affine, QuantizationTags, QuantPlan, quantization_method
from pruning_bench.quantization.layerwise import Grams, Layer, decide_layers
from pruning_bench.quantization.plans import choose_group, choose_weight, complete, prepare

_BLOCK = 128  # columns whose errors reach the others in one product


@quantization_method
@dataclass(frozen=True)
class Gptq(Checked):
    """`gptq:w4`, `gptq:w4a8`: rounds one column of a weight after the other and lets those behind make up for it.

    With X the inputs of a layer over all calibration examples, H = X X^T + damping * mean(diag(X X^T)) * I and H_j the
    part of it from column j on: when w_ij becomes q_ij, its row changes from column j on by
    -(w_ij - q_ij) / [H_j^-1]_jj * [H_j^-1]_j, so that W X changes least. Layers are done one after the other, each with
    the inputs that the rounded ones before it give. A weight that is zero stays zero. With activations (`w4a8`) their
    ranges are those of the model with the new weights.

    Args:
        group: columns that share a scale, 0 for one scale per output channel; a group's scale spans its weights as they
            are when its first column is rounded. Weights alone have groups.
        damping: share of the mean of H's diagonal that is added to it, above 0.
        ordered: round the columns of the largest inputs first; without effect on groups.
    Reference:
        Frantar et al., GPTQ: accurate post-training quantization for generative pre-trained transformers, ICLR 2023,
        arXiv 2210.17323.
    """

    group: Group = 0
    damping: Positive = 0.01
    ordered: bool = False
    name: ClassVar[str] = "gptq"
    examples: ClassVar[tuple[str, ...]] = ("gptq:w4", "gptq:w4,group=32", "gptq:w4a8")
    tags: ClassVar[QuantizationTags] = QuantizationTags(
        level=bits_of,
        activations=False,
        reference="Frantar et al., GPTQ: accurate post-training quantization for generative pre-trained transformers, "
        "ICLR 2023, arXiv 2210.17323",
    )

    def plan(self, model: nn.Module, level: Any, context: Context) -> QuantPlan:
        """The plan for `model` with its batch norm folded; its writes lie on the grid, but where `complete` widens it.

        Args:
            level: `w4` (weights alone) or `w4a8`, 2 to 8 bits each.
        Raises:
            LevelError: no such bits.
            ModelError: nothing to quantize, or calibration data that is missing, empty or not finite.
        """
        bits = bits_of(self.name, level)
        group = choose_group(self.name, self.group, bits)
        calibration = context.need_calibration(self.name)
        prepared = prepare(model, context, self.name)
        grams, weights = Grams(self.name), dict[str, Affine]()

        def decide(layer: Layer) -> Mapping[str, Tensor]:
            values, weights[layer.name] = self._round(layer, grams.of(layer), bits.weights, group)
            return {layer.name: values}

        writes = decide_layers(prepared, calibration, decide, context, self.name)
        return complete(prepared, weights, writes, bits, calibration, self.name)

    def _round(self, layer: Layer, gram: Tensor, bits: int, group: int | None) -> tuple[Tensor, Affine]:
        weight, parts = layer.weight, len(gram)
        rows = weight.detach().reshape(parts, len(weight) // parts, -1)
        if group is not None:
            root, _ = inverse_root(gram, self.damping, layer.name, self.name)
            values, affine = round_columns(rows, root, bits, group)
            return values.view_as(weight), affine
        affine = choose_weight(weight, bits, "per_channel")
        order = gram.diagonal(dim1=1, dim2=2).sum(0).argsort(descending=True, stable=True)
        order = order if self.ordered else torch.arange(len(order))
        root, _ = inverse_root(gram[:, order][:, :, order], self.damping, layer.name, self.name)
        back = order.argsort()
        values, _ = round_columns(rows[..., order], root, bits, None)
        return values[..., back].reshape(weight.shape), affine


def round_columns(rows: Tensor, root: Tensor, bits: int, group: int | None) -> tuple[Tensor, Affine]:
    """Values on the grid, by the formula of `Gptq`, and the grid.

    Args:
        rows: float32 [parts, r, c]: the weights of a grouped convolution's parts; of other layers there is one.
        root: float64 [parts, c, c], see `inverse_root`.
        bits: 2 to 8.
        group: columns that share a scale, None for all.
    Returns:
        float32 of the shape of `rows`; scales [parts * r] or [parts * r, groups].
    Example:
        >>> identity = torch.eye(2, dtype=torch.float64)[None]
        >>> values, affine = round_columns(torch.tensor([[[3.0, 1.2]]]), identity, 3, None)
        >>> values
        tensor([[[3., 1.]]])
    """
    width = rows.shape[2] if group is None else group
    zero, made, found = rows == 0, torch.empty_like(rows), list[Affine]()

    def decide(now: Tensor, at: int, stop: int) -> Tensor:
        if at % width == 0:
            span = now[..., at : at + width].masked_fill(zero[..., at : at + width], 0)
            found.append(choose_weight(span.flatten(0, 1).float(), bits, "per_channel"))
        grid = found[-1]
        column = Affine(grid.scale.view(rows.shape[:2]), grid.zero_point.view(rows.shape[:2]), grid.low, grid.high)
        made[..., at] = fake_quantize(now[..., at].float(), column).masked_fill(zero[..., at], 0)
        return made[..., at].double()

    block = _BLOCK if group is None else max(1, _BLOCK // group) * group
    sweep(rows.double(), root, block, decide)
    if group is None:
        return made, found[0]
    scale, zero_point = (torch.stack([getattr(a, part) for a in found], 1) for part in ("scale", "zero_point"))
    return made, Affine(scale, zero_point, found[0].low, found[0].high, 0, group)
