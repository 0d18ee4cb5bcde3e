"""Weight rewinding: the weights of an earlier state under the present masks, as for lottery tickets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from pruning_bench.errors import LevelError, PlanError
from pruning_bench.levels import count_of
from pruning_bench.pruning.contract import ChannelPlan
from pruning_bench.pruning.masks import current_masks
from pruning_bench.pruning.shrink import compose, first_named, take
from pruning_bench.training.contract import StepTags, training_step

if TYPE_CHECKING:
    from pruning_bench.contracts import Context


def step_of(who: str, level: Any) -> int:
    """The level as a number of steps, 0 without one; raises `LevelError` otherwise."""
    return 0 if level is None else count_of(who, level, least=0)


@training_step
@dataclass(frozen=True)
class Rewind:
    """Sets everything that is kept back to its value after the first `level` steps of the recipe, repeats unrolled.

    0, or no level, is the model that came in. Weights, biases, norms and their statistics go back; what masks and
    channel plans removed since stays removed. The lottery ticket of an untrained model:
    `reinit+finetune:1+repeat(3,finetune:8+magnitude:0.5+rewind:2)+finetune:8`.
    """

    name: ClassVar[str] = "rewind"
    tags: ClassVar[StepTags] = StepTags(
        level=step_of,
        trains_weights=False,
        needs_past=True,
        reference="Frankle and Carbin, The Lottery Ticket Hypothesis, ICLR 2019, arXiv 1803.03635; Renda et al., "
        "Comparing Rewinding and Fine-tuning in Neural Network Pruning, ICLR 2020, arXiv 2003.02389",
    )

    @torch.no_grad()
    def run(self, model: nn.Module, level: Any, plans: Sequence[Any], context: Context) -> None:
        """Sets `model` back in place; raises `LevelError` for a step that was not yet run."""
        to = step_of(self.name, level)
        if to >= len(context.past):
            raise LevelError(self.name, f"level {to}", f"at most {len(context.past) - 1}, the steps before it")
        past = context.past[to]
        kept = compose([plan for plan in plans[past.plans :] if isinstance(plan, ChannelPlan)]).kept
        masks = current_masks(plans)
        own = first_named(model)
        for name, tensor in model.state_dict().items():
            if name not in own:  # tied to one that comes before it
                continue
            if name not in past.state:
                raise PlanError(self.name, "a tensor that the earlier state lacks", "the same tensors", name)
            values = take(past.state[name], kept.get(name, {})).to(tensor)
            if name in masks:
                values = values.masked_fill(~masks[name].to(values.device), 0)
            tensor.copy_(values)
