"""Network slimming: the channels that batch norms scale down most go."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from pruning_bench.contracts import Context
from pruning_bench.errors import ModelError
from pruning_bench.levels import sparsity_of
from pruning_bench.pruning.channel_scores import norm_scales, unit_sums
from pruning_bench.pruning.channels import ChannelOptions, plan_channels
from pruning_bench.pruning.contract import ChannelPlan, PruningTags, pruning_method
from pruning_bench.pruning.couplings import Couplings
from pruning_bench.pruning.masks import require_finite


@pruning_method
@dataclass(frozen=True)
class BnScale(ChannelOptions):
    """Removes channels: score of a channel = mean of |gamma| over the batch norms that scale it.

    A coupling that no batch norm scales stays whole, and the plan's `untouched` names it. Meant for a model that was
    trained with a penalty on these scales, see the step `slim`.

    Args:
        scope: "global", as in the paper, or "layer"; see `ChannelOptions`.
        budget, round_to: see `ChannelOptions`.
    Raises:
        ModelError: no batch norm scales a removable channel.
    Reference:
        Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017, arXiv 1708.06519.
    Example:
        >>> model = nn.Sequential(nn.Linear(1, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 1)).eval()
        >>> model[1].weight.data = torch.tensor([0.1, -2.0, 1.0])
        >>> context = Context((torch.zeros(2, 1),), torch.Generator())
        >>> BnScale().plan(model, 0.34, context).kept["0.weight"]
        {0: tensor([1, 2])}
    """

    scope: Literal["layer", "global"] = "global"
    name: ClassVar[str] = "bn_scale"
    examples: ClassVar[tuple[str, ...]] = ("slim:2+bn_scale:0.5,scope=layer",)
    example_models: ClassVar[tuple[str, ...]] = ("resnet20", "mobilenet_v2")  # the others have no batch norm
    tags: ClassVar[PruningTags] = PruningTags(
        structure="channel",
        level=sparsity_of,
        needs_batch_norm=True,
        reference="Liu et al., Network Slimming, ICCV 2017, arXiv 1708.06519",
    )

    def plan(self, model: nn.Module, level: Any, context: Context) -> ChannelPlan:
        """The channels that stay; `level` is the share removed, in [0, 1)."""
        unscaled = {}

        def score(couplings: Couplings) -> dict[str, Tensor]:
            scales = norm_scales(model)
            for name, scale in scales.items():
                require_finite(name, scale.detach())
            sums = unit_sums(couplings, {(name, 0): scale.detach().abs() for name, scale in scales.items()})
            norms = unit_sums(couplings, {(name, 0): torch.ones_like(scale) for name, scale in scales.items()})
            found = {name: sums[name] / count for name, count in norms.items() if bool((count > 0).all())}
            unscaled.update({name: "no batch norm scales it" for name in couplings.groups if name not in found})
            if not found:
                where = ", ".join(list(unscaled)[:3])
                raise ModelError(self.name, "no batch norm", "batch norms that scale the removable channels", where)
            return found

        plan = plan_channels(self, model, level, context, score)
        return replace(plan, untouched={**plan.untouched, **unscaled})
