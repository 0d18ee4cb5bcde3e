"""SparseGPT: masks and new values of what stays, column by column, by the inputs that the weights meet."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pruning_bench.contracts import Context
from pruning_bench.levels import NofM
from pruning_bench.options import Amount, Checked, Count
from pruning_bench.pruning.contract import MaskPlan, PruningTags, pruning_method
from pruning_bench.pruning.inputs import watch_inputs
from pruning_bench.pruning.inverse_hessians import inverse_root, products, sweep
from pruning_bench.pruning.masks import prunable, pruned_count, transposed
from pruning_bench.pruning.patterns import inputs_first, inputs_second, keep_n_of_m, level_of, require_some, unfit
from pruning_bench.pruning.selection import require_finite


@pruning_method
@dataclass(frozen=True)
class SparseGPT(Checked):
    """Removes the weights whose loss the others can make up for best, and lets them make up for it.

    With X the inputs of a layer over all calibration examples, H = X X^T + damping * mean(diag(X X^T)) * I and H_j the
    part of it from column j on: score_ij = w_ij^2 / [H_j^-1]_jj. Going through the columns from the first to the last,
    a removed w_ij changes its row from column j on by -w_ij / [H_j^-1]_jj * [H_j^-1]_j, so that W X changes least.
    Which weights go is decided for `mask_block` columns at a time, by scores that know all changes so far; each block
    loses its share over all rows together. N of M decides for M inputs at a time. Layers are done one after the other,
    each with the inputs that the pruned ones before it give: one run of the calibration data and one H, [columns,
    columns] in float64, for each. A column whose inputs are all zero scores zero.

    Args:
        mask_block: columns that masks are chosen for at a time, at least 1; for N of M the nearest multiple of M.
        damping: share of the mean of H's diagonal that is added to it, at least 0.
    Reference:
        Frantar and Alistarh, SparseGPT: massive language models can be accurately pruned in one-shot, ICML 2023,
        arXiv 2301.00774.
    Example:
        >>> model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 1))
        >>> model[0].weight.data = torch.tensor([[1.0, 2.0]])
        >>> calibration = [(torch.tensor([[3.0, 3.0], [1.0, 1.0]]),)]  # equal inputs: the second can stand for both
        >>> context = Context((torch.zeros(2, 2),), torch.Generator(), calibration)
        >>> plan = SparseGPT(damping=1e-6).plan(model, 0.5, context)
        >>> plan.masks, plan.writes
        ({'0.weight': tensor([[False,  True]])}, {'0.weight': tensor([[0.0000, 3.0000]])})
    """

    mask_block: Count = 128
    damping: Amount = 0.01
    name: ClassVar[str] = "sparsegpt"
    examples: ClassVar[tuple[str, ...]] = ("sparsegpt:0.5", "sparsegpt:2of4")
    tags: ClassVar[PruningTags] = PruningTags(
        structure="element",
        level=level_of,
        nested=False,
        needs_calibration=True,
        reference="Frantar and Alistarh, SparseGPT: massive language models can be accurately pruned in one-shot, "
        "ICML 2023, arXiv 2301.00774",
    )

    def plan(self, model: nn.Module, level: Any, context: Context) -> MaskPlan:
        """A mask over all prunable weights, and new values of those that lose some.

        Args:
            level: the share removed of what earlier steps left of each layer, in [0, 1); or N of M.
        Raises:
            LevelError: a level out of range.
            ModelError: no calibration data, or inputs of which no H can be inverted.
        """
        read = level_of(self.name, level)
        weights, turned = prunable(model, context.example_inputs), transposed(model)
        calibration = context.need_calibration(self.name)
        work = copy.deepcopy(model)
        masks, writes, untouched = {}, {}, {}
        for name in _in_order_of_use(work, calibration, list(weights), self.name):
            stored, groups = work.get_parameter(name), turned.get(name)
            weight = inputs_second(stored.detach(), groups)
            earlier = context.earlier.get(name, torch.ones(stored.shape, dtype=torch.bool))
            before = inputs_second(earlier, groups)
            if isinstance(read, NofM) and (reason := unfit(weight, read)):
                masks[name], untouched[name] = earlier, reason
                continue
            gram = input_products(work, calibration, name, weight, self.name)
            rows, left = matrices(weight, len(gram)), matrices(before.to(weight.device), len(gram))
            root, dead = inverse_root(gram, self.damping, name, self.name)
            kept, values = eliminate(rows.double(), root, dead, left, read, self.mask_block)
            masks[name] = inputs_first(from_matrices(kept, weight.shape), groups).cpu()
            if not torch.equal(masks[name], earlier):
                new = inputs_first(from_matrices(values, weight.shape), groups).to(stored.dtype)
                require_finite(name, new, f"new values in {new.dtype}")
                stored.data.copy_(new)
                writes[name] = new.cpu()
        if isinstance(read, NofM):
            require_some(read, untouched, len(masks))
        return MaskPlan({name: masks[name] for name in weights}, writes, untouched)


def _in_order_of_use(
    model: nn.Module, calibration: Sequence[tuple[Tensor, ...]], names: list[str], who: str
) -> list[str]:
    """The weights in the order in which the forward first uses them."""
    seen: dict[str, None] = {}
    watch_inputs(model, calibration[:1], names, lambda name, _: seen.setdefault(name), who)
    return list(seen)


def input_products(
    model: nn.Module, calibration: Sequence[tuple[Tensor, ...]], name: str, weight: Tensor, who: str
) -> Tensor:
    """X X^T of what a weight is multiplied with, its columns in the order of `matrices`; float64 [groups, c, c].

    Args:
        weight: the one of that name, its inputs second.
    Raises:
        ModelError: inputs that are not finite.
    """
    order = _places_first(weight)
    total: list[Tensor] = []

    def see(_: str, patches: Tensor) -> None:
        found = products(patches[..., order])
        total[:] = [total[0] + found if total else found]

    watch_inputs(model, calibration, [name], see, who)
    require_finite(name, total[0], "products of inputs")
    return total[0]


def _places_first(weight: Tensor) -> Tensor:
    """The columns of a weight [outputs, inputs, ...kernel] with the inputs of each place of the kernel in a row."""
    inputs = weight.shape[1]
    return torch.arange(weight[0].numel(), device=weight.device).view(inputs, -1).t().reshape(-1)


def matrices(weight: Tensor, groups: int) -> Tensor:
    """[outputs, inputs, ...kernel] -> [groups, outputs / groups, places * inputs]; of any type.

    Example:
        >>> matrices(torch.arange(6).view(1, 2, 3), 1)
        tensor([[[0, 3, 1, 4, 2, 5]]])
    """
    places = weight.reshape(*weight.shape[:2], -1).transpose(1, 2)
    return places.reshape(groups, len(weight) // groups, -1)


def from_matrices(rows: Tensor, shape: torch.Size) -> Tensor:
    """The way back from `matrices`."""
    places = rows.reshape(shape[0], -1, shape[1]).transpose(1, 2)
    return places.reshape(shape).contiguous()


def eliminate(
    rows: Tensor, root: Tensor, dead: Tensor, left: Tensor, level: float | NofM, block: int
) -> tuple[Tensor, Tensor]:
    """Which weights stay, and the values that make up for the others.

    Args:
        rows: weights, float64 [groups, r, c].
        root, dead: see `inverse_root`.
        left: bool, shape of `rows`: what earlier masks left; the others are removed again after every change.
        level: share of what is left to remove, of all groups and rows together; or N of M along the columns.
        block: columns that are decided about at a time.
    Returns:
        bool, and float64 that is zero where that is False; both of the shape of `rows`.
    """
    kept = left.clone()
    scales = root.diagonal(dim1=1, dim2=2)[:, None]
    width = max(1, block // level.group) * level.group if isinstance(level, NofM) else block
    step = level.group if isinstance(level, NofM) else width
    total = gone = 0

    def decide(rows: Tensor, at: int, stop: int) -> Tensor:
        nonlocal total, gone
        if at % width % step == 0:
            span = slice(at, min(at + step, stop))
            scores = (rows[..., span] / scales[..., span]).square().masked_fill(dead[:, None, span], 0)
            total += int(left[..., span].sum())
            count = 0 if isinstance(level, NofM) else pruned_count(total, level) - gone
            kept[..., span] = _choose(scores, left[..., span], level, count)
            gone += count
        return torch.where(kept[..., at], rows[..., at], 0.0)

    values = sweep(rows, root, width, decide)
    return kept, values.masked_fill(~kept, 0)


def _choose(scores: Tensor, left: Tensor, level: float | NofM, count: int) -> Tensor:
    """The mask of some columns: N of every M, or all that was left but the `count` smallest."""
    if isinstance(level, NofM):
        groups = scores.masked_fill(~left, -float("inf")).flatten(0, 1)
        return left & keep_n_of_m(groups.cpu(), level).view(left.shape).to(left.device)
    order = scores[left].argsort(stable=True)
    return left.masked_scatter(left, torch.ones_like(order, dtype=torch.bool).index_fill(0, order[:count], False))
