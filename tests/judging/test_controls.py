"""Controls: what holds and what does not, by simulation and mutants."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pruning_bench.judging.controls import same_holds, slower_holds
from pruning_bench.judging.policy import Policy
from pruning_bench.judging.statistics import Estimate

POLICY = Policy()
DRAWS = 2000


def share_that_holds(holds, shift, error):
    """How often a control holds whose true log ratio is `shift` and whose estimate errs by `error`."""
    values = np.random.default_rng(0).normal(shift, error, DRAWS)
    return np.mean([holds(Estimate(float(value), error), POLICY) for value in values])


def check_noise_breaks_no_twin(holds):
    for error in (0.001, 0.01, 0.02):
        share = share_that_holds(holds, 0.0, error)
        assert share > 0.98, f"holds in {share:.1%} at an error of {error:.1%}"


def check_a_wrong_clock_breaks_the_twin(holds):
    """A clock off by the promised slow-down, however noisy it is besides, and by much less where it is not."""
    for error in (0.001, 0.01, 0.03, 0.1, 1.0):
        for sign in (1, -1):
            share = share_that_holds(holds, sign * math.log1p(POLICY.promised_slowdown), error)
            assert share < 0.02, f"holds in {share:.1%} at an error of {error:.1%}"
    assert not holds(Estimate(0.05, 0.005), POLICY), "5 % off, exactly measured"
    assert not holds(Estimate(-0.05, 0.005), POLICY), "5 % off, exactly measured"


def check_a_slow_down_is_caught(holds):
    shift = math.log1p(POLICY.promised_slowdown)
    assert share_that_holds(holds, shift, 0.02) > 0.98, "a slow-down that is plain to see"
    assert share_that_holds(holds, 0.0, 0.02) < 0.02, "no slow-down at all"
    assert not holds(Estimate(shift, 0.1), POLICY), "one that is lost in noise"


@pytest.mark.parametrize(
    ("check", "holds"),
    [
        (check_noise_breaks_no_twin, same_holds),
        (check_a_wrong_clock_breaks_the_twin, same_holds),
        (check_a_slow_down_is_caught, slower_holds),
    ],
)
def test_controls(check, holds):
    check(holds)


def _significant(twin, policy):
    low, high = twin.interval(policy.confidence)
    return low <= 0 <= high


def _not_proved_to_differ(twin, policy):
    low, high = twin.interval(policy.confidence)
    return low <= math.log1p(policy.speed_floor) and high >= -math.log1p(policy.speed_floor)


def _proved_within_the_floor(twin, policy):
    low, high = twin.interval(policy.confidence)
    return -math.log1p(policy.speed_floor) <= low and high <= math.log1p(policy.speed_floor)


@pytest.mark.parametrize(
    ("check", "mutant"),
    [
        pytest.param(check_noise_breaks_no_twin, _significant, id="no floor"),
        pytest.param(check_noise_breaks_no_twin, _proved_within_the_floor, id="must be proved within the floor"),
        pytest.param(check_a_wrong_clock_breaks_the_twin, _not_proved_to_differ, id="hides in a wide interval"),
        pytest.param(check_a_slow_down_is_caught, lambda e, p: e.value > math.log1p(p.speed_floor), id="no interval"),
    ],
)
def test_controls_bite(check, mutant):
    with pytest.raises(AssertionError):
        check(mutant)
