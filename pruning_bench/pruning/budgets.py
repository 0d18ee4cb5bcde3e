"""What channels cost, and how many must go until a share of the multiply-accumulates, parameters or time is gone.

To count, the model runs once; what any plan leaves then follows from the sizes that it leaves of each weight. To
measure, the smaller model is made and timed, see `timing`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from pruning_bench.errors import LevelError
from pruning_bench.metrics.cost import count_cost
from pruning_bench.pruning.contract import ChannelPlan


@dataclass(frozen=True)
class Price:
    """The cost of a model as a function of the sizes of its weights: fixed + sum of uses(w) * numel(w).

    Args:
        shapes: weight -> its shape.
        uses: weight -> what each of its numbers costs: 1 parameter, or its multiply-accumulates for one example.
        fixed: what no weight takes part in; products of two activations, as in attention, count as never changing.
    """

    shapes: Mapping[str, tuple[int, ...]]
    uses: Mapping[str, int]
    fixed: int = 0

    def of(self, plan: ChannelPlan | None = None) -> int:
        """The cost of what the plan leaves; None leaves all."""
        total = self.fixed
        for name, shape in self.shapes.items():
            kept = {} if plan is None else plan.kept.get(name, {})
            sizes = (len(kept[dim]) if dim in kept else size for dim, size in enumerate(shape))
            total += self.uses[name] * math.prod(sizes)
        return total


def price_of(model: nn.Module, example_inputs: tuple[Tensor, ...], budget: Literal["macs", "params"]) -> Price:
    """The price of a model's weights in multiply-accumulates, as `metrics.cost` counts them, or in parameters.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> price = price_of(model, (torch.zeros(1, 1, 4, 4),), "macs")
        >>> price.of(), price.of(ChannelPlan({"0.weight": {0: torch.tensor([1])}, "3.weight": {1: torch.arange(4)}}))
        (176, 44)
    """
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    if budget == "params":
        return Price(shapes, dict.fromkeys(shapes, 1))
    layers = {layer.name: layer.macs for layer in count_cost(model, example_inputs).layers}
    fixed = sum(macs for name, macs in layers.items() if name not in shapes)
    used = {name: shapes[name] for name in layers if name in shapes}
    return Price(used, {name: layers[name] // max(math.prod(shape), 1) for name, shape in used.items()}, fixed)


def removal_order(scores: Mapping[str, Tensor], scope: Literal["layer", "global"]) -> NDArray[np.int64]:
    """Of which coupling the next channel goes, by position in the mapping: all channels but the last of each coupling.

    "layer" takes from all couplings evenly, so that they lose the same share; "global" in the order of the scores. Of
    equal ones the first goes first.

    Example:
        >>> import torch
        >>> scores = {"a": torch.tensor([1.0, 5.0, 6.0, 7.0]), "b": torch.tensor([9.0, 2.0])}
        >>> removal_order(scores, "layer").tolist(), removal_order(scores, "global").tolist()
        ([0, 0, 1, 0], [0, 1, 0, 0])
    """
    keys, owners = [], []
    for at, values in enumerate(scores.values()):
        size = len(values)
        ascending = values.detach().double().cpu().sort(stable=True).values.numpy()[: size - 1]
        keys.append(ascending if scope == "global" else np.arange(1, size) / size)
        owners.append(np.full(size - 1, at, dtype=np.int64))
    return np.concatenate(owners)[np.argsort(np.concatenate(keys), kind="stable")]


def round_up(kept: int, size: int, multiple: int) -> int:
    """The next multiple, but never more than there are.

    Example:
        >>> round_up(9, 20, 8), round_up(16, 20, 8), round_up(17, 20, 8)
        (16, 16, 20)
    """
    return min(size, -(-kept // multiple) * multiple)


def fit_budget(
    who: str,
    level: float,
    budget: str,
    scores: Mapping[str, Tensor],
    scope: Literal["layer", "global"],
    round_to: int,
    cost: Callable[[Mapping[str, int]], float],
    steps: int | None = None,
) -> dict[str, int]:
    """How many channels of each coupling stay, so that at most (1 - level) of the cost is left and none goes in vain.

    Channels go in `removal_order`; the fewest that are enough, found by bisection.

    Args:
        level: share of the cost to remove, in [0, 1).
        budget: its name, for messages.
        round_to: what is kept of a coupling is a multiple of this, rounded up.
        cost: coupling -> channels kept, to the cost of what is left; never falls when more is kept. Of a measured cost,
            which may, the result is one of the counts whose cost fits and which with one step less did not.
        steps: the channels go in so many steps of equal size, for a cost that cannot tell finer ones apart; None takes
            them one by one.
    Raises:
        LevelError: not even the fewest channels fit; names the highest level that they reach.
    """
    order, sizes = removal_order(scores, scope), {name: len(values) for name, values in scores.items()}

    last = len(order) if steps is None else min(steps, len(order))

    def counts(step: int) -> dict[str, int]:
        gone = step * len(order) // max(1, last)
        removed = np.bincount(order[:gone], minlength=len(sizes)).tolist()
        return {
            name: round_up(size - lost, size, round_to)
            for (name, size), lost in zip(sizes.items(), removed, strict=True)
        }

    whole = cost(sizes)
    limit = whole * (1 - Fraction(repr(level)))
    if whole <= limit:
        return sizes
    least = cost(counts(last))
    if least > limit:
        grain = 10_000 if steps is None else steps
        reach = max(0, math.floor(grain * (1 - Fraction(least) / Fraction(whole)))) / grain
        raise LevelError(who, f"{level} of the {budget}", f"at most {reach}, which leaves the fewest channels possible")
    low, high = 0, last  # `high` fits; what is below `low` does not
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if cost(counts(middle)) <= limit else (middle + 1, high)
    return counts(high)
