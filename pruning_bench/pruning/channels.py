"""What channel methods share: their options, and the way from scores of coupled channels to a plan."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from pruning_bench.contracts import Context
from pruning_bench.errors import LevelError, ModelError
from pruning_bench.levels import sparsity_of
from pruning_bench.options import Checked, Count
from pruning_bench.pruning.budgets import fit_budget, price_of, round_up
from pruning_bench.pruning.contract import ChannelPlan
from pruning_bench.pruning.couplings import Couplings, find_couplings
from pruning_bench.pruning.selection import (
    highest_sparsity,
    keep_largest,
    pruned_count,
    require_finite,
    select_global,
)
from pruning_bench.pruning.shrink import apply_channels
from pruning_bench.pruning.timing import RelativeTime, relative_time

WHO = "channels"
STEPS = 100  # to all channels, where a budget is measured: finer ones drown in noise


@dataclass(frozen=True)
class ChannelOptions(Checked):
    """The options of every channel method; a method is these and a score.

    A channel of each coupling always stays. A level that would leave none of one, as `pruned_count` rounds it, is an
    error that names the highest level which works; layers of a single channel stay, and the plan's `untouched` says so.

    Args:
        scope: "layer" takes from every coupling the same share, "global" ranks the channels of all couplings together,
            but for the best one of each, which stays.
        budget: what the level is a share of. "channels": of the channels; "macs" and "params": of the model's
            multiply-accumulates or parameters; "latency": of the measured time of one forward of the example inputs, in
            eager on one thread. At most 1 - level of it is left (`LevelError` with the closest level where that cannot
            be). A measured budget gives plans that depend on the machine and the moment, two calls two plans that
            differ by some hundredths of the channels: keep the plan, and no baseline of its recipe.
        round_to: what stays of a coupling is a multiple of this, rounded up, or all that there is; at least 1. Above 1
            no level empties a coupling.
    """

    scope: Literal["layer", "global"] = "layer"
    budget: Literal["channels", "macs", "params", "latency"] = "channels"
    round_to: Count = 1
    name: ClassVar[str]


def plan_channels(
    method: ChannelOptions,
    model: nn.Module,
    level: Any,
    context: Context,
    score: Callable[[Couplings], Mapping[str, Tensor]],
    relative_time: RelativeTime = relative_time,
) -> ChannelPlan:
    """The plan that removes the channels of lowest score, as the method's options say.

    Args:
        level: the share removed, in [0, 1).
        score: gives for every coupling, or some of them, finite values [channels]; the others stay whole.
        relative_time: what measures a budget of latency.
    Raises:
        LevelError: a level out of range, a level that would empty a coupling, or a budget that cannot be met.
        ModelError: no channel can be removed, a weight or a score is not finite, the model cannot be exported.
    """
    sparsity = sparsity_of(method.name, level)
    couplings = require_couplings(model, context.example_inputs)
    for producers in couplings.producers.values():
        for name, _ in producers:
            require_finite(name, model.get_parameter(name).detach())
    scores = score(couplings)
    rounded: dict[str, str] = {}
    for name, values in scores.items():
        require_finite(name, values, "scores")
    if method.budget == "channels":
        if method.round_to == 1:
            _require_some_left(method, sparsity, {name: len(values) for name, values in scores.items()})
        keep = keep_channels(scores, sparsity, method.scope)
        counts = {name: round_up(int(mask.sum()), len(mask), method.round_to) for name, mask in keep.items()}
        rounded = {
            name: f"rounded up to a multiple of {method.round_to}, all {len(mask)} stay"
            for name, mask in keep.items()
            if int(mask.sum()) < counts[name] == len(mask)
        }
    else:
        if method.budget == "latency":
            cost, steps = _measured(model, context, 1 - sparsity, relative_time), STEPS
        else:
            cost, steps = price_of(model, context.example_inputs, method.budget).of, None
        counts = fit_budget(
            method.name,
            sparsity,
            method.budget,
            scores,
            method.scope,
            method.round_to,
            lambda kept: cost(couplings.plan(_best(scores, kept))),
            steps,
        )
    plan = couplings.plan(_best(scores, counts))
    return replace(plan, untouched={**plan.untouched, **rounded})


def _measured(
    model: nn.Module, context: Context, limit: float, relative_time: RelativeTime
) -> Callable[[ChannelPlan], float]:
    """What a plan leaves of the time of the model, in eval mode; all where nothing goes."""
    dense = copy.deepcopy(model).eval()

    def cost(plan: ChannelPlan) -> float:
        if not plan.kept:
            return 1.0
        return relative_time(apply_channels(dense, plan), dense, context.example_inputs, limit)

    return cost


def _best(scores: Mapping[str, Tensor], counts: Mapping[str, int]) -> dict[str, Tensor]:
    """Masks that keep the given number of highest scores; of equal ones, those that stand last."""
    keep = {}
    for name, count in counts.items():
        order = scores[name].detach().cpu().argsort(stable=True)
        keep[name] = torch.zeros(len(order), dtype=torch.bool).index_fill(0, order[len(order) - count :], True)
    return keep


def _require_some_left(method: ChannelOptions, sparsity: float, sizes: Mapping[str, int]) -> None:
    """Raises `LevelError` if the level leaves nothing of a coupling, or of all together fewer than one for each."""
    if method.scope == "global":
        total, most = sum(sizes.values()), sum(sizes.values()) - len(sizes)
        if (gone := pruned_count(total, sparsity)) > most:
            found = f"{sparsity} leaves {total - gone} of all {total} channels"
            expected = f"at most {highest_sparsity(total, most)}, which leaves one in each of {len(sizes)} couplings"
            raise LevelError(method.name, found, expected)
        return
    emptied = [name for name, size in sizes.items() if pruned_count(size, sparsity) == size]
    if emptied:
        smallest = min(emptied, key=sizes.__getitem__)
        size, others = sizes[smallest], len(emptied) - 1
        found = f"{sparsity} leaves none of the {size} channels of {smallest}"
        found += f" nor any of {others} other couplings" if others else ""
        works = f"at most {highest_sparsity(size, size - 1)}, which leaves one"
        raise LevelError(method.name, found, f"{works}, or scope=global, which keeps the best of each")


def require_couplings(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> Couplings:
    """`find_couplings`, for methods that need some.

    Raises:
        ModelError: no channel of the model can be removed (says why), or it cannot be exported.
    """
    found = find_couplings(model, example_inputs)
    if not found.groups:
        reason = next((f"{where}: {why}" for where, why in found.untouched.items()), type(model).__name__)
        raise ModelError(
            WHO, "no removable channel", "a model with coupled channels between its input and output", reason
        )
    return found


def keep_channels(
    scores: Mapping[str, Tensor], sparsity: float, scope: Literal["layer", "global"]
) -> dict[str, Tensor]:
    """Keeps all but the smallest scores, in every coupling at least the largest one.

    Args:
        scores: coupling -> [channels].
        sparsity: share removed of each coupling ("layer") or of all channels together ("global"), as `pruned_count`
            rounds it; one that would empty a coupling leaves its largest channel, so that fewer go.
    Returns:
        coupling -> bool [channels], True = kept.
    Example:
        >>> keep_channels({"a": torch.tensor([3.0, 1.0, 2.0]), "b": torch.tensor([5.0])}, 0.9, "layer")
        {'a': tensor([ True, False, False]), 'b': tensor([True])}
    """
    if scope == "layer":
        keep = {name: keep_largest(values, sparsity) for name, values in scores.items()}
    else:
        keep = select_global(_last_to_go(scores), sparsity)
    for name, mask in keep.items():
        mask[_largest(scores[name])] = True
    return keep


def _last_to_go(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scores with the largest of each coupling above all others, so that global counts are exact while they can be."""
    raised = {name: values.detach().cpu().double() for name, values in scores.items()}
    above = math.nextafter(max(float(values.max()) for values in raised.values()), math.inf)
    for name, values in raised.items():
        raised[name] = values.index_fill(0, torch.tensor(_largest(values)), above)
    return raised


def _largest(scores: Tensor) -> int:
    """The channel that goes last: the largest score, of equal ones the last, in line with `keep_largest`."""
    return len(scores) - 1 - int(scores.flip(0).argmax())
