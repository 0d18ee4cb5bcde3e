"""Processes: calibration by simulation, agreement with scipy, and mutants."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from pruning_bench.errors import PruningBenchError
from pruning_bench.judging.processes import Processes, process_difference, process_mean
from pruning_bench.judging.statistics import Estimate

CONFIDENCE = 0.98


def check_process_interval(difference, now_count, then_count, within):
    """Each bound errs in about 1 % of unchanged comparisons, however few processes tell of the spread."""
    generator = np.random.default_rng(5)
    sims, spread = 4000, 0.015
    sd = math.hypot(spread, within)
    now = generator.normal(0, sd, (sims, now_count))
    then = generator.normal(0, sd, (sims, then_count))
    errors_now, errors_then = (within,) * now_count, (within,) * then_count
    above = 0
    for a, b in zip(now, then, strict=True):
        estimate = difference(Processes.of(a.tolist(), errors_now), Processes.of(b.tolist(), errors_then))
        above += estimate.interval(CONFIDENCE)[0] > 0
    assert 0.004 < above / sims < 0.015, f"{above} of {sims} unchanged lie above the interval's lower bound"


@pytest.mark.parametrize(("now_count", "then_count", "within"), [(1, 5, 0.0), (3, 5, 0.0), (1, 10, 0.0), (3, 5, 0.005)])
def test_process_interval_is_calibrated(now_count, then_count, within):
    check_process_interval(process_difference, now_count, then_count, within)


def _known_spread(now, then):
    estimate = process_difference(now, then)
    return Estimate(estimate.value, estimate.error)


def _baseline_taken_as_exact(now, then):
    return process_difference(now, Processes(10**6, then.centre, then.spread, then.within))


def _spread_ignored(now, then):
    return process_difference(Processes(now.count, now.centre), Processes(then.count, then.centre))


def _counted_twice(now, then):
    estimate = process_difference(now, then)
    return Estimate(estimate.value, 2 * estimate.error, estimate.freedom)


MUTANT_DIFFERENCES = [_known_spread, _baseline_taken_as_exact, _spread_ignored, _counted_twice]


@pytest.mark.parametrize("mutant", MUTANT_DIFFERENCES, ids=lambda m: m.__name__.strip("_"))
def test_process_interval_bites(mutant):
    with pytest.raises(AssertionError):
        check_process_interval(mutant, 1, 5, 0.0)


@given(
    samples=st.lists(st.floats(-1, 1), min_size=2, max_size=6),
    others=st.lists(st.floats(-1, 1), min_size=2, max_size=6),
)
def test_process_difference_is_the_two_sample_t(samples, others):
    assume(np.ptp(samples) > 1e-3 and np.ptp(others) > 1e-3)
    estimate = process_difference(Processes.of(samples), Processes.of(others))
    expected = stats.ttest_ind(samples, others, alternative="greater")
    assert estimate.p_above(0.0) == pytest.approx(expected.pvalue, abs=1e-9), f"{estimate=}, scipy {expected}"


def test_process_mean_uses_the_spread_that_is_known():
    alone = process_mean(Processes(1, 0.0, within=0.002))
    known = process_mean(Processes(1, 0.0, within=0.002), Processes(5, 1.0, spread=0.01, within=0.002))
    assert alone == Estimate(0.0, 0.002), f"{alone=}"
    assert known.error == pytest.approx(0.01), f"{known=}"
    assert (known.value, known.freedom) == (0.0, 4), f"{known=}"


@pytest.mark.parametrize("samples", [(), (math.nan,), (0.1, math.inf)])
def test_processes_refuse_what_is_no_sample(samples):
    with pytest.raises(PruningBenchError, match="processes"):
        Processes.of(samples)
