"""How long a smaller model takes beside the dense one, in eager: what a budget of latency is counted by."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import median
from typing import Protocol

from torch import Tensor, nn

from pruning_bench.metrics.latency import Pairs, sample
from pruning_bench.runtimes.contract import bound_call, clock_of, torch_threads, works_in_place

MIN_PAIRS, MAX_PAIRS = 10, 60
SECONDS = 2.0  # of one comparison; used up, it ends at the least number of pairs
WARM_SECONDS = 0.2
NORMAL_98 = 2.33  # standard deviations within which 98 % of a normal distribution lie


class RelativeTime(Protocol):
    """What `relative_time` is: a budget of latency takes any function like it."""

    def __call__(self, small: nn.Module, dense: nn.Module, example_inputs: tuple[Tensor, ...], limit: float) -> float:
        """The time of `small` over that of `dense`."""


def relative_time(small: nn.Module, dense: nn.Module, example_inputs: tuple[Tensor, ...], limit: float) -> float:
    """Time of one forward of `small` over that of `dense`: the median over blocks that were timed next to each other.

    Both run in inference mode, eager, on one thread, on copies of the inputs. The number depends on the machine and
    on what else it does; between two runs it differs by some per cent.

    Args:
        small, dense: in eval mode.
        limit: what the ratio is going to be compared with; timing ends as soon as it is clear on which side it lies.
    """
    device = next(dense.parameters()).device.type
    with torch_threads(1):
        taken = sample(
            _forward(dense, example_inputs, device),
            _forward(small, example_inputs, device),
            seed=0,
            enough=lambda pairs: is_clear(pairs, limit),
            min_pairs=MIN_PAIRS,
            max_pairs=MAX_PAIRS,
            twin_every=0,
            block_seconds=1e-3 if device == "cpu" else 2e-3,
            warm_seconds=WARM_SECONDS,
            budget_seconds=SECONDS,
            clock=clock_of(device),
        )
    return median(_ratios(taken.pairs))


def is_clear(pairs: Pairs, limit: float) -> bool:
    """Whether the median ratio lies on one side of the limit: so does the 98 % interval between its order statistics.

    Args:
        pairs: (dense, small) seconds.
    Example:
        >>> is_clear([(1.0, 0.4), (1.0, 0.6)] * 5, 0.5), is_clear([(1.0, 0.4), (1.0, 0.6)] * 5, 0.7)
        (False, True)
    """
    ratios = _ratios(pairs)
    low = max(0, math.floor((len(ratios) - NORMAL_98 * math.sqrt(len(ratios))) / 2))
    return not ratios[low] <= limit <= ratios[len(ratios) - 1 - low]


def _ratios(pairs: Pairs) -> list[float]:
    """In ascending order."""
    return sorted(small / dense for dense, small in pairs)


def _forward(model: nn.Module, inputs: tuple[Tensor, ...], device: str) -> Callable[[], object]:
    return bound_call(model, inputs, device, in_place=works_in_place(model, inputs))
