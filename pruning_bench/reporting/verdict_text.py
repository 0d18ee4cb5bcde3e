"""A verdict in words."""

from __future__ import annotations

from collections.abc import Callable

from pruning_bench.judging.baseline import TIMED
from pruning_bench.judging.verdicts import WHOLE_CASE, Verdict
from pruning_bench.records import Outcome
from pruning_bench.reporting import text

QUIET = (Outcome.PASS, Outcome.NEW)  # outcomes that need no words


def is_score(verdict: Verdict) -> bool:
    """Whether it is on a user's score, which may be no share although its unit is "1"."""
    return verdict.rule == "paired" and verdict.metric != "top1"


def delta_format(verdict: Verdict) -> Callable[[float | None], str]:
    """How differences of this verdict are written: relative for times, points for shares, else in the unit.

    Example:
        >>> delta_format(Verdict("case", "psnr", Outcome.PASS, "paired", "dB"))(-0.5)
        '-0.5 dB'
    """
    if verdict.rule in TIMED:
        return lambda value: text.percent(value, sign=True)
    if is_score(verdict):
        return lambda value: text.score(value, verdict.unit, sign=True)
    if verdict.unit == "1":
        return text.points
    return lambda value: text.NOTHING if value is None else f"{value:+.12g}"


def interval(verdict: Verdict) -> str:
    """The interval of the difference, its unit once.

    Example:
        >>> interval(Verdict("case", "relative_time", Outcome.PASS, "speed", interval=(-0.01, 0.02)))
        '[-1.0, +2.0] %'
    """
    if verdict.interval is None:
        return text.NOTHING
    return text.interval(verdict.interval, delta_format(verdict))


def size(verdict: Verdict, value: float | None) -> str:
    """A margin or an effect: a difference without its sign."""
    return delta_format(verdict)(value).lstrip("+")


def explained(verdict: Verdict) -> str:
    """One line on a verdict that is neither PASS nor NEW; "" for those.

    Example:
        >>> explained(Verdict("case", "bytes", Outcome.REGRESSED, "exact", "B", "lower", 1001, 1000, 1, margin=0))
        'bytes +1'
    """
    if verdict.outcome in QUIET:
        return ""
    if verdict.metric == WHOLE_CASE:
        return verdict.note
    parts = [verdict.metric if verdict.delta is None else f"{verdict.metric} {delta_format(verdict)(verdict.delta)}"]
    if verdict.interval is not None:
        parts[0] += f" {interval(verdict)} (margin {size(verdict, verdict.margin)})"
    if verdict.outcome is Outcome.INCONCLUSIVE and verdict.smallest_detectable is not None:
        parts.append(f"could have seen {size(verdict, verdict.smallest_detectable)}")
    if verdict.note:
        parts.append(verdict.note)
    return ", ".join(parts)
