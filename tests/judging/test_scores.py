"""Scores of the same examples before and after: round trips, the paired test, and margins of a score's own."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning_bench.errors import RecordError
from pruning_bench.judging import seeds, verdicts
from pruning_bench.judging.baseline import BaselineLine
from pruning_bench.judging.scores import change_of_scores
from pruning_bench.judging.seeds import judge_seeds
from pruning_bench.judging.vectors import pack, pack_scores, unpack
from pruning_bench.judging.verdicts import judge
from pruning_bench.records import Measurement, Outcome

FLOATS = st.floats(-1e6, 1e6, width=32)


def now(scores, better="higher", margin=0.002):
    values = np.asarray(scores, np.float32)
    value = float(values.mean(dtype=np.float64))
    detail = {"margin": margin}
    return Measurement("c", "score", value, "1", better, "paired", vector=pack_scores(values), detail=detail)


def then(scores, better="higher"):
    m = now(scores, better)
    return BaselineLine("c", "score", m.value, "1", better, "paired", vector=m.vector)


def noisy(shift=0.0, spread=0.01, n=200, seed=0):
    return np.random.default_rng(seed).normal(shift, spread, n)


@given(st.lists(FLOATS, max_size=50))
def test_scores_come_back(values):
    found = unpack(pack_scores(values))
    assert found.dtype == np.float32, f"{found.dtype}"
    assert found.tolist() == values, f"{found.tolist()} from {values}"


@pytest.mark.parametrize(
    "spoil", [lambda t: t[:-3], lambda t: t.replace("f32 3", "f32 4"), lambda t: "f32 " + pack([1, 0, 1])]
)
def test_damaged_scores_are_refused(spoil):
    with pytest.raises(RecordError):
        unpack(spoil(pack_scores([0.5, 0.25, 1.0])))


def test_scores_that_are_not_finite_are_refused():
    for bad in ([np.nan], [np.inf], [1e300], [[1.0]]):
        with pytest.raises(RecordError):
            pack_scores(bad)


def check_identical():
    base = noisy(0.9)
    assert judge(now(base), then(base)).outcome is Outcome.PASS, "nothing changed"


def check_a_drop():
    base = noisy(0.9)
    verdict = judge(now(base - 0.05 + noisy(seed=1)), then(base))
    assert verdict.outcome is Outcome.REGRESSED, f"{verdict}"
    assert verdict.interval[0] < -0.05 < verdict.interval[1], f"{verdict.interval}"
    assert judge(now(base + 0.05), then(base)).outcome is Outcome.IMPROVED, "higher is better"


def check_direction():
    base = noisy(0.9)
    assert judge(now(base + 0.05, "lower"), then(base, "lower")).outcome is Outcome.REGRESSED, "lower is better"


def check_margin():
    base = noisy(0.9)
    small = base - 0.01
    assert judge(now(small, margin=0.02), then(base)).outcome is Outcome.PASS, "within the margin of the score"
    assert judge(now(small), then(base)).outcome is Outcome.REGRESSED, "beyond the default margin"


def check_wider_margin():
    """The drop that the accepted margin would find must not pass by a margin that nobody accepted."""
    base = noisy(0.9)
    line = replace(then(base), margin=0.002)
    for seeds_of in (lambda m: judge(m, line), lambda m: judge_seeds({0: m}, {0: line})):
        verdict = seeds_of(now(base - 0.01, margin=0.02))
        assert verdict.outcome is Outcome.INCOMPARABLE, f"{verdict}"
        assert verdict.fails, f"{verdict}"
        assert verdict.note.endswith("margin 0.002 -> 0.02: a wider one than was accepted"), verdict.note
    assert judge(now(base - 0.01, margin=0.001), line).outcome is Outcome.REGRESSED, "a narrower one needs no accepting"
    assert judge(now(base), line).outcome is Outcome.PASS, "the same margin"


def check_pairing():
    """The spread between examples is forty times the drop: only the pairs show it."""
    base = noisy(0.0, 1.0)
    assert judge(now(base - 0.025), then(base)).outcome is Outcome.REGRESSED, "compared as if unpaired"


def check_noise():
    base = noisy(0.9)
    verdict = judge(now(noisy(0.9, seed=1)), then(base))
    assert verdict.outcome is Outcome.INCONCLUSIVE, f"{verdict}"
    assert verdict.smallest_detectable > 0.002, f"{verdict}"


def check_seeds():
    base = {seed: noisy(0.9, seed=seed) for seed in range(5)}
    lines = {seed: then(values) for seed, values in base.items()}
    assert judge_seeds({s: now(v) for s, v in base.items()}, lines).outcome is Outcome.PASS, "identical"
    worse = {s: now(v - 0.05 - 0.001 * s) for s, v in base.items()}
    assert judge_seeds(worse, lines).outcome is Outcome.REGRESSED, "five seeds, all worse"
    few = {s: worse[s] for s in (0, 1)}
    assert judge_seeds(few, lines).outcome is Outcome.REGRESSED, "both collapsed"
    slightly = {s: now(base[s] - 0.01) for s in (0, 1)}
    assert judge_seeds(slightly, lines).outcome is Outcome.INCONCLUSIVE, "two seeds say nothing of a small drop"


CHECKS = (
    check_identical, check_a_drop, check_direction, check_margin, check_wider_margin, check_pairing, check_noise,
    check_seeds,
)  # fmt: skip
MUTANTS = {
    "unpaired": ("verdicts", lambda a, b, s, p: change_of_scores(a, b[::-1], s, p), check_pairing),
    "direction ignored": ("verdicts", lambda a, b, s, p: change_of_scores(a, b, -1, p), check_direction),
    "reversed": ("verdicts", lambda a, b, s, p: change_of_scores(b, a, s, p), check_a_drop),
    "identical not noticed": ("verdicts", lambda a, b, s, p: change_of_scores(a, b - 1, s, p), check_identical),
    "noise is a drop": ("verdicts", lambda a, b, s, p: change_of_scores(a, a - 0.05, s, p), check_noise),
    "seeds reversed": ("seeds", lambda a, b, s, p: change_of_scores(b, a, s, p), check_seeds),
}  # fmt: skip


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_scores_are_judged(check):
    check()


@pytest.mark.parametrize("name", MUTANTS)
def test_the_checks_bite(name, monkeypatch):
    where, mutant, check = MUTANTS[name]
    monkeypatch.setattr({"verdicts": verdicts, "seeds": seeds}[where], "change_of_scores", mutant)
    with pytest.raises(AssertionError):
        check()


def test_the_margin_check_bites(monkeypatch):
    monkeypatch.setattr(verdicts, "policy_of", lambda now, policy: policy)
    with pytest.raises(AssertionError):
        check_margin()


def test_the_check_of_wider_margins_bites(monkeypatch):
    monkeypatch.setattr(verdicts, "margin_of", lambda now: None)
    with pytest.raises(AssertionError):
        check_wider_margin()


def test_bits_and_scores_are_not_compared():
    bits = Measurement("c", "score", 0.5, "1", "higher", "paired", vector=pack([1, 0]))
    assert judge(bits, then([0.5, 0.5])).outcome is Outcome.INCOMPARABLE


def test_a_mean_that_is_not_of_its_scores_is_an_error():
    wrong = Measurement("c", "score", 0.7, "1", "higher", "paired", vector=pack_scores([0.5, 0.5]))
    assert judge(wrong, then([0.5, 0.5])).outcome is Outcome.ERROR
