"""Random pruning: the control that every criterion must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from pruning_bench.contracts import Context
from pruning_bench.levels import sparsity_of
from pruning_bench.pruning.contract import MaskPlan, PruningTags, pruning_method
from pruning_bench.pruning.masks import choose_masks, prunable


@pruning_method
@dataclass(frozen=True)
class Random:
    """Removes single weights at random: score ~ U(0, 1), drawn for every prunable weight from the context's generator.

    Args:
        scope: "global" removes `level` of all prunable weights together, "layer" of each tensor.
    Example:
        >>> model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2))
        >>> context = Context((torch.zeros(2, 4),), torch.Generator().manual_seed(0))
        >>> Random().plan(model, 0.25, context).sparsity
        0.25
    """

    scope: Literal["layer", "global"] = "global"
    name: ClassVar[str] = "random"
    examples: ClassVar[tuple[str, ...]] = ("random:0.9",)
    tags: ClassVar[PruningTags] = PruningTags(structure="element", level=sparsity_of, random=True)

    def plan(self, model: nn.Module, level: Any, context: Context) -> MaskPlan:
        """A mask over all prunable weights; `level` is the share removed of what earlier steps left, in [0, 1)."""
        sparsity = sparsity_of(self.name, level)
        weights = prunable(model, context.example_inputs)
        scores = {name: torch.rand(weight.shape, generator=context.generator) for name, weight in weights.items()}
        return MaskPlan(choose_masks(scores, sparsity, self.scope, context.earlier))
