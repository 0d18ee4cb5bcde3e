"""What `compare-runs` prints: the change, where it is, and one line on times."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pruning_bench.judging.policy import Policy
from pruning_bench.judging.run_comparison import Change, RunComparison
from pruning_bench.judging.statistics import Estimate
from pruning_bench.records import Environment, Run
from pruning_bench.reporting.run_comparison_text import MOST_ALONE, run_comparison_text, summary

A, B = (Run(f"2026-{v}", "now", "smoke", Environment({"torch": v}), (), ()) for v in ("2.11.0", "2.14.1"))
CHANGES = (
    Change("net-data/dense/eager", "top1", "1", 0.93, 0.92, 150, 50, 230),
    Change("net-data/dense/eager", "bytes", "B", 1000, 1010),
)
FOUND = RunComparison(A, B, ("torch 2.11.0 -> 2.14.1",), 2, 20, 20000, CHANGES, 3, (), ("x (error: boom)",), None)


def test_a_change_is_shown_with_both_values() -> None:
    shown = run_comparison_text(FOUND)
    for words in (
        "torch 2.11.0 -> 2.14.1",
        "20 numbers of 2 cases and 20,000 predictions compared: 2 numbers of 1 cases changed, 230 predictions differ",
        "3 shown numbers differ by rounding",
        "times are not compared",
        "measured in B alone: 1\nx (error: boom)",
    ):
        assert words in shown, f"{words!r} is not in\n{shown}"
    row = next(line for line in shown.splitlines() if "top1" in line).split()
    assert row == ["net-data/dense/eager", "top1", "0.9300", "0.9200", "-0.01", "150", "50", "230"], row
    row = next(line for line in shown.splitlines() if "bytes" in line).split()
    assert row == ["net-data/dense/eager", "bytes", "1000", "B", "1010", "B", "+10", "-", "-", "-"], row


def test_nothing_changed_is_said() -> None:
    shown = run_comparison_text(replace(FOUND, changes=()))
    assert "nothing changed" in shown, shown
    assert "changed\n" not in shown.replace("nothing changed\n", ""), f"an empty table in\n{shown}"
    assert "nothing in common" in run_comparison_text(replace(FOUND, changes=(), numbers=0)), "no number was compared"


@pytest.mark.parametrize(
    ("times", "words"), [((), "none of 3 differ"), ((("x", Estimate(0.1, 0.01)),), "+10.5 % [+8.0")]
)
def test_times_of_one_environment(times: tuple[tuple[str, Estimate], ...], words: str) -> None:
    shown = "\n".join(summary(replace(FOUND, environment=(), times=times, timed=3), Policy()))
    assert words in shown, shown
    assert "environments: the same" in shown, shown
    assert "times are not compared" not in shown, shown
    nothing = "\n".join(summary(replace(FOUND, environment=(), times=(), timed=0), Policy()))
    assert "none was measured in both" in nothing, nothing


def test_a_long_list_is_cut_with_the_number_of_the_rest() -> None:
    shown = run_comparison_text(replace(FOUND, only_a=tuple(f"case{i}" for i in range(MOST_ALONE + 5))))
    assert f"measured in A alone: {MOST_ALONE + 5}" in shown, shown
    assert "... and 5 more" in shown, shown
