"""Filter pruning by L1 norm: the channels made by the smallest filters go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from pruning_bench.contracts import Context
from pruning_bench.levels import sparsity_of
from pruning_bench.pruning.channel_scores import filter_norms, filter_sizes
from pruning_bench.pruning.channels import ChannelOptions, plan_channels
from pruning_bench.pruning.contract import ChannelPlan, PruningTags, pruning_method
from pruning_bench.pruning.couplings import Couplings


@pruning_method
@dataclass(frozen=True)
class L1Filter(ChannelOptions):
    """Removes channels: score of a channel = sum of |w| over the filters of all layers that make it.

    Layers coupled by a residual add make a channel together, so that their filters are summed. With scope "global" the
    score is the mean |w| instead of the sum, as couplings differ in the size of their filters.

    Args:
        scope, budget, round_to: see `ChannelOptions`.
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

    name: ClassVar[str] = "l1_filter"
    examples: ClassVar[tuple[str, ...]] = ("l1_filter:0.25", "l1_filter:0.5")
    tags: ClassVar[PruningTags] = PruningTags(
        structure="channel",
        level=sparsity_of,
        reference="Li et al., Pruning filters for efficient ConvNets, ICLR 2017, arXiv 1608.08710",
    )

    def plan(self, model: nn.Module, level: Any, context: Context) -> ChannelPlan:
        """The channels that stay; `level` is the share removed, in [0, 1)."""

        def score(couplings: Couplings) -> dict[str, Tensor]:
            norms = filter_norms(model, couplings)
            if self.scope == "layer":
                return norms
            sizes = filter_sizes(model, couplings)
            return {name: norm / sizes[name] for name, norm in norms.items()}

        return plan_channels(self, model, level, context, score)
