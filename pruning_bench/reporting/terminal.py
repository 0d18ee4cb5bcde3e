"""The report as plain text."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

from pruning_bench.judging.gate import Report
from pruning_bench.records import Run
from pruning_bench.reporting.rows import Row
from pruning_bench.reporting.tables import Table, case_tables, preamble, verdict_tables


def to_terminal(run: Run, report: Report, rows: Sequence[Row]) -> str:
    """The whole report: the verdict, what fails and why, then one table for each model."""
    parts = ["\n".join(preamble(run, report, rows))]
    parts += [table_text(table) for table in (*verdict_tables(report), *case_tables(rows))]
    return "\n\n".join(parts)


def table_text(table: Table) -> str:
    """Title, cells in columns and notes."""
    body = tabulate(
        [[_one_line(cell) for cell in cells] for cells in table.cells],
        headers=list(table.headings),
        colalign=list(table.align),
        tablefmt="simple",
        disable_numparse=True,
    )
    return "\n".join([table.title, body, *map(_one_line, table.notes)])


def _one_line(cell: str) -> str:
    return " ".join(cell.split())
