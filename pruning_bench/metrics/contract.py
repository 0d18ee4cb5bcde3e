"""What a metric is: a name with unit, direction and the rule by which it is judged; no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from pruning_bench.errors import PluginError, describe
from pruning_bench.records import Better, Measurement, Rule, digest_of
from pruning_bench.registry import METRICS

if TYPE_CHECKING:
    from torch import Tensor, nn

UNITS = ("s", "B", "MAC", "1", "count")


@dataclass(frozen=True)
class Evaluation:
    """What a user's metric may look at, on the test split.

    Args:
        logits: outputs of the case on its runtime, float [N, C] for classification.
        labels: the test examples' targets, int64 [N] for classification; None where they have none.
        dense_logits: outputs of the dense model on the same runtime.
        model: the compressed model; for a recipe that quantizes, the float model before it.
        example_inputs: positional arguments of its forward, a batch of one.
    """

    logits: Tensor
    labels: Tensor | None
    dense_logits: Tensor
    model: nn.Module
    example_inputs: tuple[Any, ...]


Compute: TypeAlias = "Callable[[Evaluation], float]"
ScoreFunction: TypeAlias = "Callable[[Tensor, Tensor], Tensor]"
Against = Literal["targets", "dense"]


@dataclass(frozen=True)
class Score:
    """How good each output is, for a task other than classification; made by the decorator `score`.

    Args:
        function: (outputs [N, ...], reference [N, ...]) -> float [N], one number an example.
        against: what the reference is: the examples' targets, or the dense model's outputs on the same runtime.
        margin: a mean that is worse by up to this, in the score's unit, is never a regression.
    """

    name: str
    function: ScoreFunction
    better: Better
    against: Against
    margin: float

    def __call__(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """The scores as the function gives them."""
        return self.function(outputs, reference)

    def of(self, outputs: Tensor, targets: Tensor | None, dense: Tensor) -> Tensor:
        """float64 [N]: the scores of the test examples.

        Raises:
            PluginError: there are no targets; the function fails, or gives other than N finite numbers.
        """
        reference = self.reference(targets, dense)
        try:
            scores = self.function(outputs, reference)
        except Exception as problem:
            found = f"it raises {describe(problem)}"
            raise self._wrong(found, "its scores") from problem
        shape = getattr(scores, "shape", None)
        if shape is None or list(shape) != [len(outputs)] or not scores.is_floating_point():
            found = type(scores).__name__ if shape is None else f"{scores.dtype} {list(shape)}"
            raise self._wrong(found, f"one float an example, [{len(outputs)}]")
        if bad := int((~scores.isfinite()).sum()):
            first = int((~scores.isfinite()).nonzero()[0])
            raise self._wrong(f"{bad} of {len(outputs)} scores NaN or infinite, first example {first}", "finite ones")
        return scores.detach().double().cpu()

    def reference(self, targets: Tensor | None, dense: Tensor) -> Tensor:
        """What outputs are compared with; raises `PluginError` where that is the targets and there are none."""
        if self.against == "dense":
            return dense
        if targets is None:
            raise self._wrong("no targets", 'targets beside the test inputs, or @score(against="dense")')
        return targets

    def _wrong(self, found: str, expected: str) -> PluginError:
        code = getattr(self.function, "__code__", None)
        return PluginError(
            f"score {self.name}", found, expected, f"{code.co_filename}:{code.co_firstlineno}" if code else None
        )


def score(
    *, unit: str = "1", better: Better = "higher", against: Against = "targets", margin: float = 0.002, version: int = 1
) -> Callable[[ScoreFunction], Score]:
    """Makes a function `(outputs, reference) -> float [N]` the score of a task, under its own name.

    The mean over the test examples is reported; two runs are compared example by example, by a paired t test.

    Args:
        unit: of the scores, any short word; "1" for shares, cosines and other numbers without one.
        against: the reference is the examples' "targets", or the outputs of the "dense" model, which needs no labels.
        margin: a mean that is worse by up to this, in the unit, is never a regression; positive.
        version: raise it when the function changes its meaning, so that old baselines are not compared with.
    Raises:
        PluginError: an unknown direction or reference, a margin that is not positive.
    """
    if against not in get_args(Against) or better not in ("higher", "lower"):
        raise PluginError("score", f"better {better!r}, against {against!r}", "higher or lower, targets or dense")
    if not 0 < margin < math.inf:
        raise PluginError("score", f"margin {margin!r}", "a positive number, in the score's unit")

    def decorate(function: ScoreFunction) -> Score:
        made = Score(getattr(function, "__name__", ""), function, better, against, margin)
        description = (function.__doc__ or "").strip().partition("\n")[0]
        register(Metric(made.name, unit, better, "paired", version, description))
        return made

    return decorate


@dataclass(frozen=True)
class Metric:
    """One metric.

    Args:
        name: snake_case, unique.
        unit: "s", "B", "MAC", "1" (a share or ratio) or "count", of a score any word; the report formats it.
        better: "lower", "higher" or "neither".
        rule: how it is judged, see `records.Rule`.
        version: of the definition; part of every fingerprint, so that numbers of two definitions are never compared.
        description: one line for the report.
        compute: for a metric added by `metric`; None for those that the suite takes itself.
    """

    name: str
    unit: str
    better: Better
    rule: Rule
    version: int = 1
    description: str = ""
    compute: Compute | None = None

    def __post_init__(self) -> None:
        for word, found, known in (
            ("unit", self.unit, UNITS),
            ("better", self.better, get_args(Better)),
            ("rule", self.rule, get_args(Rule)),
        ):
            if found not in known and not (word == "unit" and self.rule == "paired"):  # a score has a unit of its own
                raise PluginError("metric", f"{word} {found!r}", f"one of {', '.join(known)}", self.name)

    def fingerprint(self, depends: Mapping[str, str]) -> str:
        """Digest of the definition and of what the number depends on: checkpoint, data, environment ..."""
        return digest_of({"metric": self.name, "version": self.version, **depends})[:16]

    def measurement(self, case_id: str, value: float, depends: Mapping[str, str], **further: Any) -> Measurement:
        """A record of this metric; `further` are fields of `Measurement` (samples, errors, vector, detail).

        Example:
            >>> size = Metric("size", "B", "lower", "exact")
            >>> size.measurement("net-data/dense/eager", 10, {"checkpoint": "ab"}).unit
            'B'
        """
        return Measurement(
            case_id,
            self.name,
            float(value),
            self.unit,
            self.better,
            self.rule,
            fingerprint=self.fingerprint(depends),
            **further,
        )


def register(metric: Metric) -> Metric:
    """Registers a metric; raises `DuplicateNameError`, or `PluginError` for a name that is not snake_case."""
    METRICS.add(metric.name, metric)
    return metric


def metric(*, unit: str, better: Better, rule: Rule = "shown", version: int = 1) -> Callable[[Compute], Compute]:
    """Registers a function `Evaluation -> float` as a metric under its own name and the first line of its docstring.

    Args:
        rule: "exact" or "shown"; the other rules need more than one number.
    Raises:
        PluginError: an unknown unit, direction or rule.
    """
    if rule not in ("exact", "shown"):
        raise PluginError("metric", f"rule {rule!r}", "exact or shown")

    def decorate(compute: Compute) -> Compute:
        description = (compute.__doc__ or "").strip().partition("\n")[0]
        definition = Metric(compute.__name__, unit, better, rule, version, description)
        register(replace(definition, compute=compute))
        return compute

    return decorate
