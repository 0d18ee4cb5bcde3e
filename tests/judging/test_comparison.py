"""Two models in numbers: the test is two-sided, the interval has the sign of the change, A and B can change places."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pruning_bench.judging.comparison import ClassChange, Comparison, Side
from pruning_bench.judging.policy import Policy
from pruning_bench.judging.statistics import drop_interval, mcnemar_midp

POLICY = Policy()
EMPTY = Side("", {}, ())


def of(lost: int, gained: int, other_flips: int = 0, examples: int = 1000) -> Comparison:
    """A comparison of one class."""
    right = examples - gained - other_flips
    change = ClassChange("cat", examples, right, right - lost + gained, lost + gained + other_flips, lost, gained)
    return Comparison(EMPTY, EMPTY, "", (change,))


counts = st.integers(0, 40)


@given(counts, counts, counts)
def test_a_and_b_can_change_places(lost: int, gained: int, flips: int) -> None:
    one, other = of(lost, gained, flips), of(gained, lost, flips)
    assert one.change == -other.change, f"{one.change} and {other.change}, should be opposite"
    assert one.p == pytest.approx(other.p), f"p {one.p} and {other.p}, should be the same"
    low, high = other.change_interval(POLICY)
    assert one.change_interval(POLICY) == pytest.approx((-high, -low), abs=1e-9), "intervals should be mirrored"
    assert one.agreement == pytest.approx(1 - (lost + gained + flips) / 1000), f"agreement {one.agreement}"


def check_interval(interval: Callable[[Comparison], tuple[float, float]]) -> None:
    for lost, gained in ((0, 0), (30, 0), (0, 30), (25, 5)):
        found = of(lost, gained)
        low, high = interval(found)
        assert low <= found.change <= high, f"{found.change} outside [{low}, {high}] of {lost} lost, {gained} gained"
        assert high - low > 1e-3, f"[{low}, {high}] of {lost} lost and {gained} gained is a point"


def test_the_interval_holds_the_change() -> None:
    check_interval(lambda found: found.change_interval(POLICY))


def of_the_drop(found: Comparison) -> tuple[float, float]:
    """Mutant: the sign of a drop."""
    return drop_interval(found.lost, found.gained, found.examples, POLICY.confidence)


def of_the_flips(found: Comparison) -> tuple[float, float]:
    """Mutant: no wider than the change itself."""
    return found.change, found.change


@pytest.mark.parametrize("mutant", [of_the_drop, of_the_flips])
def test_the_interval_rejects(mutant: Callable[[Comparison], tuple[float, float]]) -> None:
    with pytest.raises(AssertionError):
        check_interval(mutant)


def check_p(p: Callable[[Comparison], float]) -> None:
    for lost, gained in ((0, 0), (1, 1), (5, 0), (0, 5), (20, 8), (8, 20)):
        fewer, pairs = min(lost, gained), lost + gained
        tail = stats.binom.cdf(fewer, pairs, 0.5) - stats.binom.pmf(fewer, pairs, 0.5) / 2
        expected = 1.0 if lost == gained else 2 * tail
        found = p(of(lost, gained))
        assert found == pytest.approx(expected), f"p {found} of {lost} lost and {gained} gained, should be {expected}"


def test_p_is_the_two_sided_mid_p() -> None:
    check_p(lambda found: found.p)


def one_sided(found: Comparison) -> float:
    """Mutant: only a loss counts."""
    return mcnemar_midp(found.lost, found.gained)


def doubled(found: Comparison) -> float:
    """Mutant: twice that of a loss, above 1 for a gain."""
    return 2 * mcnemar_midp(found.lost, found.gained)


@pytest.mark.parametrize("mutant", [one_sided, doubled])
def test_p_rejects(mutant: Callable[[Comparison], float]) -> None:
    with pytest.raises(AssertionError):
        check_p(mutant)


def test_classes_add_up() -> None:
    a, b = of(3, 1, 2, examples=50).classes[0], of(0, 4, 0, examples=30).classes[0]
    found = replace(of(0, 0), classes=(a, b))
    seen = found.examples, found.lost, found.gained, found.flips, found.change
    assert seen == (80, 3, 5, 10, 2 / 80), f"{seen}"
