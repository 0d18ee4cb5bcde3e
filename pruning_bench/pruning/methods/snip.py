"""SNIP: the weights whose removal changes the loss least, to first order, go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from pruning_bench.contracts import Context
from pruning_bench.options import Checked, Count
from pruning_bench.pruning.contract import MaskPlan, PruningTags, pruning_method
from pruning_bench.pruning.gradients import mean_gradients
from pruning_bench.pruning.masks import prunable, transposed
from pruning_bench.pruning.patterns import Scope, level_of, plan_masks
from pruning_bench.pruning.selection import LazyScores


@pruning_method
@dataclass(frozen=True)
class Snip(Checked):
    """Removes the weights of smallest connection sensitivity: score = |w * dL/dw|, L the mean cross-entropy.

    The gradient is taken in eval mode on `batches` batches of `batch` training examples.

    Args:
        scope: "global" ranks all prunable weights together, "layer" each tensor by itself, "erk" gives each tensor a
            density in proportion to sum(shape) / prod(shape).
        batches: at most so many batches, at least 1.
        batch: examples a batch, at least 1.
    Reference:
        Lee et al., SNIP: single-shot network pruning based on connection sensitivity, ICLR 2019, arXiv 1810.02340.
    Example:
        >>> import torch
        >>> from pruning_bench.datasets.contract import Tensors
        >>> model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 2))
        >>> train = Tensors((torch.tensor([[1.0, 0.0]]),), torch.tensor([0]))
        >>> context = Context((torch.zeros(2, 2),), torch.Generator(), train=train)
        >>> Snip().plan(model, 0.5, context).masks  # the second input is always zero
        {'0.weight': tensor([[ True, False]])}
    """

    scope: Scope = "global"
    batches: Count = 8
    batch: Count = 64
    name: ClassVar[str] = "snip"
    examples: ClassVar[tuple[str, ...]] = ("snip:0.9",)
    tags: ClassVar[PruningTags] = PruningTags(
        structure="element",
        level=level_of,
        needs_train=True,
        reference="Lee et al., SNIP: single-shot network pruning based on connection sensitivity, ICLR 2019, "
        "arXiv 1810.02340",
    )

    def plan(self, model: nn.Module, level: Any, context: Context) -> MaskPlan:
        """A mask over all prunable weights.

        Args:
            level: the share removed of what earlier steps left, in [0, 1); or N of M: N of every M inputs stay.
        """
        read = level_of(self.name, level)
        weights = prunable(model, context.example_inputs)
        gradients = mean_gradients(model, context, self.name, batches=self.batches, batch=self.batch)
        scores = LazyScores(weights, lambda name: (weights[name].detach() * gradients[name]).abs())
        return plan_masks(scores, read, self.scope, context.earlier, transposed=transposed(model))
