"""Times measured in several fresh processes: the unit of a speed is the process, not the call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pruning_bench.errors import PruningBenchError
from pruning_bench.judging.statistics import Estimate


@dataclass(frozen=True)
class Processes:
    """What is known of one quantity measured in several fresh processes.

    Args:
        count: processes, >= 1.
        centre: their mean.
        spread: standard deviation between them (n - 1); 0 for a single one, which knows nothing of it.
        within: root mean square of their own standard errors.
    """

    count: int
    centre: float
    spread: float = 0.0
    within: float = 0.0

    @classmethod
    def of(cls, samples: Sequence[float], errors: Sequence[float] = ()) -> Processes:
        """Summary of one sample a process and, where known, its error inside the process.

        Example:
            >>> Processes.of([1.0, 3.0], [0.3, 0.4])
            Processes(count=2, centre=2.0, spread=1.4142135623730951, within=0.3535533905932738)
        """
        if not samples or not all(map(math.isfinite, (*samples, *errors))):
            raise PruningBenchError("processes", f"samples {list(samples)}", "at least one sample, all finite")
        spread = float(np.std(samples, ddof=1)) if len(samples) > 1 else 0.0
        within = math.sqrt(sum(e * e for e in errors) / len(errors)) if errors else 0.0
        return cls(len(samples), float(np.mean(samples)), spread, within)


def process_difference(now: Processes, then: Processes) -> Estimate:
    """Estimate of now - then whose unit is the process.

    The variance of one process is pooled over both sides with f = (n_now - 1) + (n_then - 1) degrees of freedom.
    What it holds beyond the errors inside a process is between processes, so that nothing is counted twice:

        s^2       = sum (n - 1) spread^2 / f            w^2 = sum (n - 1) within^2 / f
        between^2 = max(0, s^2 - w^2)
        error^2   = between^2 (1/n_now + 1/n_then) + within_now^2 / n_now + within_then^2 / n_then

    With a single process on either side f is that of the other; with one on both, infinite and between^2 = 0.
    Example:
        >>> estimate = process_difference(Processes(1, 0.10), Processes(5, 0.0, spread=0.01))
        >>> round(estimate.error, 4), estimate.freedom
        (0.011, 4)
    """
    between, freedom = _between(now, then)
    variance = sum((between + side.within**2) / side.count for side in (now, then))
    return Estimate(now.centre - then.centre, math.sqrt(variance), freedom)


def process_mean(now: Processes, known: Processes | None = None) -> Estimate:
    """Estimate of the centre of `now`, with the spread between processes pooled from `known` too, as above.

    From a single process and nothing known the error is that inside the process: too small, but all there is.
    Example:
        >>> process_mean(Processes(4, 0.1, spread=0.02))
        Estimate(value=0.1, error=0.01, freedom=3)
    """
    between, freedom = _between(*((now,) if known is None else (now, known)))
    return Estimate(now.centre, math.sqrt((between + now.within**2) / now.count), freedom)


def _between(*sides: Processes) -> tuple[float, float]:
    """Pooled variance between processes beyond the errors inside them, and its degrees of freedom."""
    freedom = sum(side.count - 1 for side in sides)
    beyond = sum((side.count - 1) * (side.spread**2 - side.within**2) for side in sides)
    return (max(0.0, beyond) / freedom, freedom) if freedom else (0.0, math.inf)
