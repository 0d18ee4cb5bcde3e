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
SPREAD, WITHIN = SIMULATED.spread, SIMULATED.within
POLICY = Policy()


def _measured(generator, processes, shift):
    samples = generator.normal(shift, math.hypot(SPREAD, WITHIN), (len(CASES), processes))
    return tuple(
        Measurement(
            case, "relative_time", math.exp(row.mean()), "1", "lower", "speed",
            samples=tuple(row.tolist()), errors=(WITHIN,) * processes,
        )
        for case, row in zip(CASES, samples, strict=True)
    )  # fmt: skip


def _run(measurements):
    cases = tuple(CaseStatus(case, "ran", metrics=("relative_time",)) for case in CASES)
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
