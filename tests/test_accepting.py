"""What accepting times asks of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pruning_bench import accepting, environment, processes
from pruning_bench.errors import RecordError
from pruning_bench.judging.policy import Policy
from pruning_bench.records import Environment, Measurement, Run
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
