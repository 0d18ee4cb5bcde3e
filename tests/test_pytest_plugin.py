"""The plug-in end to end, on a user's own model and a runtime whose clock is made up."""

import json
import math
import re
import runpy
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import pruning_bench
from pruning_bench import cli, measuring, processes, rivals, suite, tasks, workbench
from pruning_bench.cases import PROFILES, Case, parse_id
from pruning_bench.discover import discover, import_files
from pruning_bench.environment import current
from pruning_bench.errors import PruningBenchError
from pruning_bench.measuring import measure_latency
from pruning_bench.models.checkpoints import save_checkpoint
from pruning_bench.processes import measure_afresh
from pruning_bench.records import Environment, Measurement, read_run
from pruning_bench.registry import DATASETS, METRICS, MODELS, RUNTIMES, STEPS
from pruning_bench.runtimes.contract import Session

pytest_plugins = ["pytester"]
HERE = Path(__file__).parent
DEFINITIONS = HERE / "toy_suite" / "toy_definitions.py"
ARGUMENTS = (
    "-pno:xdist",
    *("--pb-profile=ci", "--pb-runtime=virtual", "--pb-recipe=dense", "--pb-recipe=planted:0"),
    "--pb-checkpoints=trained",
)
PLANTED = "toy-pixels/planted:0/virtual"
DENSE = "toy-pixels/dense/virtual"


@contextmanager
def registries_kept() -> Iterator[None]:
    """Forgets what is registered inside, since the suite's runs here share this process."""
    discover()
    every = (STEPS, MODELS, DATASETS, RUNTIMES, METRICS)
    before = [dict(registry._items) for registry in every]
    try:
        yield
    finally:
        for registry, items in zip(every, before, strict=True):
            registry._items.clear()
            registry._items.update(items)


class Toy:
    """A user's repository with the toy suite in it."""

    def __init__(self, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pytester, self.monkeypatch = pytester, monkeypatch
        monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # pytest-benchmark would measure nothing
        with_examples = replace(
            PROFILES["ci"], examples=True, threads=(1,), further=None
        )  # the planted ones belong to it
        monkeypatch.setitem(PROFILES, "ci", with_examples)
        shutil.copytree(
            HERE.parent / "benchmarks", pytester.path / "benchmarks", ignore=shutil.ignore_patterns("__pycache__")
        )
        definitions = (HERE / "toy_suite" / "toy_definitions.py").read_text()
        (pytester.path / "conftest.py").write_text(definitions)
        (pytester.path / "pytest.ini").write_text("[pytest]\n")
        self.train()

    @property
    def results(self) -> Path:
        return self.pytester.path / "results"

    def train(self, shift: float = 0.0) -> None:
        """Writes the checkpoint; `shift` changes its weights without changing a prediction."""
        with registries_kept():
            model = runpy.run_path(str(DEFINITIONS))["trained"]()
        model[3].bias.data += shift
        card = {"model": "toy", "dataset": "pixels", "options": {}}
        save_checkpoint(model, card, self.pytester.path / "trained" / "toy-pixels.safetensors")

    def run(self, *arguments: str, **options: Any) -> pytest.RunResult:
        """One run of the suite in this process."""
        where = () if any(a.startswith("benchmarks") for a in arguments) else ("benchmarks",)
        with registries_kept():
            return self.pytester.runpytest_inprocess(*where, *ARGUMENTS, *arguments, **options)

    def accept(self, *arguments: str) -> int:
        """Accepts the latest run."""
        for name in [name for name in sys.modules if name.startswith("pruning_bench_user_")]:
            del sys.modules[name]
        where = [f"--results={self.results}", "--checkpoints=trained", "--reason=test"]
        with registries_kept():
            import_files([str(self.pytester.path / "conftest.py")])
            return cli.main(["accept", "latest", *where, *arguments])

    def report(self) -> dict[str, Any]:
        text = (self.results / "reports" / "latest.json").read_text()
        loaded: dict[str, Any] = json.loads(text)
        return loaded

    def outcome(self, case: str, metric: str) -> str:
        found = [v for v in self.report()["verdicts"] if (v["case_id"], v["metric"]) == (case, metric)]
        return str(found[0]["outcome"]) if found else "none"

    def outcomes(self) -> set[str]:
        return {v["outcome"] for v in self.report()["verdicts"]}


def in_this_process(
    bench: Any, case_ids: Any, count: int, *, seed: int = 0, progress: Any = None
) -> list[list[Measurement]]:
    """Stands in for fresh processes: on a made-up clock they would measure the same."""
    return [[m for c in case_ids for m in measure_latency(bench, parse_id(c), seed=seed + n)] for n in range(count)]


build_rival = rivals._built


def build_rival_of_one_clock(bench: Any, rival: Case) -> Session | None:
    """Stands in for building rivals: those on a real clock would be exported only to be left out."""
    return build_rival(bench, rival) if rival.runtime == "virtual" else None


@pytest.fixture
def toy(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, libraries_stay: None) -> Toy:
    monkeypatch.setattr(rivals, "_built", build_rival_of_one_clock)
    monkeypatch.setattr(processes, "measure_afresh", in_this_process)
    monkeypatch.setattr(suite, "measure_afresh", in_this_process)
    return Toy(pytester, monkeypatch)


@pytest.fixture(scope="module")
def baselines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test that accepts a run leaves its baselines for the others, which would make the same."""
    return tmp_path_factory.mktemp("accepted") / "baselines"


@pytest.fixture
def accepted(toy: Toy, baselines: Path) -> Toy:
    """The toy with a baseline and nothing else in its results, whichever test comes first."""
    if not baselines.exists():
        first = toy.run()
        assert first.ret == 0, first.stdout.str()
        assert toy.accept() == 0
        shutil.move(toy.results / "baselines", baselines)
        shutil.rmtree(toy.results)
    shutil.copytree(baselines, toy.results / "baselines")
    return toy


def test_the_first_run_is_new_and_says_how_to_accept(toy: Toy) -> None:
    toy.monkeypatch.setattr(rivals, "_built", build_rival)
    result = toy.run()
    assert result.ret == 0, result.stdout.str()
    assert toy.outcomes() == {"NEW", "PASS"}, toy.report()["counts"]  # the controls pass
    result.stdout.fnmatch_lines(
        ["nothing compared: *", "* cases have no baseline: *", "*pruning-bench accept 2*-ci --reason*"]
    )
    assert not (toy.results / "baselines").exists(), "a run became a baseline by itself"


def test_unchanged_code_passes(accepted: Toy) -> None:
    result = accepted.run()
    assert result.ret == 0, result.stdout.str()
    assert accepted.outcomes() == {"PASS"}, accepted.report()["counts"]


@pytest.mark.parametrize(
    ("variable", "value", "metric"), [("PLANTED_DROP", "1", "top1"), ("PLANTED_SLOW", "0.15", "relative_time")]
)
def test_a_planted_loss_is_found(accepted: Toy, variable: str, value: str, metric: str) -> None:
    accepted.monkeypatch.setenv(variable, value)
    result = accepted.run()
    assert accepted.outcome(PLANTED, metric) == "REGRESSED", result.stdout.str()
    assert result.ret == 1, f"exit status {result.ret}"
    others = {(v["case_id"], v["rule"]) for v in accepted.report()["verdicts"] if v["outcome"] == "REGRESSED"}
    expected = {"top1": {(PLANTED, "paired"), (PLANTED, "exact")}, "relative_time": {(PLANTED, "speed")}}[metric]
    assert others == expected, f"regressed: {others}"  # the spoilt weight was a zero, so that it counts exactly too
    before = sorted((accepted.results / "baselines").iterdir())
    texts = [path.read_text() for path in before]
    accepted.run()
    assert [path.read_text() for path in before] == texts, "a failing run changed the baseline"


def test_a_slow_down_within_the_margin_passes(accepted: Toy) -> None:
    accepted.monkeypatch.setenv("PLANTED_SLOW", "0.01")
    result = accepted.run()
    assert result.ret == 0, result.stdout.str()
    assert accepted.outcome(PLANTED, "relative_time") == "PASS", result.stdout.str()


def test_an_unconfirmed_slow_down_does_not_fail(accepted: Toy) -> None:
    """The mutant of the confirmation: fresh processes that see nothing must clear the suspicion."""
    asked: list[str] = []

    def innocent(bench: Any, case_ids: Any, count: int, *, seed: int = 0, progress: Any = None) -> Any:
        asked.extend(case_ids)
        accepted.monkeypatch.setenv("PLANTED_SLOW", "0")
        bench._made = {k: v for k, v in bench._made.items() if k[0] != "session"}
        return in_this_process(bench, case_ids, count, seed=seed)

    accepted.monkeypatch.setattr(suite, "measure_afresh", innocent)
    accepted.monkeypatch.setenv("PLANTED_SLOW", "0.15")
    result = accepted.run()
    assert result.ret == 0, result.stdout.str()
    assert accepted.outcome(PLANTED, "relative_time") == "PASS", accepted.outcome(PLANTED, "relative_time")
    assert asked == [DENSE, PLANTED], f"{asked} measured again, should be the suspect and what brings its controls"


def test_a_removed_case_is_missing(accepted: Toy) -> None:
    accepted.monkeypatch.setenv("PLANTED_GONE", "1")
    with registries_kept():
        result = accepted.pytester.runpytest_inprocess("benchmarks", *(a for a in ARGUMENTS if "planted" not in a))
    assert accepted.outcome(PLANTED, "case") == "MISSING", result.stdout.str()
    assert result.ret == 1, f"exit status {result.ret}"


def test_a_family_without_a_test_any_more_is_missing_until_accepted(accepted: Toy) -> None:
    (accepted.pytester.path / "benchmarks" / "test_latency.py").unlink()
    result = accepted.run()
    assert result.ret == 1, result.stdout.str()
    assert accepted.outcome(PLANTED, "relative_time") == "MISSING", accepted.report()["counts"]
    assert accepted.outcome(PLANTED, "top1") == "PASS", accepted.report()["counts"]
    assert accepted.accept() == 0
    result = accepted.run()
    assert result.ret == 0, result.stdout.str()


def test_a_case_that_its_family_does_not_cover_any_more_is_missing(accepted: Toy) -> None:
    narrower = replace(measuring.FAMILIES["latency"], covers=lambda case: case.recipe == "dense")
    accepted.monkeypatch.setitem(measuring.FAMILIES, "latency", narrower)
    result = accepted.run()
    assert result.ret == 1, result.stdout.str()
    missing = {(v["case_id"], v["metric"]) for v in accepted.report()["verdicts"] if v["outcome"] == "MISSING"}
    assert missing == {(PLANTED, "relative_time"), (PLANTED, "anchor_latency")}, f"{missing}"


def test_a_crash_in_one_family_hides_nothing_of_the_others(accepted: Toy) -> None:
    nothing = replace(measuring.FAMILIES["quality"], measure=lambda bench, case: [])
    accepted.monkeypatch.setitem(measuring.FAMILIES, "quality", nothing)
    accepted.monkeypatch.setattr(measuring, "sample", lambda *a, **k: 1 / 0)
    result = accepted.run()
    assert result.ret == 1, result.stdout.str()
    assert accepted.outcome(PLANTED, "case") == "ERROR", accepted.report()["counts"]
    assert accepted.outcome(PLANTED, "top1") == "MISSING", accepted.report()["counts"]


@pytest.mark.parametrize(
    "selection",
    [
        ("benchmarks/test_footprint.py",),
        ("benchmarks/test_latency.py", "-k", "planted"),
        ("-k", "dense"),
        (f"benchmarks/test_quality.py::test_quality[{DENSE}]",),
        (f"--deselect=benchmarks/test_latency.py::test_latency[{PLANTED}]",),
        ("--ignore=benchmarks/test_latency.py",),
        ("benchmarks/test_quality.py", "benchmarks/test_footprint.py"),
        ("--benchmark-skip",),
    ],
    ids=lambda s: " ".join(s).replace("benchmarks/", ""),
)
def test_a_selection_raises_no_missing(accepted: Toy, selection: tuple[str, ...]) -> None:
    result = accepted.run(*selection)
    assert result.ret == 0, result.stdout.str()
    assert "MISSING" not in accepted.outcomes(), result.stdout.str()


def test_stopping_at_the_first_failure_raises_no_missing(accepted: Toy) -> None:
    accepted.monkeypatch.setenv("PLANTED_CRASH", "1")
    result = accepted.run("-x")
    assert result.ret == 1, result.stdout.str()
    result.stdout.fnmatch_lines(["*stopped early: 1 cases*"])
    assert accepted.outcomes() <= {"PASS", "ERROR"}, accepted.report()["counts"]
    assert accepted.outcome(PLANTED, "case") == "ERROR", accepted.report()["counts"]


def test_times_of_another_machine_are_incomparable_and_the_rest_is_judged(accepted: Toy) -> None:
    (file,) = (accepted.results / "baselines").glob("times-*.jsonl")
    header, *lines = file.read_text().splitlines()
    fields = json.loads(header)
    fields["must_match"]["cpu"] = "another"
    key = Environment(fields["must_match"]).key
    file.with_name(f"times-{key}.jsonl").write_text("\n".join([json.dumps(fields), *lines]) + "\n")
    file.unlink()
    result = accepted.run()
    assert result.ret == 0, result.stdout.str()
    assert accepted.outcome(PLANTED, "relative_time") == "INCOMPARABLE", result.stdout.str()
    assert accepted.outcome(PLANTED, "top1") == "PASS", result.stdout.str()
    accepted.monkeypatch.setenv("PLANTED_DROP", "1")
    result = accepted.run()
    assert accepted.outcome(PLANTED, "top1") == "REGRESSED", result.stdout.str()
    assert result.ret == 1, f"exit status {result.ret}"


def test_a_changed_checkpoint_is_incomparable_and_fails(accepted: Toy) -> None:
    accepted.train(shift=0.5)
    result = accepted.run()
    assert accepted.outcome(PLANTED, "top1") == "INCOMPARABLE", result.stdout.str()
    assert result.ret == 1, f"exit status {result.ret}"


def test_a_runtime_that_is_away_is_unavailable(accepted: Toy) -> None:
    accepted.monkeypatch.setenv("VIRTUAL_AWAY", "1")
    result = accepted.run()
    assert result.ret == 0, result.stdout.str()
    assert accepted.outcome(PLANTED, "case") == "UNAVAILABLE", result.stdout.str()
    result = accepted.run("--pb-require=virtual")
    assert result.ret == 1, result.stdout.str()


def _no_slow_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "slowed", lambda call, share, clock: call)


def _nothing_is_significant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "mcnemar_midp", lambda lost, gained: 1.0)


def _twin_drifts(monkeypatch: pytest.MonkeyPatch) -> None:
    original = measuring.sample

    def drifting(*args: Any, **options: Any) -> Any:
        taken = original(*args, **options)
        return replace(taken, twin=tuple(1.2 * seconds for seconds in taken.twin))

    monkeypatch.setattr(measuring, "sample", drifting)


@pytest.mark.parametrize("spoil", [_no_slow_down, _nothing_is_significant, _twin_drifts])
def test_a_failing_control_makes_the_run_invalid(toy: Toy, spoil: Callable[[pytest.MonkeyPatch], None]) -> None:
    spoil(toy.monkeypatch)
    result = toy.run()
    assert result.ret == 6, f"exit status {result.ret}\n{result.stdout.str()}"
    assert toy.accept() == 2, "an invalid run was accepted"
    assert not (toy.results / "baselines").exists(), "an invalid run became the baseline"


def test_a_cut_sample_is_inconclusive_and_breaks_no_control(accepted: Toy) -> None:
    original = measuring.sample

    def cut(*args: Any, **options: Any) -> Any:
        taken = original(*args, **options)
        few, rounds = slice(0, 7), tuple(i for i in taken.twin_rounds if i < 7)
        others = {name: times[few] for name, times in taken.others.items()}
        twin = tuple(1.2 * seconds for seconds in taken.twin[: len(rounds)])
        fields = {"anchor": taken.anchor[few], "case": taken.case[few], "others": others, "stopped": "cut"}
        return replace(taken, twin=twin, twin_rounds=rounds, **fields)

    accepted.monkeypatch.setattr(measuring, "sample", cut)
    accepted.monkeypatch.setenv("PLANTED_SLOW", "0.5")
    result = accepted.run()
    assert result.ret == 0, result.stdout.str()
    assert accepted.outcome(PLANTED, "relative_time") == "INCONCLUSIVE", accepted.report()["counts"]
    result.stdout.fnmatch_lines(["*sampling ran out of time after 7 pairs, an interval needs 60*"])


def test_benchmark_compare_works_on_the_second_run_from_any_folder(toy: Toy) -> None:
    toy.run()
    elsewhere = toy.pytester.path / "elsewhere"
    elsewhere.mkdir()
    toy.monkeypatch.chdir(elsewhere)
    where, trained = str(toy.pytester.path / "benchmarks"), f"--pb-checkpoints={toy.pytester.path / 'trained'}"
    with registries_kept():
        result = toy.pytester.runpytest_inprocess(where, *ARGUMENTS, trained, "--benchmark-compare")
    assert result.ret == 0, result.stdout.str()
    result.stdout.fnmatch_lines(["*(0001_suite)*", "*(NOW)*"])
    result.stdout.no_fnmatch_line("*another environment*")
    saved = [json.loads(path.read_text()) for path in sorted((toy.results / "runs/pytest-benchmark").rglob("*.json"))]
    assert len(saved) == 2, f"{len(saved)} files of pytest-benchmark"
    assert all(run["machine_info"] == dict(current(device="cpu").must_match) for run in saved), saved[0]["machine_info"]
    assert len(list((toy.results / "runs").glob("*.jsonl"))) == 2, "the second run was recorded elsewhere"


def test_a_broken_baseline_is_named_by_file_and_line(accepted: Toy) -> None:
    file = accepted.results / "baselines" / "portable.jsonl"
    lines = file.read_text().splitlines()
    lines[2] = lines[2][:-20]
    file.write_text("\n".join(lines) + "\n")
    broken = file.read_text()
    result = accepted.run()
    assert result.ret == 4, f"exit status {result.ret}"
    result.stdout.fnmatch_lines(["*portable.jsonl:3*"])
    assert file.read_text() == broken, "the broken file was changed"
    runs = sorted((accepted.results / "runs").glob("*.jsonl"))
    assert read_run(runs[-1]).measurements, "the run was not recorded"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--pb-profile=smok"], "smoke"),
        (["--pb-model=toi"], "toy"),
        (["--pb-runtime=virtua"], "virtual"),
        (["--pb-require=virtua"], "virtual"),
        (["--pb-recipe=magnitud:0.5"], "magnitude"),
        (["--pb-recipe=magnitude:0.5,,"], "^"),
        (["--pb-recipe=magnitude:0.5,block=0"], "'0', should be int in [1, 1e9] for magnitude's block"),
        (["--pb-recipe=magnitude:1.2"], "magnitude: sparsity 1.2, should be in [0, 1)"),
        (["--pb-recipe=planted:0+magnitude"], "magnitude: no level, should be a sparsity"),
        (["--pb-recipe=static:w8"], "static: level w8 without activations"),
        (["--pb-require=eager"], "--pb-require: 'eager', should be a runtime of this run (virtual)"),
        (["--pb-threads=0"], ">= 1"),
        (["--pb-checkpoints=nowhere"], "nowhere"),
        (["--pb-data=nowhere"], "nowhere"),
    ],
    ids=lambda v: v[0] if isinstance(v, list) else "",
)
def test_wrong_options_are_usage_errors(toy: Toy, arguments: list[str], says: str) -> None:
    result = toy.run(*arguments)
    text = result.stdout.str() + result.stderr.str()
    assert result.ret == 4, text
    assert says in text, text
    assert "Traceback" not in text, text
    assert not list((toy.results / "runs").glob("*.jsonl")), "a run was recorded"


def test_a_damaged_checkpoint_is_refused_before_anything_runs(toy: Toy) -> None:
    path = toy.pytester.path / "trained" / "toy-pixels.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    result = toy.run()
    text = result.stdout.str() + result.stderr.str()
    assert result.ret == 4, text
    assert "toy-pixels.safetensors" in text, text
    assert not list((toy.results / "runs").glob("*.jsonl")), "a run was recorded"


def test_a_case_that_cannot_be_built_fails_in_one_line(toy: Toy) -> None:
    """The method exports the model first, which torch traces."""
    result = toy.run("benchmarks/test_footprint.py", "--pb-recipe=l1_filter:0.99")
    assert result.ret == 1, result.stdout.str()
    failures = result.stdout.str().partition("= FAILURES =")[2].partition("= pruning_bench =")[0].splitlines()
    said = [line for line in failures if line and not line.startswith(("_", "="))]
    assert len(said) == 1, "\n".join(said)
    assert said[0].startswith("l1_filter: "), said[0]


@pytest.mark.parametrize("option", ["--collect-only", "--setup-plan", "--setup-only"])
def test_what_calls_no_test_records_and_judges_nothing(toy: Toy, option: str) -> None:
    result = toy.run(option)
    assert result.ret == 0, result.stdout.str()
    assert "passed" not in result.stdout.str(), result.stdout.str()
    written = [path for path in toy.results.rglob("*") if path.is_file()]
    assert not written, f"{written}"


def test_a_skip_mark_hides_no_family(accepted: Toy) -> None:
    file = accepted.pytester.path / "benchmarks" / "test_latency.py"
    file.write_text(file.read_text() + "\nimport pytest\n\npytestmark = pytest.mark.skip(reason='too noisy today')\n")
    accepted.run()
    assert accepted.outcome(PLANTED, "case") == "UNAVAILABLE"
    notes = {v["note"] for v in accepted.report()["verdicts"] if v["outcome"] == "UNAVAILABLE"}
    assert any("too noisy today" in note for note in notes), f"{notes}"


def test_a_run_without_controls_says_so(accepted: Toy) -> None:
    words = "*no control was measured*"
    accepted.run("-k", "planted").stdout.fnmatch_lines([words])
    accepted.run().stdout.no_fnmatch_line(words)


def test_suspects_that_nobody_confirmed_are_in_the_headline(accepted: Toy) -> None:
    accepted.monkeypatch.setenv("PLANTED_SLOW", "0.15")
    result = accepted.run("--pb-no-confirm")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["passed: *1 suspected slow-downs not confirmed in fresh processes*"])


FAKE_XDIST = """
def pytest_addoption(parser):
    parser.addoption("--numprocesses", type=int)
    parser.addoption("--tx", action="append")
    parser.addoption("--dist", default="no")
"""


@pytest.mark.parametrize("arguments", [("--numprocesses=2",), ("--tx=2*popen", "--dist=load")], ids=["n", "tx"])
@pytest.mark.parametrize("with_conftest", [True, False])
def test_parallel_runs_are_refused(toy: Toy, with_conftest: bool, arguments: tuple[str, ...]) -> None:
    toy.pytester.makepyfile(fake_xdist=FAKE_XDIST)
    toy.pytester.syspathinsert()
    if not with_conftest:
        (toy.pytester.path / "benchmarks" / "conftest.py").unlink()
    result = toy.run("-p", "fake_xdist", *arguments)
    text = result.stdout.str() + result.stderr.str()
    assert result.ret == 4, text
    assert "several processes, should be one" in text, text
    assert "Traceback" not in text, text
    assert not (toy.results / "runs").exists(), "something was measured"


def test_a_way_to_share_out_and_nobody_to_share_with_runs(toy: Toy) -> None:
    toy.pytester.makepyfile(fake_xdist=FAKE_XDIST)
    toy.pytester.syspathinsert()
    assert toy.run("-p", "fake_xdist", "--dist=load", "--collect-only").ret == 0


def _interrupt(*arguments: Any, **options: Any) -> Any:
    raise KeyboardInterrupt


def test_an_interrupted_run_is_recorded_and_says_so(accepted: Toy) -> None:
    accepted.monkeypatch.setattr(measuring, "sample", _interrupt)
    result = accepted.run(no_reraise_ctrlc=True)
    assert result.ret == 2, result.stdout.str()
    (file,) = (accepted.results / "runs").glob("*.jsonl")
    result.stdout.fnmatch_lines([f"not judged: interrupted; what was measured is recorded as run {file.stem}"])
    run = read_run(file)
    assert run.interrupted, "recorded as whole"
    assert run.measurements, "nothing was recorded"
    assert not (accepted.results / "reports").exists(), "an interrupted run was judged"


def test_interrupting_the_confirmation_leaves_a_run_to_be_judged(accepted: Toy) -> None:
    accepted.monkeypatch.setattr(suite, "measure_afresh", _interrupt)
    accepted.monkeypatch.setenv("PLANTED_SLOW", "0.15")
    result = accepted.run(no_reraise_ctrlc=True)
    assert result.ret == 2, result.stdout.str()
    (file,) = (accepted.results / "runs").glob("*.jsonl")
    result.stdout.fnmatch_lines([f"not judged: *{file.stem}"])
    assert not read_run(file).interrupted, "what was measured is whole"


def _no_space(path: Path, *arguments: Any, **options: Any) -> None:
    raise OSError(28, "No space left on device", str(path))


def check_one_line(result: pytest.RunResult, pattern: str) -> None:
    text = result.stdout.str() + result.stderr.str()
    assert result.ret == 4, text
    result.stdout.fnmatch_lines([pattern])
    assert "Traceback" not in text, text
    assert "INTERNALERROR" not in text, text


def test_records_that_cannot_be_written_are_kept_elsewhere(toy: Toy) -> None:
    toy.results.write_text("a file where the folder should be")
    result = toy.run()
    check_one_line(result, "the run cannot be recorded: *; it is kept in *.jsonl")
    (line,) = [line for line in result.outlines if line.startswith("the run cannot be recorded")]
    kept = Path(line.rpartition(" ")[2])
    assert read_run(kept).measurements, "nothing was kept"
    shutil.rmtree(kept.parent)


def test_records_that_fit_nowhere_are_said_to_be_lost(toy: Toy) -> None:
    toy.monkeypatch.setattr(suite, "write_run", lambda run, path: _no_space(path))
    check_one_line(toy.run(), "the run cannot be recorded: No space left*; *is lost: No space left on device [[]*")


def test_reports_that_cannot_be_written_lose_no_verdict(accepted: Toy) -> None:
    (accepted.results / "reports").write_text("a file where the folder should be")
    result = accepted.run()
    check_one_line(result, "passed: *")
    check_one_line(result, "*[[]*reports*]")


@pytest.mark.parametrize("problem", [OSError(28, "No space left on device", "a file"), RuntimeError("a bug")])
def test_records_are_written_before_pytest_benchmark_saves(accepted: Toy, problem: Exception) -> None:
    from pytest_benchmark.session import BenchmarkSession

    def fails(self: Any) -> None:
        raise problem

    accepted.monkeypatch.setattr(BenchmarkSession, "finish", fails)
    result = accepted.run()
    if isinstance(problem, OSError):
        check_one_line(result, "No space left on device [[]a file]")
        check_one_line(result, "passed: *")
    (file,) = (accepted.results / "runs").glob("*.jsonl")
    assert read_run(file).measurements, "the run was not recorded"


def test_a_librarys_warning_is_no_error_of_a_case(accepted: Toy) -> None:
    """Other tests of the project stay as strict as it asks for."""
    (accepted.pytester.path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    strict = "import warnings\ndef test_strict(): warnings.warn('x', DeprecationWarning)\n"
    (accepted.pytester.path / "benchmarks" / "test_strict.py").write_text(strict)

    def warns(*arguments: Any, **options: Any) -> Any:
        warnings.warn("a library has changed its mind", DeprecationWarning, stacklevel=1)
        return in_this_process(*arguments, **options)

    accepted.monkeypatch.setattr(suite, "measure_afresh", warns)
    accepted.monkeypatch.setenv("PLANTED_WARNING", "1")
    accepted.monkeypatch.setenv("PLANTED_SLOW", "0.15")
    result = accepted.run()
    assert result.parseoutcomes()["failed"] == 1, result.stdout.str()
    result.stdout.fnmatch_lines(["FAILED *test_strict*"])
    assert accepted.outcomes() == {"PASS", "REGRESSED"}, accepted.report()["counts"]


def test_the_path_after_benchmark_compare_is_caught(toy: Toy) -> None:
    with registries_kept():
        result = toy.pytester.runpytest_inprocess("--benchmark-compare", "benchmarks")
    assert result.ret == 4, result.stdout.str()
    result.stderr.fnmatch_lines(["*write the path first*"])


def test_an_extra_case_is_not_of_the_profile(accepted: Toy) -> None:
    result = accepted.run("--pb-recipe=random:0.5")
    assert result.ret == 0, result.stdout.str()
    assert accepted.accept("--portable") == 0
    rows = (accepted.results / "baselines" / "portable.jsonl").read_text()
    assert "toy-pixels/random:0.5/virtual" in rows, rows
    result = accepted.run()
    assert result.ret == 0, result.stdout.str()
    assert "MISSING" not in accepted.outcomes(), accepted.report()["counts"]


def test_skipping_benchmarks_makes_nothing_unavailable(accepted: Toy) -> None:
    result = accepted.run("--benchmark-skip", "--pb-require=virtual")
    assert result.ret == 0, result.stdout.str()
    assert "UNAVAILABLE" not in accepted.outcomes(), accepted.report()["counts"]


def test_a_crash_in_a_fresh_process_keeps_the_report(accepted: Toy) -> None:
    def crash(*arguments: Any, **options: Any) -> Any:
        raise PruningBenchError("fresh process", "exit status 1", "0")

    accepted.monkeypatch.setattr(suite, "measure_afresh", crash)
    accepted.monkeypatch.setenv("PLANTED_SLOW", "0.15")
    result = accepted.run()
    assert result.ret == 1, result.stdout.str()
    assert accepted.outcome(PLANTED, "case") == "ERROR", result.stdout.str()
    assert accepted.outcome(PLANTED, "top1") == "PASS", result.stdout.str()


def test_it_is_inert_elsewhere(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("import sys\ndef test_one(): assert 'torch' not in sys.modules")
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    assert result.ret == 0, result.stdout.str()
    assert "pruning_bench" not in result.stdout.str().split("test session starts")[1].split("collected")[1]
    assert not (pytester.path / "results").exists(), "it wrote results"


def test_a_cache_size_that_is_none_is_a_usage_error(toy: Toy) -> None:
    toy.monkeypatch.setenv("PRUNING_BENCH_CACHE_MIB", "2GB")
    result = toy.run()
    text = result.stdout.str() + result.stderr.str()
    assert result.ret == 4, text
    assert "PRUNING_BENCH_CACHE_MIB: '2GB', should be a whole number of MiB" in text, text
    assert "Traceback" not in text, text


def test_models_are_kept_between_runs_and_for_accept(toy: Toy) -> None:
    folder = toy.pytester.path / "kept"
    toy.monkeypatch.setenv("PRUNING_BENCH_CACHE", str(folder))
    toy.monkeypatch.setattr(pruning_bench, "STARTED", math.inf)  # as if the conftest.py had been there before
    made: list[str] = []
    whole = workbench.compress_with

    def noted(dense: nn.Module, recipe: str, *arguments: Any, **options: Any) -> Any:
        made.append(recipe)
        return whole(dense, recipe, *arguments, **options)

    toy.monkeypatch.setattr(workbench, "compress_with", noted)
    recipe = "--pb-recipe=random:0.5"
    toy.run(recipe, "--pb-no-cache")
    assert made.count("random:0.5") == 1, made
    assert not folder.exists(), "kept in spite of --pb-no-cache"
    toy.run(recipe)
    assert made.count("random:0.5") == 2, made
    result = toy.run(recipe)
    assert result.ret == 0, result.stdout.str()
    assert toy.accept() == 0
    assert made.count("random:0.5") == 2, f"{made}: made again, though nothing changed"
    assert made.count("planted:0") == 2, f"{made}: the method of a conftest.py was made again"
    toy.run(recipe, "--pb-no-cache")
    assert made.count("random:0.5") == 3, "served in spite of --pb-no-cache"


def test_fresh_processes_know_the_users_definitions(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, libraries_stay: None
) -> None:
    toy = Toy(pytester, monkeypatch)
    started: list[int] = []

    def one(bench: Any, case_ids: Any, count: int, **options: Any) -> list[list[Measurement]]:
        """A fresh process that counts as all of them: on a made-up clock they measure the same."""
        started.append(count)
        return measure_afresh(bench, case_ids, 1, **options) * count

    monkeypatch.setattr(processes, "measure_afresh", one)
    assert toy.run("-k", "latency").ret == 0
    assert toy.accept("--times", "--only", PLANTED) == 0
    (file,) = (toy.results / "baselines").glob("times-*.jsonl")
    line = next(json.loads(row) for row in file.read_text().splitlines() if '"speed"' in row)
    assert line["processes"] == 5, line
    assert started == [5], f"{started} fresh processes asked for"
    assert line["value"] == pytest.approx(0.5, rel=0.02), line


def test_a_long_profile_says_what_to_expect_from_what_it_took_before(toy: Toy) -> None:
    first = toy.run()
    first.stdout.fnmatch_lines(["pruning_bench: 6 tests, about * (a guess: no earlier run tells)*"])
    run = read_run(next((toy.results / "runs").glob("*.jsonl")))
    took = {case.case_id: sorted(case.seconds) for case in run.cases if case.state == "ran"}
    assert took == {case: ["footprint", "latency", "quality"] for case in (DENSE, PLANTED)}, took
    assert all(seconds > 0 for case in run.cases for seconds in case.seconds.values()), run.cases
    again = toy.run("-k", "quality or planted")
    again.stdout.fnmatch_lines([f"pruning_bench: 4 tests, about * (4 as in run {run.id})*"])
    silent = toy.run("--collect-only", "-q")
    assert "tests, about" not in silent.stdout.str(), silent.stdout.str()


def test_a_short_run_of_the_smoke_profile_says_nothing(toy: Toy) -> None:
    result = toy.run("--pb-profile=smoke")
    assert "tests, about" not in result.stdout.str(), result.stdout.str()


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_shows_what_is_being_built_and_a_file_does_not(toy: Toy, terminal: bool) -> None:
    hook = """
def pytest_collection(session):
    session.config.pluginmanager.get_plugin("terminalreporter").isatty = lambda: True
"""
    if terminal:
        (toy.pytester.path / "conftest.py").write_text(DEFINITIONS.read_text() + hook)
    shown = toy.run("benchmarks/test_quality.py", "--capture=fd").stdout.str()
    found = re.search(r"( planted:0 0/1: [^\x1b\n]+)\x1b\[(\d+)D\x1b\[K", shown)
    assert bool(found) == terminal, shown
    if found:
        assert len(found[1]) == int(found[2]), f"{found[0]!r} does not take all of it away"
    assert ("planted:0 0/1" in shown) == terminal, shown
