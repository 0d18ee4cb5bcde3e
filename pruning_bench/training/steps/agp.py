"""Automated gradual pruning: magnitude masks that grow along a cubic curve while the model trains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from pruning_bench.levels import sparsity_of
from pruning_bench.options import Count, Range
from pruning_bench.pruning.contract import MaskPlan
from pruning_bench.pruning.masks import KeepPruned, choose_masks, keep_pruned, prunable
from pruning_bench.training.contract import StepTags, training_step
from pruning_bench.training.tuning import TuneOptions, Tuning

if TYPE_CHECKING:
    from pruning_bench.contracts import Context


def cubic(step: int, last: int, final: float) -> float:
    """The sparsity after `step` of `last` steps: final * (1 - (1 - step / last)^3), from 0 up, then constant.

    Example:
        >>> [cubic(step, 4, 0.64) for step in (0, 2, 4, 9)]
        [0.0, 0.56, 0.64, 0.64]
    """
    return final * (1 - (1 - min(step / last, 1)) ** 3) if step < last else final


@training_step
@dataclass(frozen=True)
class Agp(TuneOptions):
    """Prunes the weights of smallest magnitude while it trains, ever more: s_t = s_f (1 - (1 - t / n)^3).

    The level is the final sparsity s_f, in [0, 1), a share of what earlier steps left (so that s_i = 0); n steps of the
    optimizer are the share `ramp` of all. What is pruned stays pruned.

    Args:
        epochs: of the whole training, at least 1.
        every: steps from one choice of masks to the next, at least 1.
        ramp: share of the training in which the sparsity rises, in (0, 1].
        scope: "global" ranks all prunable weights together, "layer" each tensor by itself.
    Other options: see `TuneOptions`.
    """

    epochs: Count = 3
    every: Count = 10
    ramp: Annotated[float, Range("(0, 1]")] = 0.75
    scope: Literal["layer", "global"] = "global"

    name: ClassVar[str] = "agp"
    examples: ClassVar[tuple[str, ...]] = ("agp:0.9",)
    tags: ClassVar[StepTags] = StepTags(
        level=sparsity_of,
        reference="Zhu and Gupta, To prune, or not to prune: exploring the efficacy of pruning for model compression, "
        "2017, arXiv 1710.01878",
    )

    def run(self, model: nn.Module, level: Any, plans: Sequence[Any], context: Context) -> Sequence[MaskPlan]:
        """Trains `model` in place and returns the plan of all that is pruned at the end.

        Raises:
            LevelError: a level out of range.
        """
        train = context.need_train(self.name)
        final = sparsity_of(self.name, level)
        config = self.config(self.epochs, context.generator)
        weights = prunable(model, context.example_inputs)
        tuning = Tuning(model, train, config, plans, context)
        last = max(1, math.floor(self.ramp * config.epochs * tuning.steps))
        growing = _Growing(model, weights, context, self.scope, tuning.optimizer)

        def prune(*_: Any) -> None:
            growing.step += 1
            if growing.step == last or (growing.step < last and growing.step % self.every == 0):
                growing.grow(cubic(growing.step, last, final))

        tuning.optimizer.register_step_pre_hook(prune)
        tuning.run()
        growing.stop()
        return [MaskPlan(growing.masks)]


class _Growing:
    """Masks that lose weights as the sparsity rises, held through training."""

    def __init__(
        self,
        model: nn.Module,
        weights: dict[str, nn.Parameter],
        context: Context,
        scope: Literal["layer", "global"],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        self._model, self._weights, self._scope, self._optimizer = model, weights, scope, optimizer
        self._earlier = context.earlier
        self._held: KeepPruned | None = None
        self.step = 0
        self.masks: dict[str, Tensor] = {}
        self.grow(0.0)

    def grow(self, sparsity: float) -> None:
        """Chooses the masks of this sparsity; those before lie within what they prune."""
        scores = {}
        for name, weight in self._weights.items():
            size = weight.detach().abs().cpu()
            scores[name] = size.masked_fill(~self.masks[name], -1) if self.masks else size
        self.masks = choose_masks(scores, sparsity, self._scope, self._earlier)
        self.stop()
        self._held = keep_pruned(self._model, [MaskPlan(self.masks)], self._optimizer)

    def stop(self) -> None:
        """Lets the weights go."""
        if self._held is not None:
            self._held.remove()
