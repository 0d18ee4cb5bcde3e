"""Filter pruning by geometric median: the filters that the others of their layer can best replace go."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pruning_bench.contracts import Context
from pruning_bench.levels import sparsity_of
from pruning_bench.pruning.channel_scores import filter_scores
from pruning_bench.pruning.channels import ChannelOptions, plan_channels
from pruning_bench.pruning.contract import ChannelPlan, PruningTags, pruning_method
from pruning_bench.pruning.couplings import Couplings


@pruning_method
@dataclass(frozen=True)
class Fpgm(ChannelOptions):
    """Removes channels: score of a channel = sum over the other filters g of its layer of |f - g|, its own filter f.

    The filters of least distance to all others lie at the geometric median of their layer. Layers coupled by a residual
    add make a channel together, so that their distances are summed. With scope "global" the score is the mean over the
    other filters of the root of the mean of (f - g)^2, as layers differ in the number and size of their filters.

    Args:
        scope, budget, round_to: see `ChannelOptions`.
    Reference:
        He et al., Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration, CVPR 2019,
        arXiv 1811.00250.
    Example:
        >>> model = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> model[0].weight.data = torch.tensor([[9.0], [8.0], [0.1]])  # distances 9.9, 8.9 and 16.8
        >>> context = Context((torch.zeros(2, 1),), torch.Generator())
        >>> Fpgm().plan(model, 0.34, context).kept["0.weight"]
        {0: tensor([0, 2])}
    """

    name: ClassVar[str] = "fpgm"
    examples: ClassVar[tuple[str, ...]] = ("fpgm:0.5",)
    tags: ClassVar[PruningTags] = PruningTags(
        structure="channel",
        level=sparsity_of,
        reference="He et al., Filter Pruning via Geometric Median, CVPR 2019, arXiv 1811.00250",
    )

    def plan(self, model: nn.Module, level: Any, context: Context) -> ChannelPlan:
        """The channels that stay; `level` is the share removed, in [0, 1)."""
        weights = dict(model.named_parameters(remove_duplicate=False))

        def distances(filters: Tensor) -> Tensor:
            total: Tensor = torch.cdist(filters, filters).sum(1)
            others, size = max(len(filters) - 1, 1), filters.shape[1]
            return total if self.scope == "layer" else total / (others * math.sqrt(size))

        def layers(filters: Tensor) -> Tensor:
            return torch.ones(len(filters))

        def score(couplings: Couplings) -> dict[str, Tensor]:
            summed = filter_scores(weights, couplings, distances)
            if self.scope == "layer":
                return summed
            made_by = filter_scores(weights, couplings, layers)
            return {name: values / made_by[name] for name, values in summed.items()}

        return plan_channels(self, model, level, context, score)
