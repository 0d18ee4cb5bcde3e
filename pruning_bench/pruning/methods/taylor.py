"""Taylor pruning: the channels whose removal changes the loss least, to first order, go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from pruning_bench.contracts import Context
from pruning_bench.levels import sparsity_of
from pruning_bench.options import Count
from pruning_bench.pruning.channel_scores import filter_scores
from pruning_bench.pruning.channels import ChannelOptions, plan_channels
from pruning_bench.pruning.contract import ChannelPlan, PruningTags, pruning_method
from pruning_bench.pruning.couplings import Couplings
from pruning_bench.pruning.gradients import batch_gradients


@pruning_method
@dataclass(frozen=True)
class Taylor(ChannelOptions):
    """Removes channels: score of a channel = mean over batches of (sum of dL/dw * w over its filters)^2.

    L is the cross-entropy on a batch of training examples. The sum runs over the filters of all layers that make the
    channel, since they go together; it estimates by how much the loss changes without the channel.

    Args:
        scope: "global", as in the paper: changes of the loss compare between layers; or "layer".
        budget, round_to: see `ChannelOptions`.
        batches: of training examples, drawn without replacement; at least 1.
        batch: examples in each, at least 1.
    Reference:
        Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019, arXiv 1906.10771.
    Example:
        >>> import torch
        >>> from pruning_bench.datasets.contract import Tensors
        >>> model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 2))
        >>> model[0].weight.data = torch.tensor([[9.0], [1.0]])
        >>> model[2].weight.data = torch.tensor([[0.0, 1.0], [0.0, -1.0]])  # nothing depends on the first
        >>> train = Tensors((torch.ones(4, 1),), torch.tensor([0, 1, 0, 1]))
        >>> context = Context((torch.zeros(2, 1),), torch.Generator(), train=train)
        >>> Taylor().plan(model, 0.5, context).kept["0.weight"]
        {0: tensor([1])}
    """

    scope: Literal["layer", "global"] = "global"
    batches: Count = 8
    batch: Count = 64
    name: ClassVar[str] = "taylor"
    examples: ClassVar[tuple[str, ...]] = ("taylor:0.5,scope=layer",)
    tags: ClassVar[PruningTags] = PruningTags(
        structure="channel",
        level=sparsity_of,
        needs_train=True,
        reference="Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019, arXiv 1906.10771",
    )

    def plan(self, model: nn.Module, level: Any, context: Context) -> ChannelPlan:
        """The channels that stay; `level` is the share removed, in [0, 1).

        Raises:
            LevelError: a level out of range.
            ModelError, DataError: no training examples with classes, as `pruning.gradients` says.
        """

        def score(couplings: Couplings) -> dict[str, Tensor]:
            weights = dict(model.named_parameters())
            total: dict[str, Tensor] = {}
            drawn = batch_gradients(model, context, self.name, batches=self.batches, batch=self.batch)
            for count, (_, gradients) in enumerate(drawn, start=1):
                products = {name: gradient * weights[name].detach() for name, gradient in gradients.items()}
                changes = filter_scores(products, couplings, lambda filters: filters.sum(1))
                for name, change in changes.items():
                    before = total.get(name, change.new_zeros(change.shape))
                    total[name] = before + (change.square() - before) / count
            return total

        return plan_channels(self, model, level, context, score)
