"""Magnitude pruning: the smallest weights go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from pruning_bench.contracts import Context
from pruning_bench.pruning.contract import MaskPlan, PruningTags, pruning_method
from pruning_bench.pruning.masks import choose_masks, prunable
from pruning_bench.recipe import sparsity_of


@pruning_method
@dataclass(frozen=True)
class Magnitude:
    """Removes the weights of smallest absolute value: score = |w|.

    Args:
        scope: "global" ranks all prunable weights together, "layer" each tensor by itself.
    Reference:
        Han et al., Learning both weights and connections for efficient neural networks, NeurIPS 2015, arXiv 1506.02626.
    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2))
        >>> model[0].weight.data = torch.tensor([[1.0, -4.0], [3.0, -2.0]])
        >>> context = Context((torch.zeros(2, 2),), torch.Generator())
        >>> Magnitude().plan(model, 0.5, context).masks
        {'0.weight': tensor([[False,  True],
                [ True, False]])}
    """

    scope: Literal["layer", "global"] = "global"
    name: ClassVar[str] = "magnitude"
    examples: ClassVar[tuple[str, ...]] = ("magnitude:0.5", "magnitude:0.9", "magnitude:0.9,scope=layer")
    tags: ClassVar[PruningTags] = PruningTags(
        structure="element",
        reference="Han et al., Learning both weights and connections, NeurIPS 2015, arXiv 1506.02626",
    )

    def plan(self, model: nn.Module, level: Any, context: Context) -> MaskPlan:
        """A mask over all prunable weights; `level` is the share removed of what earlier steps left, in [0, 1)."""
        sparsity = sparsity_of(self.name, level)
        weights = prunable(model, context.example_inputs)
        scores = {name: weight.detach().abs() for name, weight in weights.items()}
        return MaskPlan(choose_masks(scores, sparsity, self.scope, context.earlier))
