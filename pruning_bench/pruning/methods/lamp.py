"""LAMP: magnitude pruning whose scores know how much of their layer is left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pruning_bench.contracts import Context
from pruning_bench.levels import sparsity_of
from pruning_bench.pruning.contract import MaskPlan, PruningTags, pruning_method
from pruning_bench.pruning.masks import choose_masks, prunable
from pruning_bench.pruning.selection import LazyScores


@pruning_method
@dataclass(frozen=True)
class Lamp:
    """Removes the weights of smallest score over all layers: score(u) = w_u^2 / sum of w_v^2, v from u on.

    The weights of a tensor are sorted by magnitude for it, equal ones in the order they stand, so that the last of each
    tensor scores 1.

    Reference:
        Lee et al., Layer-adaptive sparsity for the magnitude-based pruning, ICLR 2021, arXiv 2010.07611.
    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2))
        >>> model[0].weight.data = torch.tensor([[1.0, -4.0], [3.0, -2.0]])
        >>> context = Context((torch.zeros(2, 2),), torch.Generator())
        >>> Lamp().plan(model, 0.5, context).masks
        {'0.weight': tensor([[False,  True],
                [ True, False]])}
    """

    name: ClassVar[str] = "lamp"
    examples: ClassVar[tuple[str, ...]] = ("lamp:0.9",)
    tags: ClassVar[PruningTags] = PruningTags(
        structure="element",
        level=sparsity_of,
        reference="Lee et al., Layer-adaptive sparsity for the magnitude-based pruning, ICLR 2021, arXiv 2010.07611",
    )

    def plan(self, model: nn.Module, level: Any, context: Context) -> MaskPlan:
        """A mask over all prunable weights; `level` is the share removed of what earlier steps left, in [0, 1)."""
        sparsity = sparsity_of(self.name, level)
        weights = prunable(model, context.example_inputs)
        like = {name: torch.empty(0, dtype=torch.float64) for name in weights}
        scores = LazyScores(like, lambda name: lamp_scores(weights[name]))
        return MaskPlan(choose_masks(scores, sparsity, "global", context.earlier))


def lamp_scores(weight: Tensor) -> Tensor:
    """The scores of one tensor.

    Returns:
        float64, shape of `weight`, in [0, 1]; zero for zeros.
    Example:
        >>> lamp_scores(torch.tensor([3.0, -4.0, 0.0]))
        tensor([0.3600, 1.0000, 0.0000], dtype=torch.float64)
    """
    squares, order = weight.detach().cpu().reshape(-1).double().square().sort(stable=True)
    tails = squares.flip(0).cumsum(0).flip(0)
    scores = torch.where(squares > 0, squares / tails, 0.0)
    return torch.empty_like(scores).scatter_(0, order, scores).view(weight.shape)
