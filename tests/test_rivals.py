"""Which dense models compete for the strongest."""

import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from pruning_bench import rivals
from pruning_bench.cases import PROFILES, Case, grid, rivals_of, runtimes_of
from pruning_bench.discover import discover
from pruning_bench.errors import UnavailableError
from pruning_bench.measuring import _strongest, simulates
from pruning_bench.metrics.latency import Samples
from pruning_bench.registry import RUNTIMES
from pruning_bench.runtimes.contract import Session
from pruning_bench.workbench import Workbench

CASE = Case("resnet20", "fashion_mnist", "static:w8a8", "onnxruntime")
PAIRS = (("eager", "dense"), ("onnxruntime", "dense"), ("eager", "cast:bf16"), ("onnxruntime", "cast:bf16"))


class Clock:
    """Seconds that pass only when a call says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def taking(self, seconds: float) -> Callable[[], object]:
        def call() -> None:
            self.now += seconds

        return call


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> tuple[Workbench, dict[str, float]]:
    """Sessions that take as long as a table says; what is not in it cannot be built."""
    made, seconds = Workbench(rivals=PAIRS), {"eager/dense": 3.0}

    def session(case: Case) -> Session:
        if (name := rivals.name_of(case)) not in seconds:
            raise UnavailableError(name, "away", "here")
        return Session(lambda *inputs: inputs[0], lambda *_: clock.taking(seconds[name]), clock=clock)

    monkeypatch.setattr(made, "session", session)
    return made, seconds


def found(bench: Workbench, case: Case, clock: Clock) -> list[str]:
    return list(rivals.rival_calls(bench, case, (torch.zeros(1),), clock.taking(1.0), clock))


def test_a_cast_that_is_fast_competes(bench: tuple[Workbench, dict[str, float]], clock: Clock) -> None:
    bench[1]["eager/cast:bf16"] = 1.2
    assert found(bench[0], CASE, clock) == ["eager/dense", "eager/cast:bf16"]


def test_a_cast_that_is_emulated_does_not(bench: tuple[Workbench, dict[str, float]], clock: Clock) -> None:
    bench[1]["eager/cast:bf16"] = 20.0
    assert found(bench[0], CASE, clock) == ["eager/dense"], "a slow cast takes time from all the others"


def test_neither_the_case_nor_its_anchor_is_a_rival(bench: tuple[Workbench, dict[str, float]], clock: Clock) -> None:
    bench[1].update({rivals.name_of(replace(CASE, runtime=r, recipe=text)): 1.0 for r, text in PAIRS})
    case = replace(CASE, runtime="eager", recipe="cast:bf16")
    assert found(bench[0], case, clock) == ["onnxruntime/dense", "onnxruntime/cast:bf16"]


def test_other_clocks_are_left_out(bench: tuple[Workbench, dict[str, float]], clock: Clock) -> None:
    calls = rivals.rival_calls(bench[0], CASE, (torch.zeros(1),), clock.taking(1.0), time.perf_counter)
    assert calls == {}, f"{list(calls)} cannot be timed by another clock"


def test_the_strongest_may_be_a_cast_and_the_case_itself(bench: tuple[Workbench, dict[str, float]]) -> None:
    def record(metric: str, value: float, **further: object) -> tuple[str, float, object]:
        return metric, value, further["detail"]

    def taken(case: float, anchor: float, **others: float) -> Samples:
        times = {name.replace("_", "/"): (seconds,) * 60 for name, seconds in others.items()}
        return Samples((anchor,) * 60, (case,) * 60, (), (), times, (), True, "most", 0.0)

    rival = replace(CASE, recipe="cast:bf16")
    for case, samples, strongest, ratio in (
        (CASE, taken(1.0, 4.0, **{"eager_cast:bf16": 2.0}), "eager/cast:bf16", 0.5),
        (CASE, taken(1.0, 4.0), "onnxruntime/dense", 0.25),
        (rival, taken(1.0, 4.0), "onnxruntime/cast:bf16", 1.0),
    ):
        _, value, detail = _strongest(record, bench[0], case, samples)  # type: ignore[arg-type,misc]
        assert detail == {"strongest": strongest}, f"{detail}, should be {strongest}"
        assert value == pytest.approx(ratio), f"{value}, should be {ratio}"


def test_smoke_leaves_optional_runtimes_and_casts_out() -> None:
    discover()
    chosen = {name: runtimes_of(PROFILES[name]) for name in ("smoke", "nightly")}
    assert chosen["smoke"] == ("eager", "onnxruntime"), f"{chosen['smoke']}"
    assert set(chosen["nightly"]) == set(RUNTIMES), f"{chosen['nightly']}"
    pairs = [("resnet20", "fashion_mnist")]
    assert rivals_of(grid(PROFILES["smoke"], pairs)) == (("eager", "dense"), ("onnxruntime", "dense"))
    ci = rivals_of(grid(PROFILES["ci"], pairs))
    assert ci == tuple((name, "dense") for name in RUNTIMES), f"{ci}"
    more = rivals_of(grid(PROFILES["nightly"], pairs))
    assert ("compiled", "cast:fp16") in more, f"{more}"
    assert ("compiled", "dense") in more, f"{more}"


def test_a_cast_is_timed_where_integers_are_simulated() -> None:
    discover()
    assert simulates(replace(CASE, runtime="eager")), "static:w8a8 is only simulated in eager"
    assert not simulates(replace(CASE, runtime="eager", recipe="cast:bf16")), "a cast runs natively"
