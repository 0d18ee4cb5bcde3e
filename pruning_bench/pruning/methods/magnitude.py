"""Magnitude pruning: the smallest weights go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from pruning_bench.contracts import Context
from pruning_bench.options import Checked, Count
from pruning_bench.pruning.contract import MaskPlan, PruningTags, pruning_method
from pruning_bench.pruning.masks import prunable, transposed
from pruning_bench.pruning.patterns import Scope, level_of, plan_masks
from pruning_bench.pruning.selection import LazyScores


@pruning_method
@dataclass(frozen=True)
class Magnitude(Checked):
    """Removes the weights of smallest absolute value: score = |w|.

    Args:
        scope: "global" ranks all prunable weights together, "layer" each tensor by itself, "erk" gives each tensor a
            density in proportion to sum(shape) / prod(shape) (Evci et al., ICML 2020, arXiv 1911.11134).
        block: this many inputs in a row, at one place of a kernel, stay or go together, those of smallest root mean
            square first; the level is the share of blocks. The last block of a row has what is left of its inputs.
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

    scope: Scope = "global"
    block: Count = 1
    name: ClassVar[str] = "magnitude"
    examples: ClassVar[tuple[str, ...]] = (
        "magnitude:0.5",
        "magnitude:0.9",
        "magnitude:0.9,scope=layer",
        "magnitude:2of4",
        "magnitude:0.7,block=4",
    )
    tags: ClassVar[PruningTags] = PruningTags(
        structure="element",
        level=level_of,
        reference="Han et al., Learning both weights and connections, NeurIPS 2015, arXiv 1506.02626",
    )

    def plan(self, model: nn.Module, level: Any, context: Context) -> MaskPlan:
        """A mask over all prunable weights.

        Args:
            level: the share removed of what earlier steps left, in [0, 1); or N of M: N of every M inputs stay.
        """
        read = level_of(self.name, level)
        weights = prunable(model, context.example_inputs)
        scores = LazyScores(weights, lambda name: weights[name].detach().abs())
        return plan_masks(scores, read, self.scope, context.earlier, self.block, transposed(model))
