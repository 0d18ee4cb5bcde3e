"""Filter pruning by L1 norm: the channels made by the smallest filters go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from pruning_bench.contracts import Context
from pruning_bench.pruning.channels import filter_norms, filter_sizes, keep_channels, require_couplings
from pruning_bench.pruning.contract import ChannelPlan, PruningTags, pruning_method
from pruning_bench.recipe import sparsity_of


@pruning_method
@dataclass(frozen=True)
class L1Filter:
    """Removes channels: score of a channel = sum of |w| over the filters of all layers that make it.

    Layers coupled by a residual add make a channel together, so that their filters are summed.

    Args:
        scope: "layer" removes `level` of every coupling; "global" ranks all channels together, by the mean |w| instead
            of the sum, as couplings differ in the size of their filters. One channel of each coupling always stays.
    Reference:
        Li et al., Pruning filters for efficient ConvNets, ICLR 2017, arXiv 1608.08710.
    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> model[0].weight.data = torch.tensor([[3.0], [1.0], [-2.0]])
        >>> context = Context((torch.zeros(2, 1),), torch.Generator())
        >>> L1Filter().plan(model, 0.34, context).kept["0.weight"]
        {0: tensor([0, 2])}
    """

    scope: Literal["layer", "global"] = "layer"
    name: ClassVar[str] = "l1_filter"
    examples: ClassVar[tuple[str, ...]] = ("l1_filter:0.25", "l1_filter:0.5")
    tags: ClassVar[PruningTags] = PruningTags(
        structure="channel",
        reference="Li et al., Pruning filters for efficient ConvNets, ICLR 2017, arXiv 1608.08710",
    )

    def plan(self, model: nn.Module, level: Any, context: Context) -> ChannelPlan:
        """The channels that stay; `level` is the share removed, in [0, 1)."""
        sparsity = sparsity_of(self.name, level)
        couplings = require_couplings(model, context.example_inputs)
        scores = filter_norms(model, couplings)
        if self.scope == "global":
            sizes = filter_sizes(model, couplings)
            scores = {name: score / sizes[name] for name, score in scores.items()}
        return couplings.plan(keep_channels(scores, sparsity, self.scope))
