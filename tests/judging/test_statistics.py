"""Statistics: calibration by enumeration or simulation, agreement with scipy, and mutants of each."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import optimize, stats

from pruning_bench.errors import PruningBenchError
from pruning_bench.judging.statistics import (
    Estimate,
    block_bootstrap,
    bootstrap_error,
    drop_interval,
    estimate_log_ratio,
    holm,
    mcnemar_midp,
    paired_mean,
    q10,
    q10_log_ratio,
    smallest_drop,
    smallest_effect,
)

CONFIDENCE = 0.98


# q10 ratio and bootstrap


def _noisy(generator, pairs, drift=0.0):
    """Times of a case and its anchor under shared, slowly changing noise and some noise of each one's own."""
    shared = np.exp(drift * np.abs(np.convolve(generator.normal(size=pairs + 9), np.ones(10) / 3.2, "valid")))
    own = np.exp(np.abs(generator.normal(0, 0.02, (2, pairs))))
    return 2 * shared * own[0], shared * own[1]


@given(scale=st.floats(0.1, 10), seed=st.integers(0, 99))
def test_log_ratio_of_a_slower_case(scale, seed):
    case, anchor = _noisy(np.random.default_rng(seed), 30)
    found = q10_log_ratio(scale * case, anchor) - q10_log_ratio(case, anchor)
    assert found == pytest.approx(math.log(scale)), f"{found=}, should be log {scale}"
    assert q10_log_ratio(anchor, case) == pytest.approx(-q10_log_ratio(case, anchor)), "not antisymmetric"


def test_log_ratio_does_not_see_slow_outliers():
    times = np.linspace(1, 1.1, 60)
    spoilt = times.copy()
    spoilt[40:] *= 10
    assert q10_log_ratio(spoilt, times) == 0.0, "a third of outliers moved the lower decile"


@pytest.mark.parametrize(
    ("case", "anchor"),
    [([1.0], [1.0, 2.0]), ([], []), ([[1.0]], [[1.0]]), ([0.0], [1.0]), ([1.0], [math.nan]), ([1.0], [-1.0])],
)
def test_log_ratio_refuses_what_are_no_paired_times(case, anchor):
    with pytest.raises(PruningBenchError, match="log ratio"):
        q10_log_ratio(case, anchor)


def test_the_estimate_is_the_ratio_with_its_error():
    case, anchor = _noisy(np.random.default_rng(3), 60)
    found = estimate_log_ratio(case, anchor, seed=5, draws=200)
    assert found.value == pytest.approx(math.log(q10(case) / q10(anchor))), f"{found}"
    assert found.error == bootstrap_error(case, anchor, seed=5, draws=200) > 0, f"{found}"


def check_bootstrap_error(error_of):
    """The error inside a process is about the true standard deviation, under shared noise that pairing removes."""
    generator = np.random.default_rng(7)
    drawn = [_noisy(generator, 60, drift=0.3) for _ in range(120)]
    truth = np.std([q10_log_ratio(*pair) for pair in drawn], ddof=1)
    believed = np.sqrt(np.mean([error_of(*pair, seed=1, draws=150) ** 2 for pair in drawn]))
    assert 0.7 < believed / truth < 1.4, f"{believed=:.5f}, {truth=:.5f}"


def test_bootstrap_error_is_calibrated():
    check_bootstrap_error(bootstrap_error)


def _unpaired(case, anchor, *, seed, draws):
    generator = np.random.default_rng(seed)
    return bootstrap_error(case, generator.permutation(anchor), seed=seed, draws=draws)


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(_unpaired, id="pairs torn apart"),
        pytest.param(lambda *a, **k: bootstrap_error(*a, **k) / 2, id="half the error"),
        pytest.param(lambda *a, **k: bootstrap_error(*a, **k) / math.sqrt(60), id="divided by n again"),
        pytest.param(lambda *a, **k: 0.0, id="no error"),
    ],
)
def test_bootstrap_error_bites(mutant):
    with pytest.raises(AssertionError):
        check_bootstrap_error(mutant)


def check_blocks_see_drift(bootstrap):
    generator = np.random.default_rng(3)
    ratio = []
    for _ in range(30):
        wave = np.exp(0.2 * np.convolve(generator.normal(size=69), np.ones(10) / 3.2, "valid"))
        blocks = bootstrap(wave, np.ones(60), seed=0, draws=150, length=10).std()
        ratio.append(blocks / block_bootstrap(wave, np.ones(60), seed=0, draws=150, length=1).std())
    assert np.mean(ratio) > 1.2, f"blocks see {np.mean(ratio):.2f} times the error of single pairs"


def test_blocks_see_drift():
    check_blocks_see_drift(block_bootstrap)


def test_blocks_see_drift_bites():
    def single_pairs(case, anchor, *, seed, draws, length):
        return block_bootstrap(case, anchor, seed=seed, draws=draws, length=1)

    with pytest.raises(AssertionError):
        check_blocks_see_drift(single_pairs)


def test_bootstrap_interval_covers():
    generator = np.random.default_rng(11)
    pairs = [_noisy(generator, 60) for _ in range(150)]
    estimates = [Estimate(q10_log_ratio(*pair), bootstrap_error(*pair, seed=2, draws=200)) for pair in pairs]
    covered = np.mean([low <= math.log(2) <= high for low, high in (e.interval(CONFIDENCE) for e in estimates)])
    assert covered >= 0.92, f"covers {covered:.0%} at 60 pairs"


def test_bootstrap_is_seeded():
    pair = _noisy(np.random.default_rng(0), 20)
    one, same, other = (block_bootstrap(*pair, seed=s, draws=20) for s in (1, 1, 2))
    assert np.array_equal(one, same), "one seed, two results"
    assert not np.array_equal(one, other), "the seed has no effect"
    assert one.shape == (20,), f"{one.shape=}"


def test_smallest_effect_is_seen_with_the_power_it_names():
    generator = np.random.default_rng(9)
    error, margin, freedom = 0.01, 0.03, 4
    effect = smallest_effect(Estimate(0.0, error, freedom), margin, CONFIDENCE, 0.9)
    scale = error * np.sqrt(generator.chisquare(freedom, 20_000) / freedom)
    found = generator.normal(effect, error, 20_000)
    seen = np.mean(found - stats.t.ppf(0.99, freedom) * scale > margin)
    assert seen > 0.87, f"an effect of {effect:.4f} is seen with {seen:.1%}"
    smaller = np.mean(found - effect + margin - stats.t.ppf(0.99, freedom) * scale > margin)
    assert smaller < 0.015, f"an effect of the margin is seen with {smaller:.1%}"


# accuracy


def check_midp(midp):
    for lost, gained in ((1, 0), (5, 2), (2, 5), (40, 15), (3, 3)):
        coin = stats.binomtest(lost, lost + gained, 0.5, alternative="greater")
        expected = coin.pvalue - stats.binom.pmf(lost, lost + gained, 0.5) / 2
        assert midp(lost, gained) == pytest.approx(expected), f"{lost} lost, {gained} gained: {midp(lost, gained)}"
    assert midp(0, 0) == 1.0, f"no discordant pair: {midp(0, 0)}"


def test_midp_agrees_with_scipy():
    check_midp(mcnemar_midp)


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(lambda a, b: min(1.0, 2 * min(mcnemar_midp(a, b), mcnemar_midp(b, a))), id="two-sided"),
        pytest.param(lambda a, b: mcnemar_midp(b, a), id="reversed"),
        pytest.param(lambda a, b: float(stats.binom(a + b, 0.5).sf(a - 1)), id="exact instead of mid-p"),
        pytest.param(lambda a, b: mcnemar_midp(a, b) if a + b else 0.5, id="half without discordant pairs"),
        pytest.param(lambda a, b: float(stats.norm.sf((a - b) / math.sqrt(a + b))) if a + b else 1.0, id="normal"),
    ],
)
def test_midp_bites(mutant):
    with pytest.raises(AssertionError):
        check_midp(mutant)


def check_midp_level(midp):
    """Unchanged models whose predictions churn are flagged in about 1 % of the tests, by enumeration."""
    sizes = [1.0 * (midp(0, 0) < 0.01)]
    for pairs in range(1, 41):
        flagged = [lost for lost in range(pairs // 2, pairs + 1) if midp(lost, pairs - lost) < 0.01]
        sizes.append(float(stats.binom.pmf(flagged, pairs, 0.5).sum()))
    for n, churn in ((500, 0.01), (1000, 0.01), (1000, 0.02)):
        flags = float(stats.binom.pmf(np.arange(41), n, churn) @ sizes)
        assert flags < 0.0105, f"flags {flags:.2%} of unchanged at a nominal 1 %, {n=} {churn=}"


def test_midp_holds_its_level_by_enumeration():
    check_midp_level(mcnemar_midp)


def test_midp_level_bites():
    with pytest.raises(AssertionError):
        check_midp_level(lambda a, b: float(stats.norm.sf((a - b + 1) / math.sqrt(a + b))) if a + b else 1.0)


@given(lost=st.integers(0, 30), gained=st.integers(0, 30), more=st.integers(1, 400))
def test_drop_interval_is_where_the_score_is_small(lost, gained, more):
    n = lost + gained + more
    z = stats.norm.ppf(0.99)

    def score(drop):
        def against(q):
            cells = (q + drop, q, 1 - 2 * q - drop)
            return -sum(k * math.log(max(p, 1e-300)) for k, p in zip((lost, gained, more), cells, strict=True) if k)

        least, most = max(0.0, -drop), (1 - drop) / 2
        q = optimize.minimize_scalar(against, bounds=(least, most), method="bounded", options={"xatol": 1e-12}).x
        return abs(lost - gained - n * drop) / math.sqrt(n * (2 * q + drop - drop**2))

    for bound in drop_interval(lost, gained, n):
        assert score(bound) == pytest.approx(z, rel=2e-3), f"score {score(bound)} at {bound}, {lost=} {gained=} {n=}"


def check_drop_interval(interval):
    assert interval(0, 0, 100) == pytest.approx(interval(0, 0, 100)[1] * np.array([-1, 1])), "not symmetric at 0"
    assert interval(0, 0, 100)[1] > 0.04, f"100 identical examples prove {interval(0, 0, 100)}"
    for lost, gained in ((0, 0), (3, 0), (12, 5), (100, 0)):
        low, high = interval(lost, gained, 100)
        assert low <= (lost - gained) / 100 <= high, f"{low}..{high} without the estimate of {lost}, {gained}"
        swapped = interval(gained, lost, 100)
        assert swapped == pytest.approx((-high, -low)), f"{swapped=}, should mirror {low}..{high}"
    for drop, churn in ((0.03, 0.03), (0.02, 0.06), (0.0, 0.04)):
        missed = _missed(interval, 60, (churn + drop) / 2, (churn - drop) / 2)
        assert missed < 0.016, f"the upper bound misses a drop of {drop} in {missed:.2%} of the tests, churn {churn}"


def _missed(interval, n, p_lost, p_gained):
    """Exact share of tests of n examples whose upper bound lies below the true drop."""
    total = 0.0
    for lost in range(25):
        for gained in range(25):
            if lost + gained <= n and interval(lost, gained, n)[1] < p_lost - p_gained:
                total += stats.multinomial.pmf(
                    (lost, gained, n - lost - gained), n, (p_lost, p_gained, 1 - p_lost - p_gained)
                )
    return total


def test_drop_interval_is_sane_and_covers():
    check_drop_interval(drop_interval)


def _wald(lost, gained, n, correction=0.0):
    drop = (lost - gained) / n
    half = 2.326 * math.sqrt(max(0.0, (lost + gained) / n - drop**2) / n) + correction / n
    return drop - half, drop + half


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(_wald, id="Wald"),
        pytest.param(partial(_wald, correction=1.0), id="Wald with a continuity correction"),
        pytest.param(lambda a, b, n: drop_interval(b, a, n), id="reversed"),
        pytest.param(lambda a, b, n: drop_interval(a, b, n, 0.9), id="90 % for 98 %"),
    ],
)
def test_drop_interval_bites(mutant):
    with pytest.raises(AssertionError):
        check_drop_interval(mutant)


@pytest.mark.parametrize(("lost", "gained", "n"), [(-1, 0, 5), (3, 3, 5), (0, 0, 0)])
def test_drop_interval_refuses_impossible_counts(lost, gained, n):
    with pytest.raises(PruningBenchError, match="drop"):
        drop_interval(lost, gained, n)


@given(n=st.sampled_from([50, 500, 5000]), gained=st.integers(0, 20))
def test_smallest_drop_is_the_smallest(n, gained):
    smallest = smallest_drop(n, gained, 0.002, 0.01)
    assume(smallest is not None)
    least = round(smallest * n) + gained
    shown = [
        mcnemar_midp(lost, gained) < 0.01 and drop_interval(lost, gained, n)[0] > 0.002 for lost in (least - 1, least)
    ]
    assert shown == [False, True], f"{n=} {gained=}: {least - 1} lost {shown[0]}, {least} lost {shown[1]}"


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=8))
def test_paired_mean_is_scipys_paired_t(pairs):
    then, now = np.array(pairs).T
    assume(np.ptp(then - now) > 1e-3)
    expected = stats.ttest_rel(then, now, alternative="greater")
    estimate = paired_mean((then - now).tolist())
    assert estimate.p_above(0.0) == pytest.approx(expected.pvalue, abs=1e-9), f"{estimate=}, scipy {expected}"
    interval = stats.ttest_rel(then, now).confidence_interval(CONFIDENCE)
    assert estimate.interval(CONFIDENCE) == pytest.approx((interval.low, interval.high)), f"{estimate=}"


def test_paired_mean_of_equal_differences():
    assert paired_mean([0.1, 0.1, 0.1]).p_above(0.0) == 0.0, "a drop that all seeds share"
    assert paired_mean([0.0, 0.0]).p_above(0.0) == 1.0, "no drop"
    with pytest.raises(PruningBenchError, match="paired t: 1 differences"):
        paired_mean([0.1])


# Holm


def check_holm(adjust):
    """Rejects by the definition of the step-down procedure, whatever alpha."""
    generator = np.random.default_rng(17)
    for size in (0, 1, 2, 5, 9):
        pvalues = (generator.random(size) ** 3).round(3).tolist()
        adjusted = adjust(pvalues)
        for alpha in (0.01, 0.05, 0.2):
            rejected = set()
            for step, i in enumerate(sorted(range(size), key=pvalues.__getitem__)):
                if not pvalues[i] * (size - step) < alpha:
                    break
                rejected.add(i)
            found = {i for i, p in enumerate(adjusted) if p < alpha}
            assert found == rejected, f"{pvalues} at {alpha}: rejects {found}, should {rejected}"


def test_holm_is_the_step_down_procedure():
    check_holm(holm)


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(list, id="no correction"),
        pytest.param(lambda ps: [min(1.0, p * len(ps)) for p in ps], id="Bonferroni"),
        pytest.param(lambda ps: sorted(holm(ps)), id="order lost"),
        pytest.param(lambda ps: [float(p) for p in stats.false_discovery_control(ps)] if ps else [], id="FDR"),
    ],
)
def test_holm_bites(mutant):
    with pytest.raises(AssertionError):
        check_holm(mutant)
