"""From a recorded run to its report: baselines, verdicts, confirmation, the same rows for terminal, Markdown and JSON.

No torch, no pytest: an old run can be judged again where neither is installed. How suspects are measured again is
handed in as a function.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from pruning_bench.errors import PruningBenchError, UnknownNameError, closest, one_line
from pruning_bench.judging.baseline import read_baseline
from pruning_bench.judging.gate import Report, confirm, judge_run, runtime_of, suspects, undecided
from pruning_bench.judging.history import find_run, run_path
from pruning_bench.judging.policy import Policy
from pruning_bench.judging.verdicts import WHOLE_CASE, Verdict
from pruning_bench.records import Measurement, Outcome, Run, read_run, write_atomically, write_run
from pruning_bench.reporting.as_json import to_json
from pruning_bench.reporting.insertion import put_between_marks
from pruning_bench.reporting.junit import to_junit
from pruning_bench.reporting.markdown import to_markdown
from pruning_bench.reporting.rows import Row, rows_of
from pruning_bench.reporting.terminal import to_terminal

ROUNDS = (1, 2)
Afresh = Callable[[list[str], int], list[list[Measurement]]]


@dataclass(frozen=True)
class Review:
    """A judged run and its report.

    Args:
        run: as recorded.
        report: its verdicts.
        rows: of the report's table.
    """

    run: Run
    report: Report
    rows: tuple[Row, ...]

    @property
    def exit_status(self) -> int:
        """What the process should end with."""
        return self.report.exit_status

    @property
    def lines(self) -> list[str]:
        """The report for a terminal."""
        return to_terminal(self.run, self.report, self.rows).splitlines()

    def write_reports(self, folder: Path) -> None:
        """Writes the report as Markdown, JSON and JUnit XML, under the run's id and as `latest`."""
        for name in (self.run.id, "latest"):
            write_atomically(folder / f"{name}.md", to_markdown(self.run, self.report, self.rows))
            write_atomically(folder / f"{name}.json", to_json(self.run, self.report, self.rows))
            write_atomically(folder / f"{name}.junit.xml", to_junit(self.report))


def review_run(
    results: Path, run: Run, *, require: Collection[str] = (), afresh: Afresh | None = None, decide: bool = False
) -> Review:
    """Judges a run that was just recorded.

    Args:
        require: runtimes whose absence fails the run.
        afresh: measures cases again in so many fresh processes; None leaves suspects unconfirmed, which never fail.
        decide: also measure again what one process could not decide.
    """
    policy = Policy()
    baseline = read_baseline(results / "baselines")
    report = judge_run(run, baseline, policy, require)
    asked = sorted({*suspects(report), *(undecided(report) if decide else ())})
    for number in ROUNDS:
        if not asked or afresh is None:
            break
        try:
            fresh = [m for process in afresh(asked, policy.confirmation_processes) for m in process]
        except (PruningBenchError, OSError) as problem:
            failed = [Verdict(c, WHOLE_CASE, Outcome.ERROR, note=one_line(problem), fails=True) for c in asked]
            report = dataclasses.replace(report, verdicts=(*failed, *report.verdicts))
            break
        again = dataclasses.replace(run, measurements=tuple(fresh))
        write_run(again, _confirmation(results, run, number))
        report = confirm(report, fresh, baseline)
        asked = list(suspects(report))  # what was undecided before may be suspect now
    return Review(run, report, rows_of(run, report, baseline))


def review(results: Path, run_id: str, *, require: Collection[str] = ()) -> Review:
    """Judges a recorded run again, with the confirmation that it had.

    Raises:
        RecordError: no such run, or a damaged file.
        UnknownNameError: a required runtime that no case of the run's grid names.
    """
    policy = Policy()
    run = read_run(find_run(results / "runs", run_id))
    _refuse_unknown(require, run)
    baseline = read_baseline(results / "baselines")
    report = judge_run(run, baseline, policy, require)
    for number in ROUNDS:
        if (path := _confirmation(results, run, number)).is_file():
            report = confirm(report, read_run(path).measurements, baseline)
    return Review(run, report, rows_of(run, report, baseline))


def _refuse_unknown(require: Collection[str], run: Run) -> None:
    known = {runtime_of(case.case_id) for case in run.cases}
    for name in require:
        if name not in known:
            raise UnknownNameError("runtime", repr(name), closest(name, known), f"run {run.id}")


def put_into(path: Path, made: Review) -> None:
    """Puts the report between the two marks of a Markdown file; raises `RecordError` without marks."""
    put_between_marks(path, to_markdown(made.run, made.report, made.rows))


def _confirmation(results: Path, run: Run, number: int) -> Path:
    return run_path(results / "runs" / "confirmations", f"{run.id}-{number}")
