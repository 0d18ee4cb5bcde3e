"""Controls: what must hold for a run to be worth judging.

A control is a `Measurement` of rule "control" whose detail says `{"holds": bool, "why": str}`; its value and samples
are for the reader. One that says nothing does not hold.
"""

from __future__ import annotations

from collections.abc import Iterable

from pruning_bench.records import Measurement


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
