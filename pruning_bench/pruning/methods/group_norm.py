"""Pruning by group norm: the channels whose weights, in all layers that make or read them, are smallest go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from pruning_bench.contracts import Context
from pruning_bench.levels import sparsity_of
from pruning_bench.pruning.channel_scores import unit_powers
from pruning_bench.pruning.channels import ChannelOptions, plan_channels
from pruning_bench.pruning.contract import ChannelPlan, PruningTags, pruning_method
from pruning_bench.pruning.couplings import Couplings


@pruning_method
@dataclass(frozen=True)
class GroupNorm(ChannelOptions):
    """Removes channels: score of a channel = (sum of |w|^p)^(1/p) over all weights that go with it.

    These are the filters that make the channel, the weights of all layers that read it, and the scales of its batch
    norms; biases do not count. With scope "global" their mean stands for their sum.

    Args:
        p: 2, as in the paper, or 1: the sum of absolute weights.
        scope, budget, round_to: see `ChannelOptions`.
    Reference:
        Fang et al., DepGraph: Towards Any Structural Pruning, CVPR 2023, arXiv 2301.12900.
    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> model[0].weight.data, model[2].weight.data = torch.tensor([[2.0], [1.0]]), torch.tensor([[1.0, 3.0]])
        >>> context = Context((torch.zeros(2, 1),), torch.Generator())
        >>> GroupNorm().plan(model, 0.5, context).kept["0.weight"]  # 2^2 + 1^2 < 1^2 + 3^2
        {0: tensor([1])}
    """

    p: Literal[1, 2] = 2
    name: ClassVar[str] = "group_norm"
    examples: ClassVar[tuple[str, ...]] = ("group_norm:0.5", "group_norm:0.5,p=1")
    tags: ClassVar[PruningTags] = PruningTags(
        structure="channel",
        level=sparsity_of,
        reference="Fang et al., DepGraph: Towards Any Structural Pruning, CVPR 2023, arXiv 2301.12900",
    )

    def plan(self, model: nn.Module, level: Any, context: Context) -> ChannelPlan:
        """The channels that stay; `level` is the share removed, in [0, 1)."""

        def score(couplings: Couplings) -> dict[str, Tensor]:
            sums, counts = unit_powers(model, couplings, self.p)
            over = counts if self.scope == "global" else dict.fromkeys(sums, 1)
            return {name: (values / over[name]) ** (1 / self.p) for name, values in sums.items()}

        return plan_channels(self, model, level, context, score)
