"""Two models on the same test examples: the numbers of each, and what can be said of their difference.

A is the one that B is compared with: differences are B less A, ratios of times B over A. *Lost* examples are right in A
and wrong in B, *gained* ones the reverse, and flips are all whose prediction differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pruning_bench.judging.policy import Policy
from pruning_bench.judging.scores import ScoreChange
from pruning_bench.judging.statistics import Estimate, drop_interval, mcnemar_midp
from pruning_bench.records import Better


@dataclass(frozen=True)
class Side:
    """One of the two models.

    Args:
        name: what it was asked for by.
        numbers: metric -> value, in the unit of its definition; what was not measured is left out.
        confusion: counts [C][C], rows are labels, columns predictions.
    """

    name: str
    numbers: Mapping[str, float]
    confusion: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ClassChange:
    """What became of the examples of one class.

    Args:
        examples: how many there are.
        right_a, right_b: how many each model predicts right.
        flips, lost, gained: see above; right_b = right_a - lost + gained.
    """

    name: str
    examples: int
    right_a: int
    right_b: int
    flips: int
    lost: int
    gained: int


@dataclass(frozen=True)
class ScoreDifference:
    """How the scores of B differ from those of A, of the same examples; for tasks without classes.

    Args:
        name, unit: of the score; its means are among the numbers of the sides.
        better: which direction is.
        change: from A to B.
    """

    name: str
    unit: str
    better: Better
    change: ScoreChange


@dataclass(frozen=True)
class Comparison:
    """A and B.

    Args:
        where: what both ran on: data set, runtime, threads.
        classes: in the order of the labels.
        ratio: log of B's time over A's, measured interleaved in one process; None when it was not.
        remarks: what the reader should know of the numbers, a line each: why there is no time, ...
        scored: where examples have scores instead of classes.
    """

    a: Side
    b: Side
    where: str
    classes: tuple[ClassChange, ...]
    ratio: Estimate | None = None
    remarks: tuple[str, ...] = ()
    scored: ScoreDifference | None = None

    @property
    def examples(self) -> int:
        """How many test examples there are."""
        return self._sum("examples")

    @property
    def lost(self) -> int:
        """Right in A, wrong in B."""
        return self._sum("lost")

    @property
    def gained(self) -> int:
        """Wrong in A, right in B."""
        return self._sum("gained")

    @property
    def flips(self) -> int:
        """Predictions that differ; also those that are wrong in both."""
        return self._sum("flips")

    @property
    def agreement(self) -> float:
        """Share of equal predictions, in [0, 1]."""
        return 1 - self.flips / self.examples

    @property
    def change(self) -> float:
        """Top-1 of B less that of A, a difference of shares."""
        return (self.gained - self.lost) / self.examples

    def change_interval(self, policy: Policy) -> tuple[float, float]:
        """Of `change`, paired example by example; see `drop_interval`."""
        low, high = drop_interval(self.lost, self.gained, self.examples, policy.confidence)
        return -high, -low

    @property
    def p(self) -> float:
        """Two-sided McNemar mid-p of "as many are lost as gained": twice the smaller one-sided one, at most 1."""
        one_sided = min(mcnemar_midp(self.lost, self.gained), mcnemar_midp(self.gained, self.lost))
        return min(1.0, 2 * one_sided)

    def _sum(self, count: str) -> int:
        return sum(getattr(of_class, count) for of_class in self.classes)
