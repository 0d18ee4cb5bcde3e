"""Filter pruning by L2 norm: the channels made by the filters of least energy go."""

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
class L2Filter(ChannelOptions):
    """Removes channels: score of a channel = sqrt(sum of w^2) over the filters of all layers that make it.

    With scope "global" the score is the root of the mean of w^2, as couplings differ in the size of their filters.

    Args:
        scope, budget, round_to: see `ChannelOptions`.
    Reference:
        He et al., Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks, IJCAI 2018,
        arXiv 1808.06866.
    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> model[0].weight.data = torch.tensor([[3.0, 3.0], [0.0, 5.0]])  # the sums of |w| are 6 and 5
        >>> context = Context((torch.zeros(2, 2),), torch.Generator())
        >>> L2Filter().plan(model, 0.5, context).kept["0.weight"]
        {0: tensor([1])}
    """

    name: ClassVar[str] = "l2_filter"
    examples: ClassVar[tuple[str, ...]] = ("l2_filter:0.5",)
    tags: ClassVar[PruningTags] = PruningTags(
        structure="channel",
        level=sparsity_of,
        reference="He et al., Soft Filter Pruning, IJCAI 2018, arXiv 1808.06866",
    )

    def plan(self, model: nn.Module, level: Any, context: Context) -> ChannelPlan:
        """The channels that stay; `level` is the share removed, in [0, 1)."""

        def score(couplings: Couplings) -> dict[str, Tensor]:
            squares = filter_norms(model, couplings, power=2)
            if self.scope == "layer":
                return {name: values.sqrt() for name, values in squares.items()}
            sizes = filter_sizes(model, couplings)
            return {name: (values / sizes[name]).sqrt() for name, values in squares.items()}

        return plan_channels(self, model, level, context, score)
