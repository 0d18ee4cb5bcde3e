"""Random channel pruning: the control that every criterion for channels must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from pruning_bench.contracts import Context
from pruning_bench.levels import sparsity_of
from pruning_bench.pruning.channels import ChannelOptions, plan_channels
from pruning_bench.pruning.contract import ChannelPlan, PruningTags, pruning_method


@pruning_method
@dataclass(frozen=True)
class RandomFilter(ChannelOptions):
    """Removes channels at random: score ~ U(0, 1), drawn for every channel from the context's generator.

    Args:
        scope, budget, round_to: see `ChannelOptions`.
    Reference:
        Mittal et al., Recovering from Random Pruning, WACV 2018, arXiv 1801.10447.
    Example:
        >>> model = nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 1))
        >>> context = Context((torch.zeros(2, 1),), torch.Generator().manual_seed(0))
        >>> RandomFilter().plan(model, 0.25, context).removed
        {'0': (2, 8)}
    """

    name: ClassVar[str] = "random_filter"
    examples: ClassVar[tuple[str, ...]] = ("random_filter:0.5",)
    tags: ClassVar[PruningTags] = PruningTags(
        structure="channel",
        level=sparsity_of,
        random=True,
        reference="Mittal et al., Recovering from Random Pruning, WACV 2018, arXiv 1801.10447",
    )

    def plan(self, model: nn.Module, level: Any, context: Context) -> ChannelPlan:
        """The channels that stay; `level` is the share removed, in [0, 1)."""
        return plan_channels(
            self,
            model,
            level,
            context,
            lambda found: {
                name: torch.rand(len(units), generator=context.generator) for name, units in found.groups.items()
            },
        )
