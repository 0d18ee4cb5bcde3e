"""What a metric is: a name with unit, direction and the rule by which it is judged; no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias, get_args

from pruning_bench.errors import PluginError
from pruning_bench.records import Better, Measurement, Rule, digest_of
from pruning_bench.registry import METRICS

if TYPE_CHECKING:
    from torch import Tensor, nn

UNITS = ("s", "B", "MAC", "1", "count")


@dataclass(frozen=True)
class Evaluation:
    """What a user's metric may look at, on the test split.

    Args:
        logits: float [N, C], of the case on its runtime.
        labels: int64 [N].
        dense_logits: float [N, C], of the dense model on the same runtime.
        model: the compressed model; for a recipe that quantizes, the float model before it.
        example_inputs: positional arguments of its forward, a batch of one.
    """

    logits: Tensor
    labels: Tensor
    dense_logits: Tensor
    model: nn.Module
    example_inputs: tuple[Any, ...]


Compute: TypeAlias = "Callable[[Evaluation], float]"


@dataclass(frozen=True)
class Metric:
    """One metric.

    Args:
        name: snake_case, unique.
        unit: "s", "B", "MAC", "1" (a share or ratio) or "count"; formatting is the report's business.
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
            if found not in known:
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
