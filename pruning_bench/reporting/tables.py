"""What terminal and Markdown share: headings, cells, and the lines above them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pruning_bench.judging.baseline import PORTABLE, TIMED
from pruning_bench.judging.controls import CLOCKS
from pruning_bench.judging.gate import Report
from pruning_bench.judging.policy import SIMULATED, Policy
from pruning_bench.judging.verdicts import Verdict
from pruning_bench.records import Outcome, Run
from pruning_bench.reporting import text
from pruning_bench.reporting.rows import Row
from pruning_bench.reporting.verdict_text import delta_format, interval, is_score, size

HEADINGS = (
    "recipe", "runtime", "top-1", "change", "size", "smaller", "MACs",
    "latency", "speed-up", "strongest", "outcome",
)  # fmt: skip
ALIGN = ("left", "left", *["right"] * 6, "left", "right", "left")
VERDICT_HEADINGS = ("outcome", "metric", "baseline -> now", "delta", "margin", "could see", "n", "case")
VERDICT_ALIGN = ("left", "left", "left", "left", "right", "right", "right", "left")  # the longest cell last
FULL_COUNT = 10  # INCONCLUSIVE verdicts listed in full


@dataclass(frozen=True)
class Table:
    """Cells of one table, and the notes that its outcomes refer to."""

    title: str
    headings: Sequence[str]
    align: Sequence[str]
    cells: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


def headline(report: Report) -> str:
    """One line: the verdict on the run and how many of each outcome."""
    if not report.judged:
        return "not judged: the run was interrupted"
    counts = ", ".join(f"{number} {outcome.value}" for outcome, number in report.counts.items())
    broken = {v.metric for v in report.verdicts if v.outcome is Outcome.INVALID}
    why = "the machine was not fit to measure" if broken & {*CLOCKS} else "wrong outputs would not be found"
    compared, unknown = _cases(report)
    passed = "nothing compared" if unknown and not compared else "passed"
    words = {0: passed, 1: "FAILED", 6: f"INVALID: a control failed, {why}"}
    open_ = sum(v.suspect for v in report.verdicts)
    hits = f", {open_} suspected slow-downs not confirmed in fresh processes" if open_ else ""
    return f"{words[report.exit_status]}: {counts or 'nothing to judge'}{hits}"


def _cases(report: Report) -> tuple[set[str], set[str]]:
    """The cases of which something was compared with a baseline, and those of which nothing was."""
    measured = [v for v in report.verdicts if v.rule in PORTABLE + TIMED]
    compared = {v.case_id for v in measured if v.fails or v.outcome not in (Outcome.NEW, Outcome.INCOMPARABLE)}
    return compared, {v.case_id for v in measured} - compared


def without_baseline(report: Report) -> list[str]:
    """One line that says of how many cases nothing is judged; none where something is of each."""
    compared, unknown = _cases(report)
    total = len(compared) + len(unknown)
    return [f"{len(unknown)} of {total} cases have no baseline: nothing of them is judged"] if unknown else []


def how_to_accept(run: Run, report: Report) -> list[str]:
    """One line that says what is NEW, and by which command it becomes a baseline; none where nothing is."""
    new = len({v.case_id for v in report.verdicts if v.rule in PORTABLE and v.outcome is Outcome.NEW})
    found = [f"{new} cases have NEW portable metrics"] if new else []
    if report.new_times:
        found.append(f"{report.new_times} timed cases are NEW or INCOMPARABLE on this machine")
    if not found:
        return []
    scope = "" if len(found) == 2 else "--portable " if new else "--times "
    caution = "; what fails stays out with --only CASE" if report.failing else ""
    command = f'pruning-bench accept {run.id} {scope}--reason "..."'
    return [f"{', '.join(found)}; to compare from now on: {command}{caution}"]


def false_alarms(report: Report) -> str:
    """What is known of how often unchanged code fails: the level of the test, and what was simulated of it."""
    level = text.percent(max(report.policy.alpha, report.policy.accuracy_p), 0)
    line = f"{report.tested} changed accuracies and suspected speeds tested together (Holm, level {level})"
    if report.policy != Policy():
        return f"{line}; how often this policy fails unchanged code was not simulated"
    found = f"{SIMULATED.failed} of {SIMULATED.runs} simulated runs of {SIMULATED.cases} unchanged speeds failed"
    return f"{line}; {found}, with normal noise of {text.percent(SIMULATED.spread)} between processes"


def preamble(run: Run, report: Report, rows: Sequence[Row]) -> list[str]:
    """The lines above the tables."""
    lines = [headline(report), *without_baseline(report), f"run {run.id}, profile {run.profile}"]
    lines.append("on " + ", ".join(f"{name} {value}" for name, value in sorted(run.environment.must_match.items())))
    if any(v.rule in ("speed", "paired") and v.p is not None for v in report.verdicts):
        lines.append(false_alarms(report))
    if any(v.rule == "speed" for v in report.verdicts) and not any(v.rule == "control" for v in report.verdicts):
        lines.append("no control was measured: nothing shows that the machine was fit; a dense case brings them")
    remarks = {str(m.detail["remark"]): m.case_id for m in reversed(run.measurements) if "remark" in m.detail}
    lines += [f"{remark} [{case_id}]" for remark, case_id in reversed(remarks.items())]
    if not_reached := sum(case.state == "not_run" for case in run.cases):
        lines.append(f"stopped early: {not_reached} cases that were selected were not reached, nothing is said of them")
    lines += how_to_accept(run, report)
    if any(row.speedup is not None for row in rows):
        sure = text.percent(report.policy.confidence, 0)
        lines.append(f"speed-up: time of the dense model on the same runtime / time, with its {sure} interval")
    strongest: dict[str, list[str]] = {}
    for row in rows:
        if row.strongest and row.model not in strongest.setdefault(row.strongest, []):
            strongest[row.strongest].append(row.model)
    if strongest:
        which = "; ".join(f"{name} for {', '.join(models)}" for name, models in sorted(strongest.items()))
        lines.append(f"strongest: the same against the strongest dense model here, {which}")
    if any(row.processes == 1 for row in rows):
        lines.append("a speed-up from a single process: other processes may differ by more than its interval says")
    return lines


def case_tables(rows: Iterable[Row]) -> list[Table]:
    """One table for each model and data set."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(f"{row.model} on {row.dataset}" if row.dataset else row.model, []).append(row)
    return [_case_table(title, members) for title, members in groups.items()]


def _case_table(title: str, rows: Sequence[Row]) -> Table:
    notes: dict[str, int] = {}
    cells = []
    for row in rows:
        mark = f" [{notes.setdefault(row.note, len(notes) + 1)}]" if row.note else ""
        cells.append([*_cells(row), (row.outcome or text.NOTHING) + mark])
    below = [f"[{number}] {note}" for note, number in notes.items()]
    name = next((row.score_name for row in rows if row.score_name), "top-1")
    headings = [name if heading == "top-1" else heading for heading in HEADINGS]
    return Table(title, headings, ALIGN, cells, [*below, *simulation_notes(rows)])


def simulation_notes(rows: Iterable[Row]) -> list[str]:
    """One line that says how often each quantized model predicts as its simulation does; none without such a model."""
    parts = []
    for row in rows:
        if row.simulation_agreement is not None and not row.score_name:
            unquantized = f" (unquantized: {text.percent(row.simulation_agreement_float, 2)})"
            where = f"{row.recipe or row.case_id} on {row.runtime} {row.settings}".rstrip()
            parts.append(f"{where} {text.percent(row.simulation_agreement, 2)}{unquantized}")
    what = "predictions (at most the first 2,000 test examples) equal to those of the quantized model's simulation"
    return [f"{what}: {'; '.join(parts)}"] if parts else []


def _cells(row: Row) -> list[str]:
    speedup = text.times(row.speedup)
    if row.speedup_low is not None and row.speedup_high is not None:
        speedup += f" [{text.times(row.speedup_low)[:-1]}, {text.times(row.speedup_high)[:-1]}]"
    seeds = f" /{row.seeds}" if row.seeds > 1 else ""
    return [
        row.recipe or row.case_id,
        f"{row.runtime} {row.settings}".strip(),
        (text.score(row.score, row.score_unit) if row.score_name else text.percent(row.top1, 2)) + seeds,
        text.score(row.score_change, row.score_unit, sign=True) if row.score_name else text.points(row.top1_change),
        text.amount(row.bytes, "B"),
        text.times(row.compression),
        text.amount(row.macs),
        text.seconds(row.latency),
        speedup,
        text.times(row.strongest_speedup),
    ]


def verdict_tables(report: Report) -> list[Table]:
    """What fails, by severity; then what was inconclusive, with the smallest effect that it could have seen."""
    open_ = [v for v in report.verdicts if v.outcome is Outcome.INCONCLUSIVE]
    tables = [_verdict_table("failing", report.failing), _verdict_table("inconclusive", open_[:FULL_COUNT])]
    if len(open_) > FULL_COUNT:
        tables[1] = _verdict_table(f"inconclusive ({FULL_COUNT} of {len(open_)})", open_[:FULL_COUNT])
    return [table for table in tables if table.cells]


def _verdict_table(title: str, verdicts: Sequence[Verdict]) -> Table:
    notes: dict[str, int] = {}
    cells = []
    for v in verdicts:
        mark = f" [{notes.setdefault(v.note, len(notes) + 1)}]" if v.note else ""
        delta = delta_format(v)(v.delta) + (f" {interval(v)}" if v.interval else "")
        written = text.score if is_score(v) else text.measured
        change = f"{written(v.then, v.unit)} -> {written(v.now, v.unit)}"
        limits = [size(v, v.margin), size(v, v.smallest_detectable), str(v.n or text.NOTHING)]
        cells.append([v.outcome.value + mark, v.metric, change, delta, *limits, v.case_id])
    return Table(title, VERDICT_HEADINGS, VERDICT_ALIGN, cells, [f"[{n}] {note}" for note, n in notes.items()])
