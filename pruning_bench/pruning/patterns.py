"""Shapes of masks beyond single counts: N of every M weights, blocks, shares of rows, budgets by sizes of layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from pruning_bench.errors import LevelError, ModelError
from pruning_bench.levels import Level, NofM, as_level, sparsity_of
from pruning_bench.pruning.contract import MaskPlan
from pruning_bench.pruning.selection import LazyScores, choose_masks, require_finite

_BLOCKS_WITH = "blocks with a share and scope=layer or global"
Scope: TypeAlias = Literal["layer", "global", "erk"]


def level_of(who: str, level: Level | float | int | str | None) -> float | NofM:
    """The level as a sparsity in [0, 1) or as N of M; raises `LevelError` otherwise.

    Example:
        >>> level_of("magnitude", "2of4"), level_of("magnitude", 0.5)
        (NofM(kept=2, group=4), 0.5)
    """
    read = as_level(level)
    if isinstance(read, NofM):
        return read
    if read is not None and not hasattr(read, "value"):
        raise LevelError(who, f"level {read}", "a sparsity in [0, 1) or N of M (2of4)")
    return sparsity_of(who, level)


def plan_masks(
    scores: Mapping[str, Tensor],
    level: float | NofM,
    scope: Scope,
    earlier: Mapping[str, Tensor],
    block: int = 1,
    transposed: Mapping[str, int] | None = None,
) -> MaskPlan:
    """The plan that keeps the largest scores, whatever the kind of level.

    Args:
        scores: name -> scores of the weight's shape, finite where nothing was pruned before.
        level: share removed of what earlier masks left, or how many stay of every group (see `keep_n_of_m`).
        scope: "global" ranks all together, "layer" each tensor by itself, "erk" gives tensors budgets by their sizes
            (see `erk_scores`); N of M has a rule of its own.
        earlier: name -> bool mask, True = kept so far.
        block: this many inputs in a row stay or go together (see `block_norms`); the level is then a share of the
            blocks of which something is left.
        transposed: groups of the weights whose inputs come first, see `inputs_second`.
    Raises:
        ModelError: scores that are not finite, or no tensor that N of M fits.
        LevelError: blocks together with N of M or "erk", which count single weights.
    """
    if block > 1 or isinstance(level, NofM):
        return _along_inputs(scores, level, scope, earlier, block, transposed or {})
    if scope == "erk":
        scores, scope = erk_scores(scores, earlier), "global"
    return MaskPlan(choose_masks(scores, level, scope, earlier))


def _along_inputs(
    scores: Mapping[str, Tensor],
    level: float | NofM,
    scope: Scope,
    earlier: Mapping[str, Tensor],
    block: int,
    transposed: Mapping[str, int],
) -> MaskPlan:
    """N of M or blocks, every weight seen with its inputs second."""
    like = scores.like if isinstance(scores, LazyScores) else scores
    seen = LazyScores(like, lambda name: inputs_second(scores[name], transposed.get(name)))
    left = {name: inputs_second(mask, transposed.get(name)) for name, mask in earlier.items()}
    if block > 1:
        plan = _block_plan(seen, level, scope, left, block)
    else:
        assert isinstance(level, NofM)
        plan = n_of_m_plan(seen, level, left)
    return as_stored(plan, transposed)


def as_stored(plan: MaskPlan, transposed: Mapping[str, int]) -> MaskPlan:
    """A plan whose masks were made for weights seen with their inputs second, for the weights as they are."""
    masks = {name: inputs_first(mask, transposed.get(name)) for name, mask in plan.masks.items()}
    return MaskPlan(masks, untouched=plan.untouched)


def inputs_second(weight: Tensor, groups: int | None) -> Tensor:
    """The weight of a transposed convolution as that of a plain one that multiplies the same inputs.

    Args:
        weight: [inputs, outputs / groups, ...kernel].
        groups: None: it is of another layer, and returned as it is.
    Returns:
        [outputs, inputs / groups, ...kernel].
    Example:
        >>> inputs_second(torch.tensor([[1, 2, 3], [4, 5, 6]]), 1).tolist()
        [[1, 4], [2, 5], [3, 6]]
    """
    if groups is None:
        return weight
    parted = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:]).transpose(1, 2)
    return parted.reshape(groups * weight.shape[1], weight.shape[0] // groups, *weight.shape[2:])


def inputs_first(weight: Tensor, groups: int | None) -> Tensor:
    """The way back from `inputs_second`; it is the same exchange."""
    return inputs_second(weight, groups).contiguous()


def _block_plan(
    scores: Mapping[str, Tensor], level: float | NofM, scope: Scope, earlier: Mapping[str, Tensor], block: int
) -> MaskPlan:
    if isinstance(level, NofM) or scope == "erk":
        raise LevelError("masks", f"block {block} with {level if isinstance(level, NofM) else scope}", _BLOCKS_WITH)
    like = scores.like if isinstance(scores, LazyScores) else scores
    norms = LazyScores(like, lambda name: block_norms(scores[name].detach().cpu(), block))
    left = {name: block_norms(mask, block) > 0 for name, mask in earlier.items() if name in scores}
    masks = {
        name: spread(mask, block, scores[name].shape[1])
        for name, mask in choose_masks(norms, level, scope, left).items()
    }
    return MaskPlan({name: mask & earlier[name] if name in earlier else mask for name, mask in masks.items()})


def block_norms(scores: Tensor, block: int) -> Tensor:
    """The root mean square of every `block` inputs in a row, at each place of a kernel by itself.

    Where the inputs are no multiple, the last block of each row has fewer; as a mean its norm compares with the others.

    Args:
        scores: [outputs, inputs, ...kernel], any type.
    Returns:
        [outputs, ...kernel, ceil(inputs / block)], float64: squares of float32 would overflow.
    Example:
        >>> block_norms(torch.tensor([[3.0, 3.0, 0.0, 0.0, 2.0]]), 2)
        tensor([[3., 0., 2.]], dtype=torch.float64)
    """
    squares = scores.movedim(1, -1).double().square()
    whole = squares.shape[-1] // block * block
    means = squares[..., :whole].reshape(*squares.shape[:-1], -1, block).mean(-1)
    return torch.cat(
        [means, squares[..., whole:].mean(-1, keepdim=True)] if whole < squares.shape[-1] else [means], -1
    ).sqrt()


def spread(mask: Tensor, block: int, inputs: int) -> Tensor:
    """The mask of weights of a mask of blocks: the way back from the shape of `block_norms`.

    Example:
        >>> spread(torch.tensor([[True, False, True]]), 2, 5)
        tensor([[ True,  True, False, False,  True]])
    """
    return mask.repeat_interleave(min(block, inputs), -1)[..., :inputs].movedim(-1, 1).contiguous()


def n_of_m_plan(scores: Mapping[str, Tensor], level: NofM, earlier: Mapping[str, Tensor]) -> MaskPlan:
    """N of every M along the inputs; tensors whose inputs M does not divide stay whole, and the plan says so.

    Raises:
        ModelError: M divides the inputs of none.
    """
    masks, untouched = {}, {}
    for name, values in scores.items():
        before = earlier.get(name, torch.ones(values.shape, dtype=torch.bool))
        if reason := unfit(values, level):
            masks[name], untouched[name] = before, reason
            continue
        values = values.detach().cpu()
        require_finite(name, values[before], "scores")
        masks[name] = before & keep_n_of_m(values.masked_fill(~before, -float("inf")), level)
    require_some(level, untouched, len(masks))
    return MaskPlan(masks, untouched=untouched)


def unfit(weight: Tensor, level: NofM) -> str:
    """Why N of M does not fit a weight [outputs, inputs, ...]; "" if it does."""
    inputs = weight.shape[1] if weight.dim() > 1 else 1
    return f"{inputs} inputs are no multiple of {level.group}" if inputs % level.group else ""


def require_some(level: NofM, untouched: Mapping[str, str], count: int) -> None:
    """Raises `ModelError` when all `count` weights are untouched."""
    if len(untouched) == count:
        name, reason = next(iter(untouched.items()))
        found = f"no weight whose inputs {level.group} divides"
        raise ModelError(
            f"{level}", found, f"at least one layer with a multiple of {level.group} inputs", f"{name}: {reason}"
        )


def keep_n_of_m(scores: Tensor, level: NofM) -> Tensor:
    """Keeps the N largest of every M scores in a row of inputs; of equal ones those that stand first go first.

    Args:
        scores: [outputs, inputs, ...], not NaN; the groups lie along the inputs, one place of a kernel at a time.
    Returns:
        bool, shape of `scores`, True = kept.
    Example:
        >>> keep_n_of_m(torch.tensor([[1.0, 3.0, 2.0, 0.0]]), NofM(2, 4))
        tensor([[False,  True,  True, False]])
    """
    last = scores.movedim(1, -1)
    groups = last.reshape(-1, level.group)
    order = groups.argsort(dim=1, stable=True)
    kept = torch.ones(groups.shape, dtype=torch.bool)
    kept.scatter_(1, order[:, : level.group - level.kept], False)
    return kept.view(last.shape).movedim(-1, 1).contiguous()


def row_shares(scores: Tensor, left: Tensor | None = None) -> Tensor:
    """Scores that let every output row keep the same share of its weights, the largest of it.

    The r-th largest of the n scores that are left in a row becomes -(r - 1/2) / n.

    Args:
        scores: [outputs, ...].
        left: bool, what earlier masks left; None for all.
    Returns:
        float64, shape of `scores`.
    Example:
        >>> row_shares(torch.tensor([[5.0, 1.0], [0.1, 0.2]]))
        tensor([[-0.2500, -0.7500],
                [-0.7500, -0.2500]], dtype=torch.float64)
    """
    rows = scores.detach().cpu().reshape(len(scores), -1).double()
    if left is not None:
        rows = rows.masked_fill(~left.reshape(rows.shape), -float("inf"))
    ranks = _ranks(rows)
    sizes = torch.full((len(rows), 1), float(rows.shape[1]), dtype=torch.float64)
    if left is not None:
        sizes = left.reshape(rows.shape).sum(1, keepdim=True).clamp(min=1).double()
    return (-(ranks - 0.5) / sizes).view(scores.shape)


def erk_scores(scores: Mapping[str, Tensor], earlier: Mapping[str, Tensor]) -> LazyScores:
    """Scores whose global order gives every tensor a density in proportion to sum(shape) / prod(shape), at most 1.

    The r-th largest score of a tensor that earlier masks left becomes -(r - 1/2) / sum(shape): so k of them are among
    those that stay while k is at most a common factor times sum(shape).

    Reference:
        Evci et al., Rigging the lottery: making all tickets winners, ICML 2020, arXiv 1911.11134.
    """

    def ranked(name: str) -> Tensor:
        values = scores[name].detach().cpu()
        flat = values.reshape(1, -1).double()
        if name in earlier:
            flat = flat.masked_fill(~earlier[name].reshape(1, -1), -float("inf"))
            require_finite(name, values[earlier[name]], "scores")
        else:
            require_finite(name, values, "scores")
        return (-(_ranks(flat) - 0.5) / sum(values.shape)).view(values.shape)

    like = scores.like if isinstance(scores, LazyScores) else scores
    return LazyScores({name: torch.empty(0, dtype=torch.float64) for name in like}, ranked)


def _ranks(rows: Tensor) -> Tensor:
    """1 for the largest of each row; of equal ones those that stand first come later. float64, same shape."""
    order = rows.argsort(dim=1, stable=True)
    ranks = torch.arange(rows.shape[1], 0, -1, dtype=torch.float64).expand_as(rows)
    return torch.empty_like(ranks, memory_format=torch.contiguous_format).scatter_(1, order, ranks)
