"""Budgets of latency, on a clock that only the models themselves move; nothing here depends on the machine."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from pruning_bench.conformance.pruning_checks import check_leaves_no_trace
from pruning_bench.conformance.runner import check_method
from pruning_bench.conformance.strategies import Subject, randomise
from pruning_bench.contracts import Context
from pruning_bench.errors import LevelError, PluginError
from pruning_bench.pruning import timing
from pruning_bench.pruning.budgets import fit_budget
from pruning_bench.pruning.channel_scores import filter_norms
from pruning_bench.pruning.channels import STEPS, ChannelOptions, plan_channels
from pruning_bench.pruning.contract import ChannelPlan, PruningTags
from pruning_bench.pruning.methods.l1_filter import L1Filter
from pruning_bench.pruning.shrink import apply_channels
from pruning_bench.pruning.timing import MAX_PAIRS, MIN_PAIRS, is_clear, relative_time

INPUTS = (torch.zeros(2, 4),)


@dataclass
class Machine:
    """A clock, how often each model ran, and by how much the machine is slowed down at the moment."""

    now: float = 0.0
    runs: dict[str, int] = field(default_factory=dict)
    slow: Iterator[float] | None = None

    def work(self, name: str, seconds: float) -> None:
        self.runs[name] = self.runs.get(name, 0) + 1
        self.now += seconds * (next(self.slow) if self.slow else 1.0)


MACHINE = Machine()


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    MACHINE.now, MACHINE.runs, MACHINE.slow = 0.0, {}, None
    monkeypatch.setattr(timing, "clock_of", lambda device: lambda: MACHINE.now)
    return MACHINE


class Takes(nn.Module):
    """Does nothing for so many seconds."""

    def __init__(self, name: str, seconds: float) -> None:
        super().__init__()
        self.name, self.seconds, self.weight = name, seconds, nn.Parameter(torch.ones(1))

    def forward(self, inputs: Tensor) -> Tensor:
        MACHINE.work(self.name, self.seconds)
        return inputs


class Mlp(nn.Module):
    """Takes a fixed time and some for each of its weights."""

    FIXED, EACH = 0.02, 1e-4

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 40), nn.Linear(40, 30), nn.Linear(30, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        if not torch.compiler.is_exporting():
            MACHINE.work("mlp", seconds_of(self))
        out: Tensor = self.last(self.second(self.first(inputs).relu()).relu())
        return out


def seconds_of(model: nn.Module) -> float:
    return Mlp.FIXED + Mlp.EACH * sum(parameter.numel() for parameter in model.parameters())


def mlp() -> nn.Module:
    return randomise(Mlp(), INPUTS, 0)


def context() -> Context:
    return Context(INPUTS, torch.Generator())


def test_the_ratio_is_that_of_the_models() -> None:
    found = relative_time(Takes("small", 0.3), Takes("dense", 1.2), INPUTS, 0.9)
    assert found == pytest.approx(0.25), f"{found}, should be 0.3 / 1.2"


def spiked() -> Iterator[float]:
    """Every seventh call takes ten times as long."""
    while True:
        yield from (1.0,) * 6
        yield 10.0


def test_calls_that_something_else_delayed_do_not_count(machine: Machine) -> None:
    machine.slow = spiked()
    found = relative_time(Takes("small", 0.3), Takes("dense", 1.2), INPUTS, 0.26)
    assert found == pytest.approx(0.25), f"{found}, should be 0.3 / 1.2 whatever delayed some of them"


@pytest.mark.parametrize(("limit", "clear"), [(0.9, True), (0.1, True), (0.25, False)])
def test_timing_ends_when_the_side_is_clear(machine: Machine, limit: float, clear: bool) -> None:
    relative_time(Takes("small", 1 / 256), Takes("dense", 1 / 64), INPUTS, limit)  # a quarter to the last bit
    pairs = MIN_PAIRS if clear else MAX_PAIRS
    assert 0 <= machine.runs["small"] - pairs < MAX_PAIRS - MIN_PAIRS, (
        f"{machine.runs}, should be {pairs} and a warm-up"
    )


def test_the_interval_of_the_median_narrows_with_the_pairs() -> None:
    noisy = [(1.0, 0.4), (1.0, 0.5), (1.0, 0.6)]
    assert not is_clear(noisy * 3, 0.51), "nine pairs cannot tell 0.50 from 0.51 where they differ by 0.1"
    assert is_clear(noisy * 3, 0.61), "no pair is above 0.60"
    narrow = [(1.0, 0.49), (1.0, 0.5), (1.0, 0.5), (1.0, 0.51)] * 15
    assert is_clear(narrow, 0.505), "30 of 60 pairs at 0.50 and 15 below leave no doubt"
    assert not is_clear(narrow[:8], 0.505), "eight pairs leave some"


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("level", [0.2, 0.5, 0.7])
def test_a_budget_of_latency_is_met_and_not_in_vain(scope: Any, level: float, machine: Machine) -> None:
    model = mlp()
    dense = seconds_of(model)
    plan = L1Filter(scope, "latency").plan(model, level, context())
    left = seconds_of(apply_channels(model, plan)) / dense
    single = 0.06  # no hundredth of the channels takes that much with it
    assert 1 - level - single < left <= 1 - level, f"{left} of the time left at {level}, should be just below"
    assert machine.runs["mlp"] < 30 * MAX_PAIRS, f"{machine.runs}: as many as of a search one by one"


@dataclass(frozen=True)
class Counted(ChannelOptions):
    """Takes the time that a function says, and counts how often it asks."""

    time: Any = None
    name: ClassVar[str] = "counted"
    tags: ClassVar[PruningTags] = PruningTags(structure="channel")

    def plan(self, model: nn.Module, level: Any, context: Context) -> ChannelPlan:
        return plan_channels(self, model, level, context, lambda found: filter_norms(model, found), self.time)


def counted(level: float, ratio: Any) -> tuple[ChannelPlan, list[tuple[float, float]]]:
    """The plan, and of each model that was timed how long it takes and what the function makes of that."""
    asked = []

    def time(small: nn.Module, dense: nn.Module, inputs: tuple[Tensor, ...], limit: float) -> float:
        assert inputs is INPUTS, "timed on other inputs than those of the context"
        assert (small.training, dense.training) == (False, False), "timed in training mode"
        asked.append((seconds_of(small) / seconds_of(dense), ratio(seconds_of(small) / seconds_of(dense))))
        return asked[-1][1]

    return Counted(budget="latency", time=time).plan(mlp().train(), level, context()), asked


def test_few_models_are_timed() -> None:
    _, asked = counted(0.5, lambda ratio: ratio)
    assert len(asked) <= STEPS.bit_length() + 1, f"{len(asked)} models timed: {asked}"


def test_level_zero_needs_no_clock() -> None:
    plan, asked = counted(0.0, lambda ratio: 1.1)
    assert not plan.kept, f"{dict(plan.removed)} removed at level 0"
    assert not asked, f"{asked} timed, though nothing needs to go"


def test_a_latency_that_cannot_be_met_names_the_closest_that_can() -> None:
    with pytest.raises(LevelError, match=r"^counted: 0\.9 of the latency, should be at most 0\.\d+, which") as caught:
        counted(0.9, lambda ratio: ratio)
    closest = float(caught.value.expected.split()[2].rstrip(","))
    plan, _ = counted(closest, lambda ratio: ratio)
    sizes = {name: size - removed for name, (removed, size) in plan.removed.items()}
    assert set(sizes.values()) <= {1, 2}, f"{sizes} left at {closest}, should be next to nothing"
    with pytest.raises(LevelError, match="of the latency"):
        counted(closest + 0.01, lambda ratio: ratio)
    with pytest.raises(LevelError, match=r"should be at most 0\.0, which"):
        counted(0.1, lambda ratio: 1.1 + ratio)  # the mutant: a smaller model that is slower


def test_the_last_model_that_was_found_to_fit_is_the_plan() -> None:
    """Also where the times do not fall with the channels: what is promised was measured."""
    jitter = iter([0.0, 0.04, -0.03, 0.02, -0.04, 0.03, 0.01, -0.02, 0.0, 0.04])
    plan, asked = counted(0.5, lambda ratio: ratio + next(jitter))
    left = seconds_of(apply_channels(mlp(), plan)) / seconds_of(mlp())
    assert left in [true for true, measured in asked if measured <= 0.5], f"{left} left, of {asked}"
    assert left in [true for true, measured in asked if true > 0.46], f"{left} left, of {asked}"


def test_steps_are_of_equal_size_and_end_with_all_channels() -> None:
    asked = []

    def cost(kept: Mapping[str, int]) -> float:
        asked.append(kept["a"])
        return kept["a"] / 1001

    found = fit_budget("test", 0.5, "time", {"a": torch.arange(1001.0)}, "layer", 1, cost, steps=10)
    assert found == {"a": 401}, f"{found} kept, should be the first multiple of 100 below a half"
    assert {count % 100 for count in asked} == {1}, f"{asked} asked, should be a tenth apart"


def test_the_model_is_left_as_it_was() -> None:
    check_leaves_no_trace(L1Filter(budget="latency"), Subject("mlp", mlp(), INPUTS), 0.3)


def test_no_check_judges_a_method_by_the_clock() -> None:
    with pytest.raises(
        PluginError, match=r"^l1_filter: budget=latency, measured anew for every plan, should be a budget"
    ):
        check_method(L1Filter(budget="latency"))
