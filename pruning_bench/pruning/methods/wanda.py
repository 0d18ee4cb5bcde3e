"""Wanda: weights are weighed by the size of what they are multiplied with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pruning_bench.contracts import Context
from pruning_bench.levels import NofM
from pruning_bench.pruning.contract import MaskPlan, PruningTags, pruning_method
from pruning_bench.pruning.inputs import watch_inputs
from pruning_bench.pruning.masks import choose_masks, prunable, transposed
from pruning_bench.pruning.patterns import as_stored, inputs_second, level_of, n_of_m_plan, row_shares
from pruning_bench.pruning.selection import LazyScores, require_finite


@pruning_method
@dataclass(frozen=True)
class Wanda:
    """Removes in each output row the weights of smallest score: score_ij = |w_ij| * ||x_j||.

    ||x_j|| is the Euclidean norm of the j-th input over all calibration examples; of a convolution the columns are the
    places of its kernel, and its inputs the unfolded patches. Rows keep equal shares, to within one weight.

    Reference:
        Sun et al., A simple and effective pruning approach for large language models, ICLR 2024, arXiv 2306.11695.
    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2))
        >>> model[0].weight.data = torch.tensor([[1.0, -4.0], [3.0, 2.0]])
        >>> calibration = [(torch.tensor([[5.0, 0.0], [0.0, 1.0]]),)]
        >>> context = Context((torch.zeros(2, 2),), torch.Generator(), calibration)
        >>> Wanda().plan(model, 0.5, context).masks
        {'0.weight': tensor([[ True, False],
                [ True, False]])}
    """

    name: ClassVar[str] = "wanda"
    examples: ClassVar[tuple[str, ...]] = ("wanda:0.5", "wanda:2of4")
    tags: ClassVar[PruningTags] = PruningTags(
        structure="element",
        level=level_of,
        needs_calibration=True,
        reference="Sun et al., A simple and effective pruning approach for large language models, ICLR 2024, "
        "arXiv 2306.11695",
    )

    def plan(self, model: nn.Module, level: Any, context: Context) -> MaskPlan:
        """A mask over all prunable weights.

        Args:
            level: the share removed of what earlier steps left in each row, in [0, 1); or N of M.
        """
        read = level_of(self.name, level)
        weights, turned = prunable(model, context.example_inputs), transposed(model)
        squares: dict[str, Tensor] = {}

        def see(name: str, patches: Tensor) -> None:
            found = patches.double().square().sum(1)  # [groups, columns]
            squares[name] = squares[name] + found if name in squares else found

        watch_inputs(model, context.need_calibration(self.name), weights, see, self.name)

        def score(name: str) -> Tensor:
            weight, norms = inputs_second(weights[name].detach(), turned.get(name)), squares[name].sqrt()
            rows = weight.reshape(len(norms), -1, norms.shape[1]).double().abs() * norms[:, None]
            require_finite(name, rows, "scores")
            return rows.view(weight.shape).cpu()

        left = {name: inputs_second(mask, turned.get(name)) for name, mask in context.earlier.items()}
        if isinstance(read, NofM):
            return as_stored(n_of_m_plan({name: score(name) for name in weights}, read, left), turned)
        like = {name: torch.empty(0, dtype=torch.float64) for name in weights}
        shares = LazyScores(like, lambda name: row_shares(score(name), left.get(name)))
        return as_stored(MaskPlan(choose_masks(shares, read, "layer", left)), turned)
