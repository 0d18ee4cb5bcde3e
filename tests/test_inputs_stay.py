"""A model that works in place on its inputs leaves the user's examples as they are, whoever runs it."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruning_bench import workbench
from pruning_bench.cases import Case
from pruning_bench.datasets.contract import Dataset, Tensors
from pruning_bench.metrics import cost
from pruning_bench.models import running
from pruning_bench.models.contract import fresh
from pruning_bench.pruning import gradients, timing
from pruning_bench.pruning.methods import synflow
from pruning_bench.runtimes.contract import bound_call
from pruning_bench.workbench import Workbench


class InPlace(nn.Module):
    """Changes its input; the clock of `relative_time` need not move for it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x.sub_(1))
        return found


CASE = Case("none", "theirs", "dense", "eager")


def bench_of(x: Tensor) -> Workbench:
    bench, part = Workbench(cache=None), Tensors((x,), torch.zeros(len(x), dtype=torch.int64))
    bench._made["dataset", CASE.dataset] = Dataset("theirs", (), part, part, part, "", "own")
    return bench


def gradients_of(x: Tensor) -> None:
    targets = torch.zeros(len(x), dtype=torch.int64)
    gradients._loss(InPlace(), (x,), targets, "test")


RUNS: dict[str, tuple[ModuleType, Callable[[Tensor], object]]] = {
    "cost": (cost, lambda x: cost.count_cost(InPlace(), (x,))),
    "gradients": (running, gradients_of),
    "synaptic flow": (running, lambda x: synflow.synaptic_flow(InPlace().double(), (x,), ["layer.weight"])),
    "outputs": (workbench, lambda x: bench_of(x)._run(torch.inference_mode()(InPlace()), CASE, 1, 1)),
    "an example of a case": (workbench, lambda x: InPlace()(*bench_of(x).example_inputs(CASE))),
    "a time": (timing, lambda x: timing.relative_time(InPlace(), InPlace(), (x,), 2.0)),
}


def check(kind: str) -> None:
    x = torch.ones(4, 3, dtype=torch.float64 if kind == "synaptic flow" else torch.float32)
    RUNS[kind][1](x)
    assert torch.equal(x, torch.ones_like(x)), f"{kind}: the examples are {x.tolist()} now"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "WARM_SECONDS", 0.0)
    monkeypatch.setattr(timing, "SECONDS", 1e-3)


@pytest.mark.parametrize("kind", RUNS)
def test_the_examples_stay(kind: str) -> None:
    check(kind)


@pytest.mark.parametrize("kind", RUNS)
def test_a_run_on_the_examples_themselves_is_caught(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = RUNS[kind][0]
    if module is timing:
        monkeypatch.setattr(timing, "bound_call", lambda model, inputs, device, in_place: lambda: model(*inputs))
    else:
        monkeypatch.setattr(module, "fresh", tuple)
    with pytest.raises(AssertionError, match=f"{kind}: the examples are"):
        check(kind)


def test_a_model_that_works_in_place_is_timed_on_equal_inputs() -> None:
    """Mutant: the copy that was made once, on which the changes of all calls add up."""
    seen: list[float] = []

    class Watched(InPlace):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(float(x[0, 0]))
            return super().forward(x)

    timing.relative_time(Watched(), InPlace(), (torch.ones(4, 3),), 2.0)
    assert {*seen} == {1.0}, f"inputs {sorted({*seen})[:5]}, should always be 1"
    seen.clear()
    call = bound_call(Watched(), (torch.ones(4, 3),), "cpu", in_place=False)
    call(), call()
    assert seen == [1.0, 0.0], f"inputs {seen}: the mutant is none"


def test_what_is_no_tensor_is_handed_on() -> None:
    given: tuple[Any, ...] = (torch.ones(1), 3, None)
    copied = fresh(given)
    assert copied[1:] == given[1:], f"{copied}"
    assert copied[0] is not given[0], "the tensor itself"
