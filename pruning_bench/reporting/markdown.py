"""The report as Markdown, for a job summary or a README."""

from __future__ import annotations

from collections.abc import Sequence

from pruning_bench.judging.gate import Report
from pruning_bench.records import Run
from pruning_bench.reporting.rows import Row
from pruning_bench.reporting.tables import Table, case_tables, preamble, verdict_tables

_RULE = {"left": ":--", "right": "--:"}


def to_markdown(run: Run, report: Report, rows: Sequence[Row]) -> str:
    """The same headings, rows and notes as in the terminal."""
    first, *rest = preamble(run, report, rows)
    head = [f"**{escaped(first)}**", "", *(f"* {escaped(line)}" for line in rest)]
    tables = [table_lines(table) for table in (*verdict_tables(report), *case_tables(rows))]
    return "\n".join([*head, *(line for table in tables for line in ("", *table))]) + "\n"


def table_lines(table: Table) -> list[str]:
    """Title, rows and notes of one table."""
    lines = [f"### {escaped(table.title)}", "", _line(table.headings)]
    lines += [_line([_RULE[side] for side in table.align]), *map(_line, table.cells)]
    return [*lines, *(("", *(f"* {escaped(note)}" for note in table.notes)) if table.notes else ())]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(escaped, cells))} |"


def escaped(text: str) -> str:
    r"""Text that Markdown shows as it is: one line, no markup, no cell ends.

    Example:
        >>> print(escaped("a|b_c <d>"))
        a\|b\_c &lt;d>
    """
    text = " ".join(text.split()).replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;")
    for sign in "|*_`[]":
        text = text.replace(sign, f"\\{sign}")
    return text
