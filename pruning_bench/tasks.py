"""What is measured of a model's outputs, by task: classification, or a score for each example.

Both record a metric of rule "paired" with one entry a test example, so that runs are compared example by example.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from pruning_bench.datasets.contract import ReferenceDataset, check_classes
from pruning_bench.errors import DataError, ModelError, PluginError
from pruning_bench.judging.policy import Policy
from pruning_bench.judging.scores import change_of_scores, with_margin
from pruning_bench.judging.statistics import drop_interval, mcnemar_midp, smallest_drop
from pruning_bench.judging.vectors import pack, pack_classes, pack_scores
from pruning_bench.judging.verdicts import direction, drop_outcome
from pruning_bench.metrics import accuracy
from pruning_bench.metrics.contract import Evaluation, Score
from pruning_bench.metrics.scores import similarity
from pruning_bench.records import Measurement, Outcome

Record: TypeAlias = Callable[..., Measurement]


class Task(Protocol):
    """How good outputs are, and how alike."""

    @property
    def due(self) -> tuple[str, ...]:
        """Names of the metrics that `measure` records."""

    @property
    def against_simulation(self) -> str:
        """Name of the metric that says how alike a runtime's outputs and the simulation's are."""

    def check_targets(self, targets: Tensor | None, outputs: Tensor, who: str, where: str) -> None:
        """Raises `DataError` for targets, of all examples, that no outputs like those of some examples can meet."""

    def measure(self, record: Record, seen: Evaluation) -> list[Measurement]:
        """The quality of one case; raises `DataError`, `ModelError` or `PluginError` where it cannot be told."""

    def alike(self, a: Tensor, b: Tensor) -> float:
        """How alike the outputs of two models are, at most 1."""

    def control(self, record: Record, seen: Evaluation) -> Measurement | None:
        """Outputs spoilt on purpose, which the judge must find; None where so few examples can show nothing."""


def task_of(dataset: ReferenceDataset) -> Task:
    """The task of a registered data set."""
    return Classification() if dataset.score is None else Scored(dataset.score)


@dataclass(frozen=True)
class Classification:
    """Outputs are logits [N, C], targets class numbers [N]."""

    due = ("top1", "top5", "loss", "calibration_error", "agreement", "flips")
    against_simulation = "agreement_simulation"

    def check_targets(self, targets: Tensor | None, outputs: Tensor, who: str, where: str) -> None:
        """Raises `DataError` for a model of one output, and for a target that is none of the classes that it tells."""
        if outputs.dim() != 2:
            return
        if outputs.shape[1] < LEAST_CLASSES:
            found = f"a model with {outputs.shape[1]} output (logit) an example"
            raise DataError(who, found, "at least 2, one a class; or @evaluation_data(score=...)", where)
        if targets is not None:
            check_classes(targets, outputs.shape[1], who, where)

    def measure(self, record: Record, seen: Evaluation) -> list[Measurement]:
        """Accuracies, losses, and what changed against the dense model.

        Outputs of which not all have a loss raise `ModelError`: their accuracy may be within its margin.
        """
        logits, labels, dense = seen.logits, _labels(seen), seen.dense_logits
        flipped = accuracy.flips(dense, logits, labels)
        _check_finite(logits)
        detail: dict[str, Any] = {
            "per_class": accuracy.per_class_accuracy(logits, labels),
            "confusion": accuracy.confusion_matrix(logits, labels).tolist(),
            "predictions": pack_classes(accuracy.predictions(logits).numpy()),
        }
        vector = pack(accuracy.correct(logits, labels).numpy())
        return [
            record("top1", accuracy.top1(logits, labels), vector=vector, detail=detail),
            record("top5", accuracy.top5(logits, labels)),
            record("loss", accuracy.cross_entropy(logits, labels)),
            record("calibration_error", accuracy.calibration_error(logits, labels)),
            record("agreement", accuracy.agreement(logits, dense)),
            record("flips", flipped.count, detail={"worse": flipped.right_to_wrong, "better": flipped.wrong_to_right}),
        ]

    def alike(self, a: Tensor, b: Tensor) -> float:
        """Share of equal predictions."""
        return accuracy.agreement(a, b)

    def control(self, record: Record, seen: Evaluation) -> Measurement | None:
        """Some right predictions made wrong, 1 % or the fewest that so many examples can show."""
        labels = _labels(seen)
        policy, right, count = Policy(), accuracy.correct(seen.logits, labels), len(labels)
        smallest = smallest_drop(count, 0, policy.accuracy_margin, policy.accuracy_p, policy.confidence)
        lost = max(count // 100, math.ceil((smallest or 1) * count) + 1)
        if smallest is None or lost > int(right.sum()):
            return None  # no drop that can happen here can be shown
        spoilt = accuracy.with_flips(seen.logits, labels, lost, torch.Generator().manual_seed(0))
        after = accuracy.correct(spoilt, labels)
        gone, won = int((right & ~after).sum()), int((~right & after).sum())
        p, (low, _) = mcnemar_midp(gone, won), drop_interval(gone, won, len(labels), policy.confidence)
        caught = p < policy.accuracy_p and low > policy.accuracy_margin
        why = f"{lost} predictions spoilt of {len(labels)}: p {p:.1g}, drop at least {low:.2%}"
        return record("flipped_twin", float(after.float().mean()), detail={"holds": caught, "why": why})


@dataclass(frozen=True)
class Scored:
    """Outputs are whatever the score takes, one row an example."""

    score: Score

    against_simulation = "similarity_simulation"

    @property
    def due(self) -> tuple[str, ...]:
        """The score, and how alike the dense model's outputs are."""
        return self.score.name, "similarity"

    def check_targets(self, targets: Tensor | None, outputs: Tensor, who: str, where: str) -> None:
        """Whatever the score takes."""

    def measure(self, record: Record, seen: Evaluation) -> list[Measurement]:
        """The mean of the scores, which stand beside it."""
        scores = self._scores(seen)
        detail = {"margin": float(self.score.margin), "least": float(scores.min()), "most": float(scores.max())}
        return [
            record(self.score.name, float(scores.mean(dtype=np.float64)), vector=pack_scores(scores), detail=detail),
            record("similarity", self.alike(seen.logits, seen.dense_logits)),
        ]

    def alike(self, a: Tensor, b: Tensor) -> float:
        """Mean cosine between the outputs; -1 where one of them is not finite."""
        return similarity(a, b)

    def control(self, record: Record, seen: Evaluation) -> Measurement | None:
        """Every example gets the outputs of another one, which the judge must find in the scores.

        Outputs of a weak model are hardly better than another example's. Where the scores do not show which are, and
        do not contradict it, the same outputs far off their mean must be found. A score that knows no size cannot show
        that either: then nothing is claimed, and the record, which is no control, remarks it.
        None where nothing is wrong then, as all outputs or all references are equal; needs 30 examples to be seen.
        """
        outputs, reference = seen.logits, self.score.reference(seen.labels, seen.dense_logits)
        given = _others(len(outputs))
        if len(outputs) < LEAST_SPOILT or any(torch.equal(x[given], x) for x in (outputs, reference)):
            return None
        right, wrong = self._scores(seen), self._scores(replace(seen, logits=outputs[given]))
        outcome, why = self._found(right, wrong)
        why, blind = f"outputs of other examples: {why}", ""
        if outcome is not Outcome.REGRESSED:
            blind = _blind(right, wrong, self._scores(seen), given)
        value = float(wrong.mean(dtype=np.float64))
        if outcome is Outcome.INCONCLUSIVE and not blind:
            outcome, further = self._found_far_off(seen, right, given)
            why = f"{why}; {FAR_OFF} times as far from their mean: {further}"
            if outcome in (Outcome.PASS, Outcome.INCONCLUSIVE):
                remark = f"nothing shows that score {self.score.name} finds wrong outputs: {why}"
                return replace(record("spoilt_twin", value, detail={"remark": remark}), rule="shown")
        if not (caught := outcome is Outcome.REGRESSED):
            hides = outcome is Outcome.PASS
            blind = blind or ("has a margin that hides wrong outputs" if hides else "shows wrong outputs as better")
            why = f"score {self.score.name} {blind}: {why}"
        return record("spoilt_twin", value, detail={"holds": caught, "why": why})

    def _found(self, right: Any, wrong: Any) -> tuple[Outcome, str]:
        """What the judge says of wrong outputs by their scores, and the numbers."""
        policy = with_margin(Policy(), float(self.score.margin))
        change = change_of_scores(right, wrong, direction(self.score.better), policy)
        outcome, (low, high) = drop_outcome(change.drop, change.p, change.mirrored, policy), change.drop
        why = f"{change.worse} of {change.n} scores worse, {change.better} better"
        if outcome is Outcome.REGRESSED or not change.worse + change.better:
            return outcome, why
        margin = f"margin {policy.accuracy_margin:.3g}, p {change.p:.1g}"
        return outcome, f"{why}, mean worse by {low:.3g} to {high:.3g}, {margin}"

    def _found_far_off(self, seen: Evaluation, right: Any, given: Tensor) -> tuple[Outcome, str]:
        """The same of outputs that are wrong by far; INCONCLUSIVE where the score does not take them."""
        mean = seen.logits.mean(0)
        try:
            wrong = self._scores(replace(seen, logits=mean + FAR_OFF * (seen.logits[given] - mean)))
        except PluginError as problem:
            return Outcome.INCONCLUSIVE, problem.found
        return self._found(right, wrong)

    def _scores(self, seen: Evaluation) -> Any:
        """float32 [N], as they are recorded."""
        return self.score.of(seen.logits, seen.labels, seen.dense_logits).numpy().astype(np.float32)


LEAST_CLASSES = 2
LEAST_SPOILT = 30
FAR_OFF = 100  # far beyond any reference, also for outputs that hardly leave their mean
SAME = 1e-5  # of the largest score: equal but for rounding


def _blind(right: Any, wrong: Any, again: Any, given: Tensor) -> str:
    """Why scores [N] say nothing of the outputs, "" where they may.

    Args:
        wrong: with the outputs of the examples `given`.
        again: as `right`, computed once more.
    """
    near = SAME * float(np.abs(right).max())
    if np.array_equal(right, wrong):
        return "does not react to wrong outputs"
    if float(np.abs(right - again).max()) > near:
        return "differs between calls with the same outputs"
    return "" if float(np.abs(right[given.numpy()] - wrong).max()) > near else "looks at the outputs alone"


def _others(count: int) -> Tensor:
    """For each example the index of another one, drawn at random: neighbours may be alike. int64 [N]."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    given = torch.empty_like(order)
    given[order] = order.roll(1)
    return given


def check_outputs(outputs: object, count: int, who: str) -> Tensor:
    """The outputs; raises `ModelError` unless they are floating point, one row for each of `count` examples."""
    if isinstance(outputs, Tensor) and outputs.is_floating_point() and outputs.dim() and len(outputs) == count:
        return outputs
    shown = f"{outputs.dtype} of shape {list(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
    found = f"outputs {shown} for {count} example{'s' * (count > 1)}"
    raise ModelError(who, found, f"floating point, [{count}, ...]: the examples first")


def _check_finite(logits: Tensor) -> None:
    """Raises `ModelError` for logits [N, C] with NaN or +inf; -inf rules a class out."""
    bad = (logits.isnan() | logits.isposinf()).any(1)
    if count := int(bad.sum()):
        first = int(bad.nonzero()[0])
        found = f"outputs NaN or infinite for {count} of {len(logits)} test examples, the first is {first}"
        raise ModelError("classification", found, "numbers")


def _labels(seen: Evaluation) -> Tensor:
    if seen.labels is None:
        raise DataError("classification", "no targets", "class numbers beside the test inputs")
    return seen.labels
