"""Controls: what must hold for a run to be worth judging.

A control is a `Measurement` of rule "control" whose detail says `{"holds": bool, "why": str}`; its value and samples
are for the reader. One that says nothing does not hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from pruning_bench.judging.policy import Policy
from pruning_bench.judging.statistics import Estimate
from pruning_bench.records import Measurement

CLOCKS = ("twin", "slowed_twin")  # the controls that the machine, and not the model's outputs, breaks


def holds(control: Measurement) -> bool:
    """Whether the control says that it holds.

    Example:
        >>> holds(Measurement("case", "twin", 0.001, "1", "neither", "control", detail={"holds": True}))
        True
    """
    return control.detail.get("holds") is True


def reason_of(control: Measurement) -> str:
    """Why it does or does not hold, in the words of who measured it."""
    return str(control.detail.get("why") or ("" if holds(control) else "it does not say that it holds"))


def broken(measurements: Iterable[Measurement]) -> tuple[Measurement, ...]:
    """The controls that do not hold."""
    return tuple(m for m in measurements if m.rule == "control" and not holds(m))


def same_holds(twin: Estimate, policy: Policy) -> bool:
    """Whether a time over itself, as a log ratio, is as good as 1.

    Not proved to differ by more than the floor, and proved to differ by less than the slow-down that the suite promises
    to find: noise alone breaks neither, and a clock that is off cannot hide in a wide interval.

    Example:
        >>> same_holds(Estimate(0.02, 0.001), Policy()), same_holds(Estimate(0.05, 0.001), Policy())
        (True, False)
        >>> same_holds(Estimate(0.02, 0.01), Policy()), same_holds(Estimate(0.02, 0.06), Policy())
        (True, False)
    """
    low, high = twin.interval(policy.confidence)
    floor, promised = math.log1p(policy.speed_floor), math.log1p(policy.promised_slowdown)
    return low <= floor and high >= -floor and -promised < low and high < promised


def slower_holds(slowed: Estimate, policy: Policy) -> bool:
    """Whether a time that was slowed down, over itself, is proved to be above the floor.

    Example:
        >>> slower_holds(Estimate(0.14, 0.01), Policy()), slower_holds(Estimate(0.14, 0.06), Policy())
        (True, False)
    """
    return slowed.interval(policy.confidence)[0] > math.log1p(policy.speed_floor)
