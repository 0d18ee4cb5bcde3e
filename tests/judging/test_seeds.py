"""Recipes that train: the seed is the unit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pruning_bench.judging import seeds as module
from pruning_bench.judging.baseline import BaselineLine
from pruning_bench.judging.seeds import judge_seeds
from pruning_bench.judging.statistics import Estimate, mcnemar_midp, paired_mean
from pruning_bench.judging.vectors import pack
from pruning_bench.records import Measurement, Outcome

N = 2000
CASE = "m-d/finetune:1/eager"


def case_id(seed):
    return CASE + (f"-s{seed}" if seed else "")


def accuracy(seed, share, shuffle=0):
    """A measurement whose share of right examples is `share`; another `shuffle` has other examples right."""
    bits = np.zeros(N, bool)
    bits[: round(share * N)] = True
    bits = np.random.default_rng(shuffle).permutation(bits)
    return Measurement(case_id(seed), "top1", float(bits.mean()), "1", "higher", "paired", vector=pack(bits))


def measured(shares, shuffle=0):
    return {seed: accuracy(seed, share, shuffle) for seed, share in enumerate(shares)}


def lines(measurements):
    return {
        seed: BaselineLine(
            m.case_id, m.metric, m.value, m.unit, m.better, m.rule, m.fingerprint, vector=m.vector, trains=True
        )
        for seed, m in measurements.items()
    }


def churned(shares, seed):
    """Trained anew: each seed's accuracy moves by chance, and other examples are right."""
    moves = np.random.default_rng(seed).normal(0, 0.004, len(shares))
    return measured([share + move for share, move in zip(shares, moves, strict=True)], shuffle=seed + 1)


FIVE = [0.90, 0.91, 0.90, 0.89, 0.90]


def expect(verdict, outcome, words=""):
    assert verdict.outcome is outcome, f"{verdict}, should be {outcome.value}"
    assert words in verdict.note, f"{verdict.note!r}, should say {words!r}"
    assert verdict.fails == (outcome in (Outcome.REGRESSED, Outcome.INCOMPARABLE)), f"{verdict}"


def check_identical_seeds_pass(judge):
    verdict = judge(measured(FIVE[:2]), lines(measured(FIVE[:2])))
    expect(verdict, Outcome.PASS, "2 seeds, all predictions identical")
    assert (verdict.case_id, verdict.n, verdict.p) == (CASE, 2, 1.0), f"{verdict}"


def check_retraining_is_no_regression(judge):
    """Chance between trainings, many flips and all: flagged in no more than a few of a hundred."""
    flagged = sum(judge(churned(FIVE, s), lines(measured(FIVE))).outcome is Outcome.REGRESSED for s in range(60))
    assert flagged <= 1, f"{flagged} of 60 unchanged methods REGRESSED"


def check_a_real_drop_is_seen(judge):
    drop = [0.012, 0.008, 0.010, 0.012, 0.009]
    verdict = judge(measured([a - d for a, d in zip(FIVE, drop, strict=True)], 1), lines(measured(FIVE)))
    expect(verdict, Outcome.REGRESSED, "over 5 seeds")
    assert verdict.interval[0] < verdict.delta < verdict.interval[1] < -0.002, f"{verdict}"
    gain = judge(measured([a + d for a, d in zip(FIVE, drop, strict=True)], 1), lines(measured(FIVE)))
    expect(gain, Outcome.IMPROVED)


def check_small_drops_need_the_margin(judge):
    """All seeds lose a thousandth: significant, and within the margin."""
    verdict = judge(measured([a - 0.001 for a in FIVE], 1), lines(measured(FIVE)))
    expect(verdict, Outcome.PASS)


def check_few_seeds_are_inconclusive(judge):
    verdict = judge(measured([0.88, 0.89], 1), lines(measured([0.90, 0.90])))
    expect(verdict, Outcome.INCONCLUSIVE, "2 common seeds, needs 5 to be tested")
    one = judge(measured([0.88], 1), lines(measured([0.90])))
    expect(one, Outcome.INCONCLUSIVE, "1 common seed, needs 5 to be tested")


def check_a_collapse_needs_no_seeds(judge):
    expect(judge(measured([0.10], 1), lines(measured([0.90]))), Outcome.REGRESSED, "collapsed")
    verdict = judge(measured([0.10, 0.90], 1), lines(measured([0.90, 0.90])))
    expect(verdict, Outcome.INCONCLUSIVE)


def check_only_common_seeds_count(judge):
    now = measured(FIVE) | {7: accuracy(7, 0.1)}
    verdict = judge(now, lines(measured(FIVE)) | lines({8: accuracy(8, 0.9)}))
    expect(verdict, Outcome.PASS)
    assert verdict.now == pytest.approx(0.9), f"{verdict}"
    assert verdict.n == 5, f"{verdict}"
    expect(judge({7: accuracy(7, 0.1)}, lines(measured(FIVE))), Outcome.NEW, "other seeds")
    expect(judge(measured(FIVE), {}), Outcome.NEW)


def check_one_changed_seed_is_incomparable(judge):
    now = measured(FIVE)
    now[3] = replace(now[3], fingerprint="other checkpoint")
    expect(judge(now, lines(measured(FIVE))), Outcome.INCOMPARABLE, "seed 3: fingerprint")
    now[3] = replace(now[3], fingerprint="", vector="")
    expect(judge(now, lines(measured(FIVE))), Outcome.INCOMPARABLE, "seed 3: per-example")


CHECKS = [value for name, value in sorted(globals().items()) if name.startswith("check_")]


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_judge_seeds(check):
    check(judge_seeds)


def _patched(name, replacement):
    def mutant(patch):
        patch.setattr(module, name, replacement)
        return judge_seeds

    return mutant


def _examples_as_unit(now, then):
    """McNemar over the examples of all seeds together."""
    verdict = judge_seeds(now, then)
    drop = [line.value - now[seed].value for seed, line in then.items()]
    p = mcnemar_midp(round(sum(d for d in drop if d > 0) * N), round(-sum(d for d in drop if d < 0) * N))
    return replace(verdict, outcome=Outcome.REGRESSED) if p < 0.01 else verdict


def _unpaired(drops):
    estimate = paired_mean(drops)
    return Estimate(estimate.value, estimate.error * 10, estimate.freedom)


def _reversed(now, then):
    swapped = {s: replace(now[s], value=line.value, vector=line.vector) for s, line in then.items()}
    return judge_seeds(swapped, lines(now))


def _all_seeds_in_the_mean(now, then):
    return replace(judge_seeds(now, then), now=sum(m.value for m in now.values()) / len(now))


MUTANTS = {
    "the example is the unit": (lambda patch: _examples_as_unit, check_retraining_is_no_regression),
    "unpaired": (_patched("paired_mean", _unpaired), check_a_real_drop_is_seen),
    "reversed": (lambda patch: _reversed, check_a_real_drop_is_seen),
    "margin dropped": (
        _patched("drop_outcome", lambda d, p, m, policy: Outcome.REGRESSED if p < 0.01 else Outcome.PASS),
        check_small_drops_need_the_margin,
    ),
    "few seeds pass": (
        _patched("_few", lambda v, f, p: replace(v, outcome=Outcome.PASS)),
        check_few_seeds_are_inconclusive,
    ),
    "few seeds excuse anything": (
        _patched("_few", lambda v, f, p: replace(v, outcome=Outcome.INCONCLUSIVE)),
        check_a_collapse_needs_no_seeds,
    ),
    "one collapsed seed is enough": (
        _patched("min", lambda bounds: max(bounds)),
        check_a_collapse_needs_no_seeds,
    ),
    "other seeds in the mean": (lambda patch: _all_seeds_in_the_mean, check_only_common_seeds_count),
    "fingerprint ignored": (_patched("comparable", lambda now, then: ""), check_one_changed_seed_is_incomparable),
    "identical not noticed": (
        _patched("flips", lambda then, now: (np.arange(3), np.arange(3))),
        check_identical_seeds_pass,
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_judge_seeds_bites(name, monkeypatch):
    if name == "one collapsed seed is enough":
        monkeypatch.setattr(module, "min", min, raising=False)
    mutant, check = MUTANTS[name]
    with pytest.raises(AssertionError):
        check(mutant(monkeypatch))


def test_every_check_has_a_mutant():
    assert {check for _, check in MUTANTS.values()} == set(CHECKS), "a check that nothing proves to bite"
