"""Every threshold of the judge, named once; a value that is passed around."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from pruning_bench.errors import PruningBenchError


@dataclass(frozen=True)
class Policy:
    """How much worse is worse, and how sure the judge must be.

    Args:
        confidence: level of the two-sided intervals; each bound alone errs in (1 - confidence) / 2 of the cases.
        power: share of true effects of the "smallest detectable" size that would be seen.
        speed_floor: a relative change of time below this is never a regression.
        spread_factor: the speed margin in standard deviations between processes, where that is more than the floor.
        min_processes: fresh processes behind an accepted time, at least.
        confirmation_processes: fresh processes behind a confirmed hit, at least.
        drift_share: how much of a change of the anchor's own time beyond the floor a ratio may show, as a standard
            deviation: a machine that is busier than at the baseline does not slow all code alike.
        promised_spread: up to this standard deviation between processes a slow-down of `promised_slowdown` is found.
        promised_slowdown: see above; relative change of time.
        canary: relative change of the anchor's own absolute time, beyond the yardstick's, that counts as worse.
        accuracy_p: largest p-value, after Holm's correction, of an accuracy regression.
        accuracy_margin: a drop of accuracy (a share) up to this is never a regression.
        collapse_margin: a drop beyond this counts even where too few seeds are there to test a recipe that trains.
        min_seeds: seeds of a recipe that trains before its accuracy can be tested.
        min_pairs, max_pairs: interleaved pairs of blocks inside a process, at least and at most.
        bootstrap_draws: resamples of the block bootstrap inside a process.

    Example:
        >>> Policy().speed_floor, Policy(speed_floor=0.05).speed_floor
        (0.03, 0.05)
    """

    confidence: float = 0.98
    power: float = 0.90
    speed_floor: float = 0.03
    spread_factor: float = 3.0
    min_processes: int = 5
    confirmation_processes: int = 3
    drift_share: float = 0.5
    promised_spread: float = 0.015
    promised_slowdown: float = 0.15
    canary: float = 0.30
    accuracy_p: float = 0.01
    accuracy_margin: float = 0.002
    collapse_margin: float = 0.03
    min_seeds: int = 5
    min_pairs: int = 60
    max_pairs: int = 120
    bootstrap_draws: int = 1000

    def __post_init__(self) -> None:
        for option in dataclasses.fields(self):
            value = getattr(self, option.name)
            if not value > 0:
                raise PruningBenchError("policy", f"{option.name} {value}", "above 0")
        for name in ("confidence", "power", "accuracy_p"):
            if not getattr(self, name) < 1:
                raise PruningBenchError("policy", f"{name} {getattr(self, name)}", "in (0, 1)")
        for name in ("min_processes", "confirmation_processes", "min_seeds"):
            if getattr(self, name) < 2:
                raise PruningBenchError("policy", f"{name} {getattr(self, name)}", "at least 2, to have a spread")

    @property
    def alpha(self) -> float:
        """How often one bound of an interval errs: (1 - confidence) / 2."""
        return (1 - self.confidence) / 2


@dataclass(frozen=True)
class Simulation:
    """What the gate, by its default policy, made of invented runs of unchanged code; the tests repeat it.

    Args:
        runs, cases: how many runs of how many timed cases each.
        spread, within: standard deviations of a log ratio between processes, and of its error inside one; normal.
        failed: runs with any case REGRESSED, after confirmation and Holm's correction.
    """

    runs: int = 200
    cases: int = 20
    spread: float = 0.015
    within: float = 0.003
    failed: int = 0


SIMULATED = Simulation()
