"""The report as one JSON object."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from pruning_bench.judging.gate import Report
from pruning_bench.records import SCHEMA, Run
from pruning_bench.reporting.rows import Row


def to_json(run: Run, report: Report, rows: Sequence[Row]) -> str:
    """Keys: schema, kind "report", run, environment, judged, exit_status, counts, verdicts (worst first), rows.

    Numbers stay in their units (seconds, bytes, MACs, shares); what was not measured is null.
    """
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": "report",
        "run": {"id": run.id, "created": run.created, "profile": run.profile},
        "environment": {"key": run.environment.key, **dataclasses.asdict(run.environment)},
        "judged": report.judged,
        "exit_status": report.exit_status,
        "counts": {outcome.value: number for outcome, number in report.counts.items()},
        "verdicts": [{**dataclasses.asdict(v), "outcome": v.outcome.value} for v in report.verdicts],
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
