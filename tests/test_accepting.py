"""What accepting times asks of this machine."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pruning_bench import accepting, environment, processes
from pruning_bench.errors import RecordError
from pruning_bench.judging.acceptance import accept as merged
from pruning_bench.judging.baseline import Baseline, BaselineLine, read_baseline, write_baseline
from pruning_bench.judging.policy import Policy
from pruning_bench.records import CaseStatus, Environment, Measurement, Run, write_run
from pruning_bench.registry import RUNTIMES

HERE = Environment({"cpu": "x"})


class OnlyOnTheCpu:
    """A runtime that is not there for a GPU."""

    def available(self, device: str = "cpu") -> str | None:
        return None if device == "cpu" else f"no {device} here"


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(environment, "of_suite", lambda runtimes, device, names: HERE)
    monkeypatch.setattr(processes, "measure_afresh", lambda bench, case_ids, count, **_: [[] for _ in range(count)])
    run = Run("20260101T000000-smoke", "2026-01-01", "smoke", HERE, (), ())

    def ask(*case_ids: str) -> list[Any]:
        with RUNTIMES.temporarily("only_cpu", OnlyOnTheCpu()):
            return accepting._measure(run, list(case_ids), Policy(), None, Path("nowhere"))

    return ask


def test_the_runtime_is_asked_for_the_device_of_the_cases(measure: Any) -> None:
    assert measure("m-d/dense/only_cpu") == [], "a runtime that is here should be measured"
    with pytest.raises(RecordError, match="no cuda here, should be available"):
        measure("m-d/dense/only_cpu-cuda")


def test_of_several_processes_the_fastest_anchor_and_yardstick_count() -> None:
    times = {"anchor_latency": ("canary", (3.0, 1.0, 2.0)), "yardstick": ("machine", (0.2, 0.3, 0.1))}
    fresh = [
        Measurement("m-d/dense/eager", metric, value, "s", "lower", rule)
        for metric, (rule, values) in times.items()
        for value in values
    ]
    found = {m.metric: m.value for m in accepting._best(fresh)}
    assert found == {"anchor_latency": 1.0, "yardstick": 0.1}, f"{found}"


def speed(case: str, *ratios: float) -> Measurement:
    samples = tuple(math.log(ratio) for ratio in ratios)
    mean = math.exp(sum(samples) / len(samples))
    return Measurement(case, "relative_time", mean, "1", "lower", "speed", samples, errors=(0.002,) * len(samples))


@pytest.mark.parametrize(
    ("then", "now", "refused"),
    [
        ((0.50,), (0.50, 0.51, 0.50, 0.49, 0.50), False),
        ((0.50,), (0.54, 0.55, 0.54, 0.55, 0.54), False),
        ((0.50,), (0.75, 0.76, 0.75, 0.74, 0.75), True),
        ((0.75,), (0.50, 0.51, 0.50, 0.49, 0.50), True),
        ((0.50,), (0.40, 1.20, 0.50, 0.90, 0.70), False),
    ],
    ids=["the same", "within what is promised", "slower since", "faster since", "too noisy to say"],
)
def test_times_that_the_run_did_not_measure_are_refused(
    then: tuple[float, ...], now: tuple[float, ...], refused: bool
) -> None:
    sides = [speed("a", *then), speed("b", 1.0)], [speed("a", *now), speed("b", 1.0, 1.0, 1.0, 1.0, 1.0)]
    if not refused:
        accepting.refuse_changed(*sides, Policy())
        return
    with pytest.raises(RecordError, match=r"in fresh processes, 0\.[57]5* in the run.*\[a\]"):
        accepting.refuse_changed(*sides, Policy())


def test_speeds_too_noisy_to_show_what_is_promised_are_named() -> None:
    lines = [
        BaselineLine(case, "relative_time", 1.0, "1", "lower", "speed", spread=spread, processes=5)
        for case, spread in (("a", 0.01), ("b", 0.08), ("c", 0.0))
    ]
    (found,) = accepting.too_noisy(lines)
    assert found.startswith("1 of 3 speeds differ so much between processes that 15% slower will not be seen: b;"), (
        found
    )
    assert accepting.too_noisy(lines[::2]) == [], "named although each shows 15 %"


@pytest.mark.parametrize("scope", ["times", "all"])
def test_what_others_accept_while_times_are_measured_stays(
    scope: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ratios = (0.5,) * 5

    def run_of(name: str, case: str, size: float) -> Run:
        times = speed(case, *ratios), Measurement(case, "anchor_latency", 1.0, "s", "lower", "canary")
        size_of = Measurement(case, "bytes", size, "B", "lower", "exact")
        return Run(name, "t", "smoke", HERE, (CaseStatus(case, "ran"),), (*times, size_of))

    folder = tmp_path / "baselines"
    run, other = run_of("r1", "m-d/dense/eager", 1.0), run_of("r2", "m-d/magnitude:0.5/eager", 2.0)
    single = replace(run, measurements=(speed("m-d/dense/eager", 0.5), *run.measurements[1:]))
    write_run(single, tmp_path / "runs" / "r1.jsonl")
    write_baseline(merged(Baseline(), single, reason="first", scope="portable"), folder)

    def meanwhile(*_: object) -> list[Measurement]:
        theirs = merged(read_baseline(folder), other, reason="meanwhile", only=["m-d/magnitude:0.5/eager"])
        write_baseline(theirs, folder)
        return list(run.measurements)

    monkeypatch.setattr(accepting, "_measure", meanwhile)
    written = accepting.accept(tmp_path, "r1", reason="mine", scope=scope)
    found = read_baseline(folder)
    cases = {"m-d/dense/eager", "m-d/magnitude:0.5/eager"}
    assert {case for case, _ in found.portable} == cases, f"lost of {cases}: {set(found.portable)}"
    assert {case for case, _ in found.own_times(HERE)} == cases, f"lost of {cases}: {set(found.own_times(HERE))}"
    assert "portable.jsonl" not in written, f"{written}, should name no file that this accept did not change"
