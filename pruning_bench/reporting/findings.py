"""What `pruning-bench doctor` found: one line each, and what to do about those that matter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pruning_bench.reporting.tables import Table
from pruning_bench.reporting.terminal import table_text

Level = Literal["ok", "note", "warning"]
# ok       as it should be
# note     worth knowing: numbers hold all the same
# warning  to be mended before numbers are believed


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        level: see above.
        what, found: the thing, and how it is.
        todo: what that means and what to do; needed for every level but ok.
    """

    level: Level
    what: str
    found: str
    todo: str = ""


def findings_text(findings: Sequence[Finding]) -> str:
    """The verdict in one line, then a table with what to do below it."""
    return f"{headline(findings)}\n\n{table_text(findings_table(findings))}"


def headline(findings: Sequence[Finding]) -> str:
    """Whether this machine is fit to measure, and what speaks against it.

    Example:
        >>> headline([Finding("ok", "timer", "fine"), Finding("warning", "load", "9 of 10 cores", "wait")])
        'not fit to measure as it is: load'
    """
    bad = [finding.what for finding in findings if finding.level == "warning"]
    return f"not fit to measure as it is: {', '.join(bad)}" if bad else "fit to measure"


def findings_table(findings: Sequence[Finding]) -> Table:
    """A row a finding; what to do stands below, by number, once."""
    notes: dict[str, int] = {}
    cells = []
    for finding in findings:
        mark = f" [{notes.setdefault(finding.todo, len(notes) + 1)}]" if finding.todo else ""
        cells.append([finding.level + mark, finding.what, finding.found])
    below = [f"[{number}] {todo}" for todo, number in notes.items()]
    return Table("what was looked at", ("", "what", "found"), ("left", "left", "left"), cells, below)
