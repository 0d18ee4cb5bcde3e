"""What the whole way through suspicion, confirmation and Holm does to invented runs of known truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pruning_bench.judging.acceptance import accept
from pruning_bench.judging.baseline import Baseline
from pruning_bench.judging.gate import confirm, judge_run, suspects
from pruning_bench.judging.policy import SIMULATED, Policy
from pruning_bench.records import CaseStatus, Environment, Measurement, Outcome, Run

CASES = tuple(f"c{i:02d}" for i in range(SIMULATED.cases))
MANY = tuple(f"c{i:04d}" for i in range(1200))
SPREAD, WITHIN = SIMULATED.spread, SIMULATED.within
POLICY = Policy()


def _measured(generator, processes, shift, cases=CASES):
    """Log ratios of all cases; `shift` is that of all, or an array of one for each."""
    shifts = np.broadcast_to(shift, len(cases))[:, None]
    samples = generator.normal(shifts, math.hypot(SPREAD, WITHIN), (len(cases), processes))
    return tuple(
        Measurement(
            case, "relative_time", math.exp(row.mean()), "1", "lower", "speed",
            samples=tuple(row.tolist()), errors=(WITHIN,) * processes,
        )
        for case, row in zip(cases, samples, strict=True)
    )  # fmt: skip


def _run(measurements):
    cases = tuple(CaseStatus(m.case_id, "ran", metrics=("relative_time",)) for m in measurements)
    return Run("r", "t", "ci", Environment({"cpu": "A"}), cases, measurements)


def simulate(runs, shift, *, per_baseline, seed, first_processes=1, always_confirm=False):
    """Verdicts by outcome, the stored spread of each case that is not REGRESSED, and how many runs failed."""
    generator = np.random.default_rng(seed)
    counts: dict[str, int] = {}
    missed, failed = [], 0
    for number in range(runs):
        if number % per_baseline == 0:
            baseline = accept(Baseline(), _run(_measured(generator, POLICY.min_processes, 0.0)), reason="first")
        report = judge_run(_run(_measured(generator, first_processes, shift)), baseline)
        hits = suspects(report)
        if hits:
            fresh = _measured(generator, POLICY.confirmation_processes, shift)
            report = confirm(report, [m for m in fresh if m.case_id in hits], baseline)
        failed += report.exit_status != 0
        lines = next(iter(baseline.times.values())).lines
        for verdict in report.verdicts:
            counts[verdict.outcome.value] = counts.get(verdict.outcome.value, 0) + 1
            if verdict.outcome is not Outcome.REGRESSED:
                missed.append(lines[verdict.case_id, "relative_time"].spread)
    return counts, missed, failed


def test_unchanged_code_fails_as_rarely_as_every_report_says():
    counts, _, failed = simulate(SIMULATED.runs, 0.0, per_baseline=10, seed=1)
    assert failed == SIMULATED.failed, f"{failed} of {SIMULATED.runs} runs failed, {SIMULATED} says otherwise: {counts}"
    assert counts["INCONCLUSIVE"] < 0.9 * 4000, f"nothing is ever decided: {counts}"


@pytest.mark.parametrize("skipped", ["confirmation", "spread"])
def test_unchanged_code_would_regress_without(skipped, monkeypatch):
    from pruning_bench.judging import gate, verdicts

    if skipped == "confirmation":
        monkeypatch.setattr(gate, "_confirmed", lambda v, *a: gate.finished(_as_regressed(v)))
    else:
        monkeypatch.setattr(verdicts, "process_difference", lambda now, then: _as_known(now, then))
        monkeypatch.setattr(verdicts, "speed_margin", lambda spread, policy: math.log1p(policy.speed_floor))
        monkeypatch.setattr(gate, "holm", list)
    counts, _, failed = simulate(SIMULATED.runs, 0.0, per_baseline=10, seed=1)
    assert failed > SIMULATED.failed, f"the simulation cannot see a judge without {skipped}: {counts}"


def _as_regressed(verdict):
    from dataclasses import replace

    return replace(verdict, outcome=Outcome.REGRESSED, suspect=False)


def _as_known(now, then):
    from pruning_bench.judging.statistics import Estimate

    return Estimate(now.centre - then.centre, 0.002)


def test_the_promised_slowdown_is_found():
    shift = math.log1p(POLICY.promised_slowdown)
    counts, missed, _ = simulate(100, shift, per_baseline=2, seed=2)
    total = sum(counts.values())
    assert counts["REGRESSED"] / total > 0.97, f"+15 % at a spread of 1.5 %: {counts}"
    promised = sum(spread <= POLICY.promised_spread for spread in missed)
    assert promised / total < 0.002, f"{promised} misses of {total} where the stored spread is at most 1.5 %"
    assert set(counts) <= {"REGRESSED", "INCONCLUSIVE"}, f"a slow-down that passes: {counts}"


def find_one_among_many(seed):
    """Outcomes of one case that became slower among very many that did not, and whether its stored spread is small."""
    generator = np.random.default_rng(seed)
    shift = np.zeros(len(MANY))
    shift[0] = math.log1p(POLICY.promised_slowdown)
    baseline = accept(Baseline(), _run(_measured(generator, POLICY.min_processes, 0.0, MANY)), reason="first")
    report = judge_run(_run(_measured(generator, 1, shift, MANY)), baseline)
    hits = suspects(report)
    fresh = [m for m in _measured(generator, POLICY.confirmation_processes, shift, MANY) if m.case_id in hits]
    report = confirm(report, fresh, baseline)
    (line,) = (line for line in next(iter(baseline.times.values())).lines.values() if line.case_id == MANY[0])
    others = sum(v.outcome is Outcome.REGRESSED and v.case_id != MANY[0] for v in report.verdicts)
    found = next(v.outcome for v in report.verdicts if v.case_id == MANY[0])
    return found, line.spread <= POLICY.promised_spread, others


def check_one_slowdown_among_many():
    found = [find_one_among_many(seed) for seed in range(30)]
    promised = [outcome for outcome, small, _ in found if small]
    missed = sum(outcome is not Outcome.REGRESSED for outcome in promised)
    assert len(promised) >= 12, f"{len(promised)} draws say something"
    assert missed == 0, f"+15 % among {len(MANY)} cases is missed in {missed} of {len(promised)} runs"
    false = sum(others for *_, others in found)
    assert false == 0, f"{false} unchanged cases are called REGRESSED"


@pytest.mark.slow
def test_one_slowdown_among_many_unchanged_cases_is_found():
    check_one_slowdown_among_many()


@pytest.mark.slow
def test_one_among_many_would_be_missed_if_everything_counted(monkeypatch):
    from pruning_bench.judging import gate

    monkeypatch.setattr(gate, "is_tested", lambda v: v.p is not None)
    with pytest.raises(AssertionError, match="is missed in"):
        check_one_slowdown_among_many()
