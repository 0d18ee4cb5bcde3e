"""The control of a score: a score that cannot tell wrong outputs from right ones breaks it, whatever it returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruning_bench.errors import DataError, ModelError
from pruning_bench.metrics.contract import Evaluation, Score, ScoreFunction
from pruning_bench.metrics.scores import cosines
from pruning_bench.records import Measurement
from pruning_bench.tasks import LEAST_SPOILT, Classification, Scored

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
    "the outputs alone": (lambda a, b: a.norm(dim=1), "score mutant looks at the outputs alone"),
    "the wrong way round": (lambda a, b: -error(a, b), "shows wrong outputs as better"),
    "within the margin": (lambda a, b: error(a, b) / 1000, "has a margin that hides wrong outputs"),
    "noise": (lambda a, b: torch.rand(len(a)), "score mutant differs between calls"),
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


def weak(count: int, size: float = 0.2) -> tuple[Tensor, Tensor]:
    """Forecasts [N, 1] that explain the share `size` ** 2 of what they forecast, [N, 1]."""
    generator = torch.Generator().manual_seed(3)
    told, rest = (torch.randn(count, 1, generator=generator) for _ in range(2))
    return size * told, size * told + (1 - size**2) ** 0.5 * rest


WEAK: dict[str, ScoreFunction] = {
    "error": error,
    "closeness": lambda a, b: -error(a, b),
    "sign": lambda a, b: (a * b > 0).float().flatten(),
    "log": lambda a, b: -10 * torch.log(1 - (a - b).abs() / 9).mean(1),
}


@pytest.mark.parametrize("count", [40, 200, 4000])
@pytest.mark.parametrize("name", WEAK)
def test_a_weak_model_does_not_break_an_honest_score(name: str, count: int) -> None:
    better: Any = "lower" if name in ("error", "log") else "higher"
    control = control_of(Score(name, WEAK[name], better, "targets", 0.01), *weak(count))
    assert control, "no control"
    assert control.detail.get("holds", True) is True, control.detail
    if name in ("error", "closeness"):
        assert control.detail["holds"], control.detail
        assert count > 200 or "100 times as far from their mean: " in control.detail["why"], control.detail
    elif count == 200:  # far off is as wrong as wrong, or nothing that the score takes
        assert "holds" not in control.detail, control.detail
        assert control.rule == "shown", f"{control}"
        assert control.detail["remark"].startswith(f"nothing shows that score {name} finds wrong outputs: "), (
            f"{control}"
        )


@pytest.mark.parametrize("name", MUTANTS)
def test_a_weak_model_hides_no_broken_score(name: str) -> None:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        control = control_of(Score("mutant", MUTANTS[name][0], "lower", "targets", 0.01), *weak(200))
    assert control, "no control"
    assert control.detail.get("holds") is False, control.detail


def measured(outputs: Tensor) -> list[Measurement]:
    def record(metric: str, value: float, **further: Any) -> Measurement:
        return Measurement("case", metric, value, "1", "neither", "shown", **further)

    labels, dense = torch.arange(COUNT) % 5, drawn()
    return Classification().measure(record, Evaluation(outputs, labels, dense, nn.Identity(), ()))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_outputs_without_a_loss_are_counted(bad: float) -> None:
    """Three of ten thousand wrong ones would be within the margin of the accuracy."""
    outputs = drawn()
    outputs[7, 1] = outputs[9] = bad
    with pytest.raises(ModelError, match="NaN or infinite for 2 of 40 test examples, the first is 7, should be"):
        measured(outputs)


def test_a_class_may_be_ruled_out() -> None:
    outputs = drawn()
    outputs[:, 4] = outputs[:, 4].where(torch.arange(COUNT) % 5 == 4, -torch.inf)
    assert len(measured(outputs)) == len(Classification.due)


def test_a_model_of_one_output_tells_no_classes() -> None:
    says = r"theirs: a model with 1 output \(logit\) an example, should be at least 2, one a class.* \[here\]"
    for targets in (torch.zeros(COUNT, dtype=torch.int64), torch.arange(COUNT) % 2, None):
        with pytest.raises(DataError, match=says):
            Classification().check_targets(targets, drawn()[:, :1], "theirs", "here")
    Classification().check_targets(torch.arange(COUNT) % 2, drawn()[:, :2], "theirs", "here")
