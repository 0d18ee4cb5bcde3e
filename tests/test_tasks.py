"""The control of a score: a score that cannot tell wrong outputs from right ones breaks it, whatever it returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruning_bench.metrics.contract import Evaluation, Score, ScoreFunction
from pruning_bench.metrics.scores import cosines
from pruning_bench.records import Measurement
from pruning_bench.tasks import LEAST_SPOILT, Scored

COUNT = 40


def control_of(score: Score, outputs: Tensor, targets: Tensor | None) -> Measurement | None:
    def record(metric: str, value: float, **further: Any) -> Measurement:
        return Measurement("case", metric, value, "1", "neither", "control", **further)

    return Scored(score).control(record, Evaluation(outputs, targets, outputs, nn.Identity(), ()))


def drawn(count: int = COUNT) -> Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(0))


def error(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).abs().mean(1)


def nearly(outputs: Tensor) -> Tensor:
    return outputs + 0.1


HONEST: dict[str, Score] = {
    "against targets": Score("error", error, "lower", "targets", 0.01),
    "higher is better": Score("closeness", lambda a, b: -error(a, b), "higher", "targets", 0.01),
    "against dense": Score("cosine", cosines, "higher", "dense", 0.002),
    "right or wrong": Score("right", lambda a, b: (error(a, b) < 0.2).float(), "higher", "targets", 0.01),
}


@pytest.mark.parametrize("name", HONEST)
def test_a_score_that_sees_wrong_outputs_holds(name: str) -> None:
    control = control_of(HONEST[name], drawn(), nearly(drawn()))
    assert control, "no control"
    assert control.detail["holds"] is True, control.detail
    assert f"{COUNT} of {COUNT} scores worse" in control.detail["why"], control.detail


MUTANTS: dict[str, tuple[ScoreFunction, str]] = {
    "always zero": (lambda a, b: torch.zeros(len(a)), "score mutant does not react to wrong outputs"),
    "the reference alone": (lambda a, b: b.norm(dim=1), "score mutant does not react to wrong outputs"),
    "the outputs alone": (lambda a, b: a.norm(dim=1), "does not show wrong outputs as worse"),
    "the wrong way round": (lambda a, b: -error(a, b), "does not show wrong outputs as worse"),
    "within the margin": (lambda a, b: error(a, b) / 1000, "does not show wrong outputs as worse"),
    "noise": (lambda a, b: torch.rand(len(a)), "does not show wrong outputs as worse"),
}


@pytest.mark.parametrize("against", ["targets", "dense"])
@pytest.mark.parametrize("name", MUTANTS)
def test_a_score_that_does_not_is_found_out(name: str, against: Any) -> None:
    function, says = MUTANTS[name]
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        control = control_of(Score("mutant", function, "lower", against, 0.01), drawn(), nearly(drawn()))
    assert control, "no control"
    assert control.detail["holds"] is False, control.detail
    assert says in control.detail["why"], control.detail


@pytest.mark.parametrize("arrange", [lambda y: y, lambda y: y.sort().values], ids=["mixed", "sorted"])
def test_neighbours_may_be_alike(arrange: Callable[[Tensor], Tensor]) -> None:
    """A shift by one example leaves almost all outputs of sorted examples right."""
    targets = arrange(torch.arange(COUNT) % 2).float()[:, None]
    control = control_of(HONEST["against targets"], targets.clone(), targets)
    assert control, "no control"
    assert control.detail["holds"] is True, control.detail


@pytest.mark.parametrize(
    ("outputs", "targets"),
    [
        (drawn(LEAST_SPOILT - 1), nearly(drawn(LEAST_SPOILT - 1))),
        (torch.ones(COUNT, 5), drawn()),
        (drawn(), torch.ones(COUNT, 5)),
    ],
    ids=["few", "equal outputs", "equal targets"],
)
def test_nothing_is_claimed_where_nothing_can_be_wrong(outputs: Tensor, targets: Tensor) -> None:
    assert control_of(HONEST["against targets"], outputs, targets) is None
