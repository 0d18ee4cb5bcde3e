"""The numbers behind a verdict: pure functions, no thresholds of their own.

Direction: a *drop* is positive when accuracy got lower, a log ratio is positive when the case is slower.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats  # type: ignore[import-untyped]

from pruning_bench.errors import PruningBenchError

Floats = npt.NDArray[np.float64]
DECILE = (
    0.1  # the quantile whose ratio is the estimator of speed: robust against slow outliers, steadier than the minimum
)


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error.

    Args:
        value: the estimate.
        error: its standard error, >= 0.
        freedom: degrees of freedom of the error (of Student's t); inf when the error is known.
    """

    value: float
    error: float
    freedom: float = math.inf

    def interval(self, confidence: float) -> tuple[float, float]:
        """Two-sided: value -+ t((1 + confidence) / 2, freedom) * error.

        Example:
            >>> [round(bound, 2) for bound in Estimate(1.0, 0.1).interval(0.98)]
            [0.77, 1.23]
        """
        half = student_quantile((1 + confidence) / 2, self.freedom) * self.error
        return self.value - half, self.value + half

    def p_above(self, bound: float) -> float:
        """One-sided p-value of "the true value is at most `bound`": P(T >= (value - bound) / error).

        Example:
            >>> Estimate(0.0, 1.0).p_above(0.0), Estimate(1.0, 0.0).p_above(0.0), Estimate(0.0, 0.0).p_above(0.0)
            (0.5, 0.0, 1.0)
        """
        if self.error == 0:
            return 0.0 if self.value > bound else 1.0
        return float(stats.t.sf((self.value - bound) / self.error, self.freedom))


@lru_cache(maxsize=1024)
def student_quantile(share: float, freedom: float) -> float:
    """The `share` quantile of Student's t; normal for infinite `freedom`."""
    return float(stats.t.ppf(share, freedom))


def q10(times: npt.ArrayLike) -> float:
    """The lower decile of times per call: steadier under noise than the median, and than the minimum.

    Example:
        >>> q10([1.0, 2.0, 3.0, 99.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0])
        2.0
    """
    return float(np.quantile(np.asarray(times, np.float64), DECILE))


def q10_log_ratio(case: npt.ArrayLike, anchor: npt.ArrayLike) -> float:
    """log(q10(case) / q10(anchor)), the lower deciles of times per call; positive = slower than the anchor.

    Args:
        case, anchor: seconds per call of paired blocks, shape [pairs], > 0.
    Example:
        >>> round(q10_log_ratio([2.0, 2.2, 9.9], [1.0, 1.1, 1.2]), 4)
        0.6931
    """
    top, bottom = _pairs(case, anchor)
    return float(np.log(np.quantile(top, DECILE) / np.quantile(bottom, DECILE)))


def block_bootstrap(
    case: npt.ArrayLike, anchor: npt.ArrayLike, *, seed: int, draws: int = 1000, length: int | None = None
) -> Floats:
    """Resampled `q10_log_ratio`s, shape [draws]: their standard deviation is its standard error inside a process.

    Circular block bootstrap: runs of `length` neighbouring pairs are drawn with replacement, wrapping around the
    end, so that slow drift of the machine stays inside a resample. Without `length` it is ceil(pairs ** (1/3)).
    Reference: Politis & Romano, A circular block-resampling procedure for stationary data, 1992.

    Args:
        case, anchor: seconds per call of paired blocks, in the order they were measured, shape [pairs], > 0.
    Example:
        >>> times = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5]
        >>> block_bootstrap(times, times, seed=0, draws=3).tolist()
        [0.0, 0.0, 0.0]
    """
    top, bottom = _pairs(case, anchor)
    pairs = len(top)
    length = length or math.ceil(pairs ** (1 / 3))
    generator = np.random.default_rng(seed)
    starts = generator.integers(pairs, size=(draws, math.ceil(pairs / length)))
    index = ((starts[:, :, None] + np.arange(length)) % pairs).reshape(draws, -1)[:, :pairs]
    ratio = np.quantile(top[index], DECILE, axis=1) / np.quantile(bottom[index], DECILE, axis=1)
    return np.log(ratio).astype(np.float64)


def bootstrap_error(case: npt.ArrayLike, anchor: npt.ArrayLike, *, seed: int, draws: int = 1000) -> float:
    """Standard error of `q10_log_ratio` inside one process, by `block_bootstrap`."""
    return float(block_bootstrap(case, anchor, seed=seed, draws=draws).std(ddof=1))


def estimate_log_ratio(case: npt.ArrayLike, anchor: npt.ArrayLike, *, seed: int, draws: int = 1000) -> Estimate:
    """`q10_log_ratio` with its standard error inside one process.

    Example:
        >>> estimate_log_ratio([1.0, 1.1, 1.2], [1.0, 1.1, 1.2], seed=0, draws=9)
        Estimate(value=0.0, error=0.0, freedom=inf)
    """
    return Estimate(q10_log_ratio(case, anchor), bootstrap_error(case, anchor, seed=seed, draws=draws))


def _pairs(case: npt.ArrayLike, anchor: npt.ArrayLike) -> tuple[Floats, Floats]:
    top, bottom = np.asarray(case, np.float64), np.asarray(anchor, np.float64)
    if top.shape != bottom.shape or top.ndim != 1 or not len(top):
        found = f"shapes {list(top.shape)} and {list(bottom.shape)}"
        raise PruningBenchError("log ratio", found, "paired blocks, both of shape [pairs]")
    if not (np.isfinite(top).all() and np.isfinite(bottom).all() and (top > 0).all() and (bottom > 0).all()):
        raise PruningBenchError("log ratio", "a time that is not positive and finite", "seconds per call")
    return top, bottom


def mcnemar_midp(lost: int, gained: int) -> float:
    """One-sided mid-p of "no more examples are lost than gained".

    P(X > lost) + P(X = lost) / 2 with X ~ Bin(lost + gained, 1/2). Without a discordant pair p = 1:
    there is nothing to test.
    Reference: Fagerland, Lydersen & Laake, The McNemar test for binary matched-pairs data, BMC Medical Research
    Methodology 2013.

    Example:
        >>> mcnemar_midp(2, 0), mcnemar_midp(0, 0)
        (0.125, 1.0)
    """
    if not lost + gained:
        return 1.0
    pairs = lost + gained
    return float(stats.binom.sf(lost, pairs, 0.5) + stats.binom.pmf(lost, pairs, 0.5) / 2)


@lru_cache(maxsize=4096)
def drop_interval(lost: int, gained: int, n: int, confidence: float = 0.98) -> tuple[float, float]:
    """Interval of the drop p_lost - p_gained between two tests of the same n examples: where |score(d)| <= z.

    score(d) = (lost - gained - n d) / sqrt(n (2 q + d (1 - d))), q = the share gained, fitted under drop d.
    Without a discordant pair it is -+ z^2 / (n + z^2), not a point.
    Reference: Tango, Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design, Statistics in Medicine 1998.

    Example:
        >>> [round(bound, 4) for bound in drop_interval(20, 10, 1000)]
        [-0.003, 0.0244]
    """
    if n < 1 or lost < 0 or gained < 0 or lost + gained > n:
        raise PruningBenchError("drop", f"{lost} lost and {gained} gained of {n}", "counts within n >= 1")
    z = student_quantile((1 + confidence) / 2, math.inf)
    estimate, edge = (lost - gained) / n, 1 - 1e-12

    def at(drop: float, target: float) -> float:
        return _drop_score(lost, gained, n, drop) - target

    low = -1.0 if gained == n else float(optimize.brentq(at, -edge, min(estimate, edge), args=(z,)))
    high = 1.0 if lost == n else float(optimize.brentq(at, max(estimate, -edge), edge, args=(-z,)))
    return low, high


def _drop_score(lost: int, gained: int, n: int, drop: float) -> float:
    linear = -lost - gained + (2 * n - lost + gained) * drop
    root = math.sqrt(max(0.0, linear * linear + 8 * n * gained * drop * (1 - drop)))
    share = max(0.0, (root - linear) / (4 * n))
    variance = n * (2 * share + drop * (1 - drop))
    difference = lost - gained - n * drop
    if variance <= 0:
        return math.copysign(math.inf, difference) if difference else 0.0
    return difference / math.sqrt(variance)


@lru_cache(maxsize=4096)
def smallest_drop(n: int, gained: int, margin: float, p: float, confidence: float = 0.98) -> float | None:
    """The smallest drop that n examples can show as a regression when `gained` others flip the right way.

    The least (lost - gained) / n with mid-p < `p` and a lower bound of the drop above `margin`; None if n cannot.
    Example:
        >>> smallest_drop(10_000, 0, margin=0.002, p=0.01), smallest_drop(3, 0, margin=0.002, p=0.01)
        (0.0031, None)
    """

    def shown(lost: int) -> bool:
        return mcnemar_midp(lost, gained) < p and drop_interval(lost, gained, n, confidence)[0] > margin

    low, high = gained, n - gained
    if high <= low or not shown(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if shown(middle) else (middle, high)
    return (high - gained) / n


def paired_mean(differences: Sequence[float]) -> Estimate:
    """Mean of paired differences, one a seed: the paired t test's estimate, error = sd / sqrt(K), K - 1 degrees.

    Reference: Student, The probable error of a mean, Biometrika 1908.

    Example:
        >>> paired_mean([0.01, 0.02, 0.03])
        Estimate(value=0.02, error=0.005773502691896258, freedom=2)
    """
    if len(differences) < 2:
        raise PruningBenchError("paired t", f"{len(differences)} differences", "at least 2")
    values = np.asarray(differences, np.float64)
    error = 0.0 if np.ptp(values) == 0 else float(values.std(ddof=1)) / math.sqrt(len(values))
    return Estimate(float(values.mean()), error, len(values) - 1)


def holm(pvalues: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the given order: reject where they are below alpha, and at most alpha of all families err.

    Sorted ascending, adjusted(i) = max over j <= i of min(1, (m - j) p(j)), j from 0.
    Reference: Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 1979.

    Example:
        >>> holm([0.01, 0.5, 0.02])
        [0.03, 0.5, 0.04]
    """
    values = np.asarray(pvalues, np.float64)
    order = np.argsort(values, kind="stable")
    steps = np.minimum(1.0, values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.maximum.accumulate(steps)
    return [float(p) for p in adjusted]


def smallest_effect(estimate: Estimate, margin: float, confidence: float, power: float) -> float:
    """The smallest true effect whose lower bound lies beyond `margin` with probability `power`.

    margin + shift * error, where a noncentral t of that shift exceeds t((1 + confidence) / 2) with that probability.
    Example:
        >>> round(smallest_effect(Estimate(0.0, 0.01), margin=0.03, confidence=0.98, power=0.9), 4)
        0.0661
    """
    return margin + _shift(estimate.freedom, confidence, power) * estimate.error


@lru_cache(maxsize=1024)
def _shift(freedom: float, confidence: float, power: float) -> float:
    bound = student_quantile((1 + confidence) / 2, freedom)
    if math.isinf(freedom):
        return bound + student_quantile(power, math.inf)

    def lacking(shift: float) -> float:
        return float(stats.nct.sf(bound, freedom, shift)) - power

    return float(optimize.brentq(lacking, 0.0, 4 * bound + 4, xtol=1e-6))
