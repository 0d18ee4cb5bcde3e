"""One run of the suite as the pytest plug-in sees it: which cases, what they recorded, what the judge says."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import ClassVar

import pytest

from pruning_bench import cases, environment, reviewing
from pruning_bench.build_cache import usual_cache
from pruning_bench.cases import Case, parse_id
from pruning_bench.discover import discover
from pruning_bench.errors import PruningBenchError, one_line
from pruning_bench.judging.durations import LONG_SECONDS, earlier_runs, expect
from pruning_bench.measuring import FAMILIES
from pruning_bench.models.checkpoints import SHIPPED
from pruning_bench.own import TABLE, own_pairs, read_settings
from pruning_bench.processes import measure_afresh
from pruning_bench.progress import StatusLine
from pruning_bench.records import CaseState, CaseStatus, Environment, Measurement, Run, write_run
from pruning_bench.registry import DATASETS, MODELS, RUNTIMES
from pruning_bench.reporting.durations import expected_text
from pruning_bench.workbench import Workbench


@dataclass(frozen=True)
class Options:
    """The plug-in's options by their names without `pb_`."""

    NAMES: ClassVar = (
        *("profile", "model", "recipe", "runtime", "require", "threads"),
        *("device", "dataset", "data", "checkpoints", "no_confirm", "no_cache", "suite"),
    )

    results: Path
    root: Path = Path()
    profile: str | None = None
    model: list[str] | None = None
    recipe: list[str] | None = None
    runtime: list[str] | None = None
    require: list[str] | None = None
    threads: list[int] | None = None
    device: str = "cpu"
    dataset: list[str] | None = None
    data: str | None = None
    checkpoints: str | None = None
    no_confirm: bool = False
    no_cache: bool = False
    suite: bool = False  # the models of a user's repository instead of the shipped
    part: bool = False  # pytest-benchmark's own options leave tests out


class Replay:
    """A timer for pytest-benchmark that lets recorded times pass instead of real ones."""

    __name__ = "replayed_interleaved_samples"
    __module__ = "pruning_bench"

    def __init__(self) -> None:
        self._readings: list[float] = []

    def load(self, times: tuple[float, ...]) -> None:
        """Takes seconds per call; each round reads the clock before and after."""
        now, self._readings = 0.0, []
        for seconds in times:
            self._readings += [now, now + seconds]
            now += seconds
        self._readings.reverse()

    def __call__(self) -> float:
        """The next reading, in seconds."""
        return self._readings.pop()

    def nothing(self) -> None:
        """What pytest-benchmark calls between two readings; the measuring is done already."""


class Suite:
    """State of one run."""

    def __init__(self, options: Options) -> None:
        discover()
        settings = read_settings(options.root)
        settings.register()
        named = list(settings.runtimes) or None
        options = replace(options, runtime=options.runtime or named)
        self.options = options
        self._check_names(named or ())
        name = options.profile or settings.profile or "smoke"
        self.profile = cases.own_profile(name, settings.recipes) if options.suite else cases.profile(name)
        checkpoints = Path(options.checkpoints).absolute() if options.checkpoints else SHIPPED
        pairs = self._pairs(checkpoints)
        models = options.model or [name for name in MODELS if name not in self.profile.leaves_out]
        offered = [*pairs, *cases.ready_pairs(options.model or ())]
        chosen = [(m, d) for m, d in offered if m in models and d in (options.dataset or DATASETS)]
        if not chosen:
            raise PruningBenchError("suite", "no trained model", "a checkpoint of a registered model", str(checkpoints))
        if options.data and all(d == cases.RANDOM or DATASETS[d].own for _, d in chosen):
            read = ", ".join(dict.fromkeys(d for _, d in chosen))
            raise PruningBenchError("--pb-data", repr(options.data), f"left out: {read} is read from no folder")
        shipped = [] if options.suite else cases.reference_pairs(DATASETS, SHIPPED)
        known = [(m, d) for m, d in dict.fromkeys([*pairs, *shipped]) if m not in self.profile.leaves_out]
        self.whole = [
            case
            for device in ("cpu", "cuda")
            for case in cases.grid(self.profile, known, runtimes=named, device=device)
        ]
        self.grid = cases.grid(
            self.profile,
            chosen,
            recipes=["dense", *options.recipe] if options.suite and options.recipe else options.recipe,
            runtimes=options.runtime,
            threads=options.threads,
            device=options.device,
        )
        self._check_required()
        rivals = cases.rivals_of(self.grid)
        self.environment: Environment = environment.of_suite(RUNTIMES, options.device, {name for name, _ in rivals})
        folder = Path(options.data) if options.data else None
        cache = None if options.no_cache else usual_cache()
        self.bench = Workbench(
            folder=folder, full=folder is not None, checkpoints=checkpoints, cache=cache, rivals=rivals
        )
        for model, dataset in chosen:  # what is missing or damaged is refused before anything runs
            self.bench.check(Case(model, dataset, "dense", "eager"))
        self.created = datetime.now(timezone.utc)
        self.replays: dict[str, Replay] = {}
        self.problems: list[str] = []
        self.interrupted = False
        self.unavailable: set[tuple[str, str]] = set()
        self._items: dict[str, tuple[str, str]] = {}
        self._families = set(FAMILIES)
        self._everything = False
        self._states: dict[str, tuple[CaseState, str]] = {}
        self._seconds: dict[str, float] = {}
        self._measured: dict[tuple[str, str], list[Measurement]] = {}
        self._rounds = 0
        self._now = ""
        self._line: StatusLine | None = None
        self._review: reviewing.Review | None = None

    def _pairs(self, checkpoints: Path) -> list[tuple[str, str]]:
        """(model, data set) of all trained models there are: a user's own, and those that have a checkpoint."""
        own = own_pairs()
        if self.options.suite and not self.options.checkpoints:
            if not own:
                expected = f"@trained_model and @evaluation_data in a conftest.py, or model and data in {TABLE}"
                raise PruningBenchError("--pb-suite", "no model registered", expected, str(self.options.root))
            return own
        return [*own, *cases.reference_pairs(DATASETS, checkpoints)]

    def _check_names(self, runtimes: Collection[str]) -> None:
        for name in self.options.model or ():
            MODELS[name]
        for name in [*runtimes, *(self.options.runtime or ()), *(self.options.require or ())]:
            RUNTIMES[name]
        for name in self.options.dataset or ():
            DATASETS[name]
        for count in self.options.threads or ():
            if count < 1:
                raise PruningBenchError("--pb-threads", str(count), ">= 1")

    def _check_required(self) -> None:
        """Raises `PruningBenchError` for a required runtime that no chosen case runs on, whose absence nobody saw."""
        chosen = dict.fromkeys(case.runtime for case in self.grid)
        for name in self.options.require or ():
            if name not in chosen:
                raise PruningBenchError("--pb-require", repr(name), f"a runtime of this run ({', '.join(chosen)})")

    def ids(self, family: str) -> list[str]:
        """Ids of the chosen cases that belong to a family."""
        return [str(case) for case in self.grid if FAMILIES[family].covers(case)]

    def marks(self, family: str, case_id: str) -> list[pytest.MarkDecorator]:
        """Marks of a parametrized case: warnings stay warnings; for latency, also the timer that replays its times."""
        lenient = pytest.mark.filterwarnings("default")
        if family != "latency":
            return [lenient]
        replay = self.replays.setdefault(case_id, Replay())
        case = parse_id(case_id)
        return [lenient, pytest.mark.benchmark(timer=replay, group=f"{case.model}-{case.dataset} {case.runtime}")]

    def select(self, items: Mapping[str, tuple[str, str]], families: Collection[str], everything: bool) -> None:
        """Notes the tests that were selected.

        Args:
            items: node id -> (family, case id).
            families: those of which there is a test at all.
            everything: nothing of the suite was left out by path, so that a family without a test has none any more.
        """
        self._items = dict(items)
        self._families = set(families) if everything else set(FAMILIES)
        self._everything = everything

    def measure(self, family: str, case_id: str) -> None:
        """Measures a case and keeps what it records."""
        self._now = case_id
        try:
            self._measured[family, case_id] = FAMILIES[family].measure(self.bench, parse_id(case_id))
        finally:
            if self._line:
                self._line.clear()

    def times_of(self, case_id: str) -> tuple[float, ...]:
        """Seconds per call of a case that was just timed."""
        return next(m.samples for m in self._measured["latency", case_id] if m.metric == "latency")

    def note(self, node_id: str, state: CaseState, reason: str) -> None:
        """Notes how the test of a case ended."""
        if node_id in self._items:
            if state == "skipped" and self.options.part and self._items[node_id] not in self.unavailable:
                state = "deselected"  # by pytest-benchmark's own options
            self._states[node_id] = (state, reason if state != "ran" else "")

    def spent(self, node_id: str, seconds: float) -> None:
        """Notes what a part of a test took: its setup, its call, its end."""
        if node_id in self._items:
            self._seconds[node_id] = self._seconds.get(node_id, 0.0) + seconds

    def expected(self, tests: Collection[tuple[str, str]]) -> str | None:
        """One line on how long the tests will take, if that may be long.

        Args:
            tests: (family, case id) of those that will run.
        """
        found = expect(tests, earlier_runs(self.options.results / "runs", self.environment))
        worth_a_line = tests and (found.seconds > LONG_SECONDS or self.profile.name != cases.PROFILES["smoke"].name)
        return f"pruning_bench: {expected_text(found)}" if worth_a_line else None

    def watch(self, line: StatusLine) -> None:
        """Shows on the line what is being built, from now on."""
        self._line = line
        self.bench.progress = lambda message, done, total: line.show(f"{message} {done}/{total}: {self._now}")

    def reports_something(self) -> bool:
        """Whether any case of the suite was selected."""
        return bool(self._items)

    def statuses(self) -> tuple[CaseStatus, ...]:
        """What became of every case of the whole grid and of every chosen one."""
        by_case: dict[str, list[tuple[str, CaseState, str]]] = {}
        seconds: dict[str, dict[str, float]] = {}
        for node, (family, case_id) in self._items.items():
            state, reason = self._states.get(node, ("not_run", ""))
            by_case.setdefault(case_id, []).append((family, state, reason))
            if state == "ran" and node in self._seconds:
                seconds.setdefault(case_id, {})[family] = round(self._seconds[node], 3)
        everything = dict.fromkeys([*self.whole, *self.grid])
        whole = set(self.whole)
        ends = {case: by_case.get(str(case), []) for case in everything}
        return tuple(
            replace(
                _status(case, ended),
                extra=case not in whole,
                whole=self._is_whole(case, ended),
                seconds=seconds.get(str(case), {}),
            )
            for case, ended in ends.items()
        )

    def _is_whole(self, case: Case, ended: list[tuple[str, CaseState, str]]) -> bool:
        """Whether all tests there are of a case ran to their end."""
        if case not in self.grid or not (ended or self._everything):
            return False
        expected = {family for family in self._families if FAMILIES[family].covers(case)}
        return expected <= {family for family, _, _ in ended} and all(state == "ran" for _, state, _ in ended)

    @property
    def id(self) -> str:
        """Names the run: when it began, and its profile."""
        return f"{self.created:%Y%m%dT%H%M%S%f}-{self.profile.name}"

    def run(self, interrupted: bool = False) -> Run:
        """The record of this run so far."""
        return Run(
            id=self.id,
            created=self.created.isoformat(timespec="seconds"),
            profile=self.profile.name,
            environment=self.environment,
            cases=self.statuses(),
            measurements=tuple(m for part in self._measured.values() for m in part),
            interrupted=interrupted,
        )

    @functools.cached_property
    def file(self) -> Path:
        """Where the run is recorded."""
        return self.options.results / "runs" / f"{self.id}.jsonl"

    def write(self, interrupted: bool) -> bool:
        """Writes the records, before anything is judged; where the results folder takes none, among temporary files.

        Returns:
            whether they are where they belong.
        """
        self.interrupted = interrupted
        run = self.run(interrupted)
        try:
            write_run(run, self.file)
        except OSError as problem:
            found = f"the run cannot be recorded: {one_line(problem)}"
            self.problems.append(f"{found}; {_kept_elsewhere(run, self.file.name)}")
            return False
        return True

    def interrupt(self) -> None:
        """Notes that judging was interrupted; the records stay whole, to be judged later."""
        self.interrupted = True

    def judge(self) -> int:
        """Judges the run, confirming suspected slow-downs in fresh processes; returns the exit status."""
        afresh = None if self.options.no_confirm else self._measure_afresh
        require = tuple(self.options.require or ())
        self._review = reviewing.review_run(
            self.options.results, self.run(), require=require, afresh=afresh, decide=self.profile.decide
        )
        self._review.write_reports(self.options.results / "reports")
        return self._review.exit_status

    def _measure_afresh(self, case_ids: list[str], processes: int) -> list[list[Measurement]]:
        self._rounds += 1
        dense = [str(parse_id(case_id).dense) for case_id in case_ids]  # they bring the controls
        return measure_afresh(self.bench, list(dict.fromkeys([*dense, *case_ids])), processes, seed=1000 * self._rounds)

    def summary(self) -> list[str]:
        """Lines for the terminal."""
        lines = list(self._review.lines) if self._review else []
        if self.interrupted and not self.problems:
            lines.append(f"not judged: interrupted; what was measured is recorded as run {self.file.stem}")
        return [*lines, *self.problems]


def _kept_elsewhere(run: Run, name: str) -> str:
    """Writes a run among temporary files; says where, or that it is lost."""
    try:
        path = Path(tempfile.mkdtemp(prefix="pruning_bench-")) / name
        write_run(run, path)
    except OSError as problem:
        return f"nor elsewhere, what was measured is lost: {one_line(problem)}"
    return f"it is kept in {path}"


def _status(case: Case, ended: list[tuple[str, CaseState, str]]) -> CaseStatus:
    """The worst of what a case's tests ended in, and the metrics that were due from those that ran to their end."""
    due = tuple(metric for family, state, _ in ended if state == "ran" for metric in FAMILIES[family].due(case))
    for state in ("error", "skipped", "not_run", "ran", "deselected"):
        for _, found, reason in ended:
            if found == state:
                return CaseStatus(str(case), found, reason, due, case.trains)
    return CaseStatus(str(case), "deselected", "", (), case.trains)
