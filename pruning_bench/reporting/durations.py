"""How long a run will take, as one line."""

from __future__ import annotations

from pruning_bench.judging.durations import Expected
from pruning_bench.reporting.text import duration


def expected_text(found: Expected) -> str:
    """What is expected, and what that is known from.

    Example:
        >>> expected_text(Expected(700.0, 90, 10, ("20260101T0000-ci",)))
        '100 tests, about 12 min (90 as in run 20260101T0000-ci, 10 guessed); measuring suspects again comes on top'
        >>> expected_text(Expected(700.0, 0, 100, ()))
        '100 tests, about 12 min (a guess: no earlier run tells); measuring suspects again comes on top'
    """
    why = "a guess: no earlier run tells"
    if found.known:
        others = f" and {len(found.runs) - 1} others" if len(found.runs) > 1 else ""
        guessed = f", {found.guessed} guessed" if found.guessed else ""
        why = f"{found.known} as in run {found.runs[0]}{others}{guessed}"
    tests = found.known + found.guessed
    return f"{tests} tests, about {duration(found.seconds)} ({why}); measuring suspects again comes on top"
