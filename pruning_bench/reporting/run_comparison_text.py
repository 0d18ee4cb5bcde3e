"""Two runs side by side as text: where they were made, what changed, what only one has."""

from __future__ import annotations

import math

from pruning_bench.judging.policy import Policy
from pruning_bench.judging.run_comparison import ROUNDING, Change, RunComparison
from pruning_bench.records import Run
from pruning_bench.reporting import text
from pruning_bench.reporting.markdown import escaped, table_lines
from pruning_bench.reporting.tables import Table
from pruning_bench.reporting.terminal import table_text

MOST_ALONE = 10  # listed of what one run alone measured
HEADINGS = ("case", "metric", "A", "B", "change", "right only in A", "right only in B", "predictions differ", "")
ALIGN = ("left", "left", *["right"] * 6, "left")


def run_comparison_text(found: RunComparison, policy: Policy | None = None) -> str:
    """What `pruning-bench compare-runs` prints."""
    parts = ["\n".join(summary(found, policy or Policy()))]
    if found.changes:
        parts.append(table_text(changes_table(found)))
    return "\n\n".join([*parts, *map("\n".join, _alone(found))])


def run_comparison_markdown(found: RunComparison, policy: Policy | None = None) -> str:
    """The same as Markdown."""
    parts = [[f"* {escaped(line)}" for line in summary(found, policy or Policy())]]
    if found.changes:
        parts.append(table_lines(changes_table(found)))
    for title, *lines in _alone(found):
        parts.append([f"{escaped(title)}:", "", *(f"* {escaped(line)}" for line in lines)])
    return "\n\n".join(map("\n".join, parts)) + "\n"


def _alone(found: RunComparison) -> list[list[str]]:
    """What one run alone measured: a title and the first few."""
    blocks = []
    for letter, alone in (("A", found.only_a), ("B", found.only_b)):
        if alone:
            more = [f"... and {len(alone) - MOST_ALONE} more"] if len(alone) > MOST_ALONE else []
            blocks.append([f"measured in {letter} alone: {len(alone)}", *alone[:MOST_ALONE], *more])
    return blocks


def summary(found: RunComparison, policy: Policy) -> list[str]:
    """The runs, how their environments differ, how much was compared and how much of it changed."""
    compared = f"{found.numbers} numbers of {found.cases} cases and {found.predictions:,} predictions compared"
    changed = {change.case_id for change in found.changes}
    flips = sum(change.flips or 0 for change in found.changes)
    outcome = f"{len(found.changes)} numbers of {len(changed)} cases changed, {flips:,} predictions differ"
    lines = [
        f"A  {_run(found.a)}",
        f"B  {_run(found.b)}",
        "environments: " + ("; ".join(found.environment) or "the same"),
        f"{compared}: {outcome if found.changes else 'nothing changed' if found.numbers else 'nothing in common'}",
    ]
    if found.rounded:
        lines.append(f"{found.rounded} shown numbers differ by rounding, no more than {ROUNDING:g} of their size")
    return [*lines, *_times(found, policy)]


def changes_table(found: RunComparison) -> Table:
    """A row for each number that changed."""
    cells = [
        [
            change.case_id,
            change.metric,
            text.measured(change.a, change.unit),
            text.measured(change.b, change.unit),
            _delta(change),
            *(text.NOTHING if count is None else str(count) for count in (change.lost, change.gained, change.flips)),
            change.note,
        ]
        for change in found.changes
    ]
    return Table("changed", HEADINGS, ALIGN, cells)


def _run(run: Run) -> str:
    versions = (f"{name} {run.environment.must_match.get(name, 'none')}" for name in ("torch", "onnxruntime", "python"))
    return f"{run.id}, profile {run.profile}, {', '.join(versions)}" + (", interrupted" if run.interrupted else "")


def _delta(change: Change) -> str:
    delta = change.b - change.a
    if not delta:
        return "0"
    return f"{delta:+.3g}" if change.unit == "1" else f"{delta:+.12g}"


def _times(found: RunComparison, policy: Policy) -> list[str]:
    if found.times is None:
        return ["times are not compared: they hold for one environment"]
    limit = text.percent(policy.speed_floor, 0)
    if not found.timed:
        return ["times are not compared: none was measured in both runs"]
    count = len(found.times) or "none"
    head = f"times against dense: {count} of {found.timed} differ by more than {limit} and the noise inside a process"
    lines = []
    for case_id, change in found.times:
        low, high = map(math.expm1, change.interval(policy.confidence))
        bounds = text.interval((low, high), lambda share: text.percent(share, sign=True))
        lines.append(f"  {text.percent(math.expm1(change.value), sign=True)} {bounds} {case_id}")
    return [f"{head}; processes differ too, judge says more", *lines]
