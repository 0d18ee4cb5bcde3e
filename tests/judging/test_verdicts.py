"""Verdicts on one measurement: every outcome of each rule, and judges that must not get away with it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning_bench.errors import PruningBenchError
from pruning_bench.judging import verdicts
from pruning_bench.judging.baseline import BaselineLine
from pruning_bench.judging.policy import Policy
from pruning_bench.judging.statistics import mcnemar_midp
from pruning_bench.judging.vectors import pack
from pruning_bench.judging.verdicts import SEVERITY, Verdict, judge
from pruning_bench.records import Measurement, Outcome

N = 10_000
RIGHT = np.arange(N) % 10 != 0


def spoilt(lost=0, gained=0):
    """The vector RIGHT with examples flipped."""
    bits = RIGHT.copy()
    bits[np.flatnonzero(RIGHT)[:lost]] = False
    bits[np.flatnonzero(~RIGHT)[:gained]] = True
    return bits


def top1(bits=RIGHT, **fields):
    return Measurement(
        "case", "top1", float(np.mean(bits)), "1", "higher", "paired", **{"vector": pack(bits), **fields}
    )


def line_of(m, **fields):
    return BaselineLine(
        m.case_id, m.metric, m.value, m.unit, m.better, m.rule, m.fingerprint, vector=m.vector, **fields
    )


def speed(*changes, errors=(), better="lower"):
    samples = tuple(math.log1p(change) for change in changes)
    value = math.exp(sum(samples) / len(samples))
    return Measurement("case", "relative_time", value, "1", better, "speed", samples=samples, errors=errors)


def speed_line(spread=0.01, processes=5, within=0.0, better="lower"):
    return BaselineLine(
        "case", "relative_time", 1.0, "1", better, "speed", spread=spread, processes=processes, within=within
    )


def exact(value, better="lower"):
    return Measurement("case", "bytes", value, "B", better, "exact")


def expect(verdict, outcome, **fields):
    assert verdict.outcome is outcome, f"{verdict}, should be {outcome.value}"
    for name, value in fields.items():
        assert getattr(verdict, name) == value, f"{name}={getattr(verdict, name)!r}, should be {value!r} in {verdict}"


# the checks: each takes the judge, so that a mutant can be judged by it


def check_exact(judge):
    expect(judge(exact(10), line_of(exact(10))), Outcome.PASS, delta=0, fails=False)
    expect(judge(exact(10.000001), line_of(exact(10))), Outcome.REGRESSED, fails=True)
    expect(judge(exact(9), line_of(exact(10))), Outcome.IMPROVED, delta=-1, fails=False)
    expect(judge(exact(9, "higher"), line_of(exact(10, "higher"))), Outcome.REGRESSED)
    expect(judge(exact(11, "higher"), line_of(exact(10, "higher"))), Outcome.IMPROVED)
    expect(judge(exact(9, "neither"), line_of(exact(10, "neither"))), Outcome.REGRESSED)


def check_identical_predictions_pass(judge):
    verdict = judge(top1(), line_of(top1()))
    expect(verdict, Outcome.PASS, interval=(0.0, 0.0), p=1.0, n=N)
    assert verdict.smallest_detectable == pytest.approx(0.0031), f"{verdict}"


def check_paired_direction(judge):
    verdict = judge(top1(spoilt(lost=100)), line_of(top1()))
    expect(verdict, Outcome.REGRESSED, fails=True)
    assert verdict.delta == pytest.approx(-0.01), f"{verdict}"
    assert verdict.interval[0] < -0.01 < verdict.interval[1] < -0.002, f"{verdict}"
    assert verdict.note == "lost 100 (1, 2, 3, 4, 5, ...), gained 0", verdict.note
    expect(judge(top1(spoilt(gained=100)), line_of(top1())), Outcome.IMPROVED, fails=False)


def check_accuracy_needs_the_margin(judge):
    """25 lost and none gained is significant at any p, and still no more than a quarter of a point."""
    expect(judge(top1(spoilt(lost=25)), line_of(top1())), Outcome.INCONCLUSIVE, fails=False)
    expect(judge(top1(spoilt(lost=8)), line_of(top1())), Outcome.PASS)


def check_accuracy_needs_the_test(judge):
    """A drop whose bound is beyond the margin is no regression while its p-value is not small enough."""
    now, then = top1(spoilt(100, 40)), line_of(top1())
    expect(judge(now, then, Policy(accuracy_p=1e-4)), Outcome.REGRESSED)
    expect(judge(now, then, Policy(accuracy_p=1e-9)), Outcome.INCONCLUSIVE)


def check_pass_is_proved(judge):
    """As many lost as gained, but so many that a drop of the margin is not excluded."""
    expect(judge(top1(spoilt(60, 60)), line_of(top1())), Outcome.INCONCLUSIVE)
    expect(judge(top1(spoilt(10, 10)), line_of(top1())), Outcome.PASS)


def check_fingerprint(judge):
    for m in (top1(), exact(10)):
        now = replace(m, fingerprint="other")
        expect(judge(now, line_of(m)), Outcome.INCOMPARABLE, fails=True)
    expect(judge(replace(speed(0.5), fingerprint="other"), speed_line()), Outcome.INCOMPARABLE, fails=False)


def check_speed_outcomes(judge):
    line = speed_line(spread=0.002)
    expect(judge(speed(0.0), line), Outcome.PASS, suspect=False)
    expect(judge(speed(0.15), line), Outcome.REGRESSED, suspect=True)
    expect(judge(speed(-0.15), line), Outcome.IMPROVED, suspect=False)
    expect(judge(speed(0.029), line), Outcome.INCONCLUSIVE)
    higher = speed_line(spread=0.002, better="higher")
    expect(judge(speed(0.15, better="higher"), higher), Outcome.IMPROVED, suspect=False)
    expect(judge(speed(-0.15, better="higher"), higher), Outcome.REGRESSED, suspect=True)


def check_speed_floor(judge):
    """2 % slower, measured without any noise, is below the floor; 4 % is above."""
    expect(judge(speed(0.02), speed_line(spread=0.0)), Outcome.PASS)
    expect(judge(speed(0.04), speed_line(spread=0.0)), Outcome.REGRESSED)


def check_spread_widens_the_margin(judge):
    """Ten processes of each leave little doubt about 7 %, but such a case moves 7.5 % by itself."""
    line = speed_line(spread=0.025, processes=30)
    seven = speed(*(0.07 + 0.025 * math.sin(i) for i in range(30)))
    verdict = judge(seven, line)
    expect(verdict, Outcome.INCONCLUSIVE, suspect=False)
    assert verdict.margin == pytest.approx(math.expm1(0.075)), f"{verdict}"


def check_the_bound_counts(judge):
    """12 % is beyond the margin of 6 %, but one process of such a case does not prove it."""
    expect(judge(speed(0.12), speed_line(spread=0.02)), Outcome.INCONCLUSIVE, suspect=True)


def check_within_errors_count(judge):
    """A noisy process says less, whatever the baseline's spread was."""
    expect(judge(speed(0.06, errors=(0.001,)), speed_line(spread=0.002)), Outcome.REGRESSED)
    expect(judge(speed(0.06, errors=(0.03,)), speed_line(spread=0.002)), Outcome.INCONCLUSIVE)


def check_a_cut_sample_is_not_judged(judge):
    """Whatever its interval says: from few pairs it is too narrow."""
    for change in (0.5, 0.0, -0.5):
        cut = replace(speed(change), detail={"pairs": 59, "stopped": "cut"})
        verdict = judge(cut, speed_line(spread=0.002))
        expect(verdict, Outcome.INCONCLUSIVE, suspect=False, fails=False, p=None, interval=None)
        assert "59 pairs" in verdict.note, verdict.note
        assert "60" in verdict.note, verdict.note
    whole = replace(speed(0.5), detail={"pairs": 60})
    expect(judge(whole, speed_line(spread=0.002)), Outcome.REGRESSED)


def check_a_cut_sample_counts_when_it_is_slower_by_a_factor(judge):
    line = speed_line(spread=0.002)
    few = {"detail": {"pairs": 9}}
    expect(judge(replace(speed(0.6), **few), line), Outcome.INCONCLUSIVE, suspect=False)
    expect(judge(replace(speed(-0.9), **few), line), Outcome.INCONCLUSIVE, suspect=False)
    expect(judge(replace(speed(5.0), **few), line), Outcome.REGRESSED, suspect=True)


def check_drift_widens(judge):
    """What a busier machine may do to a ratio is neither a regression nor a gain; more than that still is."""
    line = speed_line(spread=0.002)
    for drift in (0.14, -0.14):
        for change in (0.07, -0.07):
            verdict = judge(speed(change), line, drift=drift)
            expect(verdict, Outcome.INCONCLUSIVE, suspect=change > 0)
            assert "than at the baseline" in verdict.note, verdict.note
        expect(judge(speed(0.0), line, drift=drift), Outcome.INCONCLUSIVE)
        expect(judge(speed(0.5), line, drift=drift), Outcome.REGRESSED)
    expect(judge(speed(0.15), line, drift=0.02), Outcome.REGRESSED, suspect=True)
    expect(judge(speed(0.0), line, drift=0.005), Outcome.PASS, note="")


def check_canary(judge):
    now = Measurement("case", "anchor_latency", 1.0, "s", "lower", "canary")
    line = line_of(now)
    expect(judge(replace(now, value=1.29), line), Outcome.PASS, suspect=False)
    expect(judge(replace(now, value=1.31), line), Outcome.REGRESSED, suspect=True)
    expect(judge(replace(now, value=0.5), line), Outcome.PASS)


def check_canary_on_a_slower_machine(judge):
    """What the whole machine is slower is no fault of the dense model; a faster machine excuses nothing."""
    now = Measurement("case", "anchor_latency", 1.6, "s", "lower", "canary")
    line = line_of(replace(now, value=1.0))
    verdict = judge(now, line, machine=math.log(1.5))
    expect(verdict, Outcome.INCONCLUSIVE, suspect=False, note="beyond a machine that is itself 50% slower")
    assert math.isclose(verdict.delta, 1.6 / 1.5 - 1)
    expect(judge(now, line, machine=math.log(1.2)), Outcome.REGRESSED, suspect=True)
    expect(judge(now, line, machine=math.log(0.5)), Outcome.REGRESSED, suspect=True, note="")
    expect(judge(replace(now, value=1.29), line, machine=math.log(0.5)), Outcome.PASS)
    expect(judge(replace(now, value=1.29), line, machine=math.log(1.5)), Outcome.PASS)


def check_controls(judge):
    control = Measurement("case", "twin", 1.0, "1", "neither", "control", detail={"holds": False, "why": "+4 %"})
    expect(judge(control, None), Outcome.INVALID, note="+4 %", fails=True)
    expect(judge(replace(control, detail={"holds": True}), None), Outcome.PASS)
    expect(judge(replace(control, detail={}), None), Outcome.INVALID)


def check_no_baseline_is_new(judge):
    for m in (top1(), exact(10), speed(0.0)):
        expect(judge(m, None), Outcome.NEW, fails=False)


def check_broken_records_do_not_pass(judge):
    expect(judge(replace(top1(), value=0.5), line_of(top1())), Outcome.ERROR, fails=True)
    expect(judge(replace(top1(), vector="3:x"), line_of(top1())), Outcome.ERROR, fails=True)
    expect(judge(replace(speed(0.0), samples=()), speed_line()), Outcome.ERROR, fails=True)
    expect(judge(replace(top1(), vector=""), line_of(top1())), Outcome.INCOMPARABLE, fails=True)
    expect(judge(top1(RIGHT[:-10]), line_of(top1())), Outcome.INCOMPARABLE, fails=True)


CHECKS = [value for name, value in sorted(globals().items()) if name.startswith("check_")]


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_judge(check):
    check(judge)


# mutants: a change of one part of the judge -> the check that must notice


def _patched(name, replacement):
    def mutant(patch):
        patch.setattr(verdicts, name, replacement)
        return judge

    return mutant


def _wrapped(change):
    return lambda patch: lambda now, then, policy=None, **how: change(now, then, **how)


def _rule(name, change):
    def mutant(patch):
        real = verdicts._RULES[name]
        patch.setitem(verdicts._RULES, name, lambda *given: change(real, *given))
        return judge

    return mutant


def _point_estimate(real, v, now, then, policy, drift):
    verdict = real(v, now, then, policy, drift)
    return replace(verdict, outcome=Outcome.REGRESSED) if verdict.suspect else verdict


def _no_test(real, v, now, then, policy):
    return real(v, now, then, replace(policy, accuracy_p=0.999))


MUTANTS = {
    "spread ignored": (_patched("speed_margin", lambda s, p: math.log1p(p.speed_floor)),
        check_spread_widens_the_margin),
    "no floor": (_patched("speed_margin", lambda s, p: 3 * s), check_speed_floor),
    "margin dropped": (_patched("speed_margin", lambda s, p: 0.0), check_speed_floor),
    "point estimate": (_rule("speed", _point_estimate), check_the_bound_counts),
    "direction ignored": (_patched("direction", lambda better: 1), check_speed_outcomes),
    "errors inside ignored": (
        _rule("speed", lambda real, v, now, then, p, drift: real(v, replace(now, errors=()), then, p, drift)),
        check_within_errors_count,
    ),
    "a cut sample is judged": (_patched("too_few_pairs", lambda now, policy: ""), check_a_cut_sample_is_not_judged),
    "no sample is judged": (_patched("too_few_pairs", lambda now, policy: "59 pairs, 60"),
        check_a_cut_sample_is_not_judged),
    "test reversed": (_patched("mcnemar_midp", lambda a, b: mcnemar_midp(b, a)), check_paired_direction),
    "interval reversed": (
        _patched("drop_interval", lambda a, b, n, c: verdicts.signed((0.0, 0.0), "lower")),
        check_paired_direction,
    ),
    "accuracy margin dropped": (
        _rule("paired", lambda real, v, now, then, p: real(v, now, then, replace(p, accuracy_margin=1e-9))),
        check_accuracy_needs_the_margin,
    ),
    "accuracy test dropped": (_rule("paired", _no_test), check_accuracy_needs_the_test),
    "no evidence passes": (
        _patched("drop_outcome", lambda drop, p, m, policy: Outcome.REGRESSED if p < 0.01 else Outcome.PASS),
        check_pass_is_proved,
    ),
    "relative tolerance on bytes": (
        _rule("exact", lambda real, v, now, then, p: real(v, replace(now, value=round(now.value, 3)), then, p)),
        check_exact,
    ),
    "better ignored on bytes": (_patched("direction", lambda better: 1), check_exact),
    "fingerprint ignored": (_patched("comparable", lambda now, then: ""), check_fingerprint),
    "incomparable never fails": (_patched("PORTABLE", ()), check_fingerprint),
    "cut samples never count": (
        _rule("speed", lambda real, v, now, then, p, drift: replace(
            real(v, now, then, p, drift), **({"outcome": Outcome.INCONCLUSIVE} if now.detail else {}))),
        check_a_cut_sample_counts_when_it_is_slower_by_a_factor,
    ),
    "drift ignored": (
        _wrapped(lambda now, then, drift: judge(now, then)), check_drift_widens,
    ),
    "drift excuses everything": (
        _wrapped(lambda now, then, drift: judge(now, then, drift=9 * drift)), check_drift_widens,
    ),
    "canary blind to the machine": (
        _rule("canary", lambda real, v, now, then, p, machine: real(v, now, then, p, 0.0)),
        check_canary_on_a_slower_machine,
    ),
    "canary held to a faster machine": (
        _rule("canary", lambda real, v, now, then, p, machine: real(v, now, then, p, abs(machine))),
        check_canary_on_a_slower_machine,
    ),
    "canary dropped": (_rule("canary", lambda real, v, *a: replace(v, outcome=Outcome.PASS)), check_canary),
    "a silent control holds": (
        _wrapped(lambda now, then: judge(replace(now, detail={"holds": True, **now.detail}), then)),
        check_controls,
    ),
    "new is a pass": (
        _wrapped(lambda now, then: judge(now, then) if then else Verdict("c", "m", Outcome.PASS)),
        check_no_baseline_is_new,
    ),
    "a crash passes": (_patched("finished", lambda v: v), check_broken_records_do_not_pass),
    "value not checked": (
        _wrapped(lambda now, then: judge(replace(now, value=then.value) if then else now, then)),
        check_broken_records_do_not_pass,
    ),
    "identical is inconclusive": (
        _wrapped(lambda now, then: replace(judge(now, then), outcome=Outcome.INCONCLUSIVE)),
        check_identical_predictions_pass,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_judge_bites(name, monkeypatch):
    mutant, check = MUTANTS[name]
    with pytest.raises(AssertionError):
        check(mutant(monkeypatch))


def test_every_check_has_a_mutant():
    assert {check for _, check in MUTANTS.values()} == set(CHECKS), "a check that nothing proves to bite"


@given(lost=st.integers(0, 400), gained=st.integers(0, 400), better=st.sampled_from([1, 5]), churn=st.integers(0, 5))
def test_paired_verdicts_agree_with_their_numbers(lost, gained, better, churn):
    policy = Policy(accuracy_margin=0.001 * better)
    verdict = judge(top1(spoilt(lost, gained)), line_of(top1()), policy)
    low, high = verdict.interval
    assert low <= verdict.delta <= high, f"the interval does not hold the difference: {verdict}"
    if verdict.outcome is Outcome.REGRESSED:
        assert -verdict.delta >= verdict.smallest_detectable - 1e-9, f"smaller than it could have seen: {verdict}"
        assert high < -verdict.margin, f"the bound is not beyond the margin: {verdict}"
    if verdict.outcome is Outcome.PASS:
        assert low >= -verdict.margin, f"the bound is beyond the margin: {verdict}"


@given(change=st.floats(-0.5, 1.0), spread=st.floats(0, 0.05), count=st.integers(1, 5))
def test_speed_verdicts_agree_with_their_numbers(change, spread, count):
    verdict = judge(speed(*[change] * count), speed_line(spread))
    low, high = verdict.interval
    assert low <= verdict.delta + 1e-12, f"{verdict}"
    assert high >= verdict.delta - 1e-12, f"{verdict}"
    assert verdict.smallest_detectable >= verdict.margin >= 0.03 - 1e-12, f"{verdict}"
    proved = (low > verdict.margin, high <= verdict.margin)
    told = (verdict.outcome is Outcome.REGRESSED, verdict.outcome in (Outcome.PASS, Outcome.IMPROVED))
    assert told == proved, f"beyond, within: {proved}, but {verdict}"


def test_worse_is_never_judged_milder():
    order = [Outcome.IMPROVED, Outcome.PASS, Outcome.INCONCLUSIVE, Outcome.REGRESSED]
    for spread in (0.0, 0.005, 0.02):
        ranks = [order.index(judge(speed(c), speed_line(spread)).outcome) for c in np.linspace(-0.4, 0.6, 101)]
        assert ranks == sorted(ranks), f"{spread=}: {ranks}"


def test_what_is_only_shown_is_refused():
    with pytest.raises(PruningBenchError, match="rule 'shown'"):
        judge(Measurement("case", "loss", 1.0, "1", "lower", "shown"), None)


def test_every_outcome_has_a_severity():
    assert set(SEVERITY) == set(Outcome), "an outcome without severity"
    assert len(SEVERITY) == len(Outcome), "an outcome twice"
