"""A whole run: what is missing, what fails, what has to be confirmed, and the exit status."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning_bench.judging import gate
from pruning_bench.judging.acceptance import accept
from pruning_bench.judging.baseline import Baseline
from pruning_bench.judging.gate import confirm, judge_run, suspects, undecided
from pruning_bench.judging.policy import Policy
from pruning_bench.judging.vectors import pack
from pruning_bench.records import CaseStatus, Environment, Measurement, Outcome, Run

HERE = Environment({"cpu": "A", "torch": "2.14.1"})
THERE = Environment({"cpu": "B", "torch": "2.14.1"})
A, B, C = "m-d/dense/eager", "m-d/magnitude:0.9/eager", "m-d/static:w8a8/onnxruntime"
DUE = ("top1", "bytes", "relative_time")
TIMES, JUDGED_TIMES = ("relative_time", "anchor_latency", "yardstick"), ("relative_time", "anchor_latency")
N = 2000


def vector(lost=0):
    bits = np.arange(N) % 10 != 0
    bits[np.flatnonzero(bits)[:lost]] = False
    return bits


def measured(case, *, lost=0, size=10.0, slow=0.0, processes=1, anchor=1.0, yardstick=1.0):
    bits = vector(lost)
    samples = tuple(math.log1p(slow) + 0.001 * (i - (processes - 1) / 2) for i in range(processes))
    return (
        Measurement(case, "top1", float(bits.mean()), "1", "higher", "paired", vector=pack(bits)),
        Measurement(case, "bytes", size, "B", "lower", "exact"),
        Measurement(case, "loss", 0.3, "1", "lower", "shown"),
        Measurement(case, "twin", 1.0, "1", "neither", "control", detail={"holds": True}),
        Measurement(case, "anchor_latency", anchor, "s", "lower", "canary"),
        Measurement(case, "yardstick", yardstick, "s", "lower", "machine"),
        Measurement(case, "relative_time", math.exp(sum(samples) / processes), "1", "lower", "speed", samples=samples),
    )


def make_run(measurements=None, states=None, *, environment=HERE, profile="ci", **fields):
    measurements = measurements if measurements is not None else [m for c in (A, B, C) for m in measured(c)]
    cases = tuple(CaseStatus(c, "ran", metrics=DUE) for c in (A, B, C))
    if states:
        cases = tuple(states.get(case.case_id, case) for case in cases if states.get(case.case_id, case) is not None)
    return Run("r", "t", profile, environment, cases, tuple(measurements), **fields)


BASELINE = accept(Baseline(), make_run([m for c in (A, B, C) for m in measured(c, processes=5)]), reason="first")


def without(case, *metrics):
    return [m for c in (A, B, C) for m in measured(c) if not (c == case and (not metrics or m.metric in metrics))]


def changed(case, **fields):
    return [m for c in (A, B, C) for m in measured(c, **(fields if c == case else {}))]


def outcomes(report, *hide):
    """(case, metric, outcome) of all verdicts but PASS and those of the outcomes hidden."""
    hidden = {Outcome.PASS, *hide}
    return {(v.case_id, v.metric, v.outcome.value) for v in report.verdicts if v.outcome not in hidden}


def expect(report, exit_status, *expected):
    assert outcomes(report) == set(expected), f"{outcomes(report)}, should be {set(expected)}"
    assert report.exit_status == exit_status, f"exit {report.exit_status}, should be {exit_status}: {report.counts}"


def check_unchanged_passes(judge_run, confirm):
    report = judge_run(make_run(), BASELINE)
    expect(report, 0)
    assert report.counts == {Outcome.PASS: 15}, f"{report.counts}"
    assert suspects(report) == (), f"{suspects(report)}"


def check_missing(judge_run, confirm):
    gone = make_run(without(B), {B: None})
    expect(judge_run(gone, BASELINE), 1, (B, "case", "MISSING"))
    silent = make_run(without(B, "relative_time"))
    expect(judge_run(silent, BASELINE), 1, (B, "relative_time", "MISSING"))
    nothing = make_run(without(B), {B: CaseStatus(B, "ran")})
    expect(judge_run(nothing, BASELINE), 1, (B, "case", "MISSING"))


def check_no_false_missing(judge_run, confirm):
    for state in ("deselected", "not_run"):
        expect(judge_run(make_run(without(B), {B: CaseStatus(B, state)}), BASELINE), 0)
    only_quality = make_run(without(B, "relative_time"), {B: CaseStatus(B, "ran", metrics=("top1",))})
    expect(judge_run(only_quality, BASELINE), 0)
    expect(judge_run(make_run(without(B), {B: None}, profile="smoke"), BASELINE), 0)


def check_new_is_no_failure(judge_run, confirm):
    report = judge_run(make_run(), Baseline())
    assert report.exit_status == 0, f"{report.counts}"
    assert set(report.counts) == {Outcome.NEW, Outcome.PASS}, f"{report.counts}"
    assert report.new_times == 3, f"{report.new_times=}"


def check_another_machine(judge_run, confirm):
    """Times are INCOMPARABLE and fail nothing; portable metrics are judged all the same."""
    run = make_run(changed(A, size=11.0), environment=THERE)
    report = judge_run(run, BASELINE)
    times = [(c, m, "INCOMPARABLE") for c in (A, B, C) for m in JUDGED_TIMES]
    expect(report, 1, (A, "bytes", "REGRESSED"), *times)
    assert [v.fails for v in report.verdicts if v.outcome is Outcome.INCOMPARABLE] == [False] * 6, "a time fails"
    notes = {v.note for v in report.verdicts if v.outcome is Outcome.INCOMPARABLE}
    assert notes == {"measured elsewhere: cpu A -> B"}, f"{notes}"
    expect(judge_run(make_run(environment=THERE), BASELINE), 0, *times)


def check_changed_checkpoint(judge_run, confirm):
    run = make_run([replace(m, fingerprint="new") if m.metric == "top1" else m for m in make_run().measurements])
    expect(judge_run(run, BASELINE), 1, *((c, "top1", "INCOMPARABLE") for c in (A, B, C)))


def check_unavailable(judge_run, confirm):
    run = make_run(without(C), {C: CaseStatus(C, "skipped", "not installed: pip install onnxruntime")})
    report = judge_run(run, BASELINE)
    expect(report, 0, (C, "case", "UNAVAILABLE"))
    assert report.verdicts[0].note == "not installed: pip install onnxruntime", f"{report.verdicts[0]}"
    expect(judge_run(run, BASELINE, require=["onnxruntime"]), 1, (C, "case", "UNAVAILABLE"))
    expect(judge_run(run, BASELINE, require=["eager"]), 0, (C, "case", "UNAVAILABLE"))
    left_out = make_run(without(C), {C: CaseStatus(C, "deselected")})
    expect(judge_run(left_out, BASELINE), 0)
    expect(judge_run(left_out, BASELINE, require=["eager"]), 0)
    expect(judge_run(left_out, BASELINE, require=["onnxruntime"]), 1, (C, "case", "UNAVAILABLE"))


def check_error(judge_run, confirm):
    run = make_run(without(B), {B: CaseStatus(B, "error", "ValueError: boom")})
    expect(judge_run(run, BASELINE), 1, (B, "case", "ERROR"))


def check_a_crash_hides_nothing(judge_run, confirm):
    """What one test crashed in, was skipped or not reached says nothing of those that ran to their end."""
    for state, *more in (("error", (B, "case", "ERROR")), ("skipped", (B, "case", "UNAVAILABLE")), ("not_run",)):
        run = make_run(without(B), {B: CaseStatus(B, state, "why", metrics=("top1",))})
        expect(judge_run(run, BASELINE), 1, (B, "top1", "MISSING"), *more)


def check_a_metric_nobody_measures_is_missing(judge_run, confirm):
    gone = make_run(without(B, *TIMES))
    states = [replace(c, whole=True, metrics=("top1", "bytes")) for c in gone.cases]
    gone = replace(gone, cases=tuple(states))
    times = [(B, metric, "MISSING") for metric in TIMES]
    expect(judge_run(gone, BASELINE), 1, *times)
    expect(judge_run(replace(gone, environment=THERE), Baseline(BASELINE.portable)), 0, *(
        (c, m, "NEW") for c in (A, C) for m in JUDGED_TIMES
    ))  # fmt: skip
    expect(judge_run(replace(gone, profile="smoke"), BASELINE), 0)
    part = replace(gone, cases=tuple(replace(state, whole=False) for state in states))
    expect(judge_run(part, BASELINE), 0)
    nothing = replace(gone, measurements=tuple(without(B)))
    nothing = replace(nothing, cases=tuple(replace(s, metrics=()) if s.case_id == B else s for s in states))
    expect(judge_run(nothing, BASELINE), 1, *times, (B, "top1", "MISSING"), (B, "bytes", "MISSING"))


def check_invalid_beats(judge_run, confirm):
    bad = Measurement(A, "slowed_twin", 1.0, "1", "neither", "control", detail={"holds": False, "why": "not seen"})
    report = judge_run(make_run([*changed(B, size=11.0), bad]), BASELINE)
    expect(report, 6, (A, "slowed_twin", "INVALID"), (B, "bytes", "REGRESSED"))
    assert report.verdicts[0].outcome is Outcome.INVALID, "not the first"


def check_interrupted(judge_run, confirm):
    report = judge_run(make_run([], interrupted=True), BASELINE)
    assert (report.judged, report.verdicts, report.exit_status) == (False, (), 2), f"{report}"


def check_a_hit_has_to_be_confirmed(judge_run, confirm):
    first = judge_run(make_run(changed(B, slow=0.2)), BASELINE)
    expect(first, 0, (B, "relative_time", "INCONCLUSIVE"))
    assert suspects(first) == (B,), f"{suspects(first)}"
    again = confirm(first, measured(B, slow=0.2, processes=3), BASELINE)
    expect(again, 1, (B, "relative_time", "REGRESSED"))
    verdict = again.failing[0]
    assert verdict.note == "confirmed in 3 fresh processes", verdict.note
    assert suspects(again) == (), f"{suspects(again)}"
    apart = confirm(first, measured(B, slow=0.2) * 3, BASELINE)
    expect(apart, 1, (B, "relative_time", "REGRESSED"))


def check_only_fresh_samples_confirm(judge_run, confirm):
    first = judge_run(make_run(changed(B, slow=2.0)), BASELINE)
    cleared = confirm(first, measured(B, slow=0.0, processes=3), BASELINE)
    expect(cleared, 0)
    [verdict] = [v for v in cleared.verdicts if v.case_id == B and v.metric == "relative_time"]
    assert (verdict.n, verdict.note) == (3, "a first hit was not confirmed in fresh processes"), f"{verdict}"
    few = confirm(first, measured(B, slow=2.0, processes=2), BASELINE)
    expect(few, 0, (B, "relative_time", "INCONCLUSIVE"))
    nobody = confirm(first, measured(A, slow=2.0, processes=3), BASELINE)
    expect(nobody, 0, (B, "relative_time", "INCONCLUSIVE"))
    faster = confirm(first, measured(B, slow=-0.3, processes=3), BASELINE)
    expect(faster, 0, (B, "relative_time", "INCONCLUSIVE"))


def check_the_machines_state_counts(judge_run, confirm):
    """The anchor's own time says how far a ratio can be compared; of the fresh processes theirs counts."""
    busy = judge_run(make_run(changed(B, slow=0.15, anchor=1.25)), BASELINE)
    still = confirm(busy, measured(B, slow=0.15, processes=3, anchor=1.25), BASELINE)
    expect(still, 0, (B, "relative_time", "INCONCLUSIVE"))
    expect(confirm(busy, measured(B, slow=0.15, processes=3), BASELINE), 1, (B, "relative_time", "REGRESSED"))
    expect(judge_run(make_run(changed(B, slow=-0.15, anchor=1.25)), BASELINE), 0, (B, "relative_time", "INCONCLUSIVE"))
    expect(judge_run(make_run(changed(B, slow=-0.15)), BASELINE), 0, (B, "relative_time", "IMPROVED"))


def check_canary_is_confirmed(judge_run, confirm):
    first = judge_run(make_run(changed(B, anchor=1.5)), BASELINE)
    drifted = (B, "relative_time", "INCONCLUSIVE")
    expect(first, 0, (B, "anchor_latency", "INCONCLUSIVE"), drifted)
    expect(confirm(first, measured(B, anchor=1.5), BASELINE), 1, (B, "anchor_latency", "REGRESSED"), drifted)
    fresh = (*measured(B, anchor=1.1), *measured(B, anchor=1.9))
    expect(confirm(first, fresh, BASELINE), 0, drifted)


def check_a_slower_machine_is_no_regression(judge_run, confirm):
    """The best yardstick of the processes counts, at first and in the fresh ones; without a line of it, or with another
    fingerprint, nothing is excused.
    """
    drifted = (B, "relative_time", "INCONCLUSIVE")
    excused = (B, "anchor_latency", "INCONCLUSIVE")
    slower = make_run(changed(B, anchor=1.6, yardstick=1.5))
    report = judge_run(slower, BASELINE)
    expect(report, 0, drifted, excused)
    assert not suspects(report), "a slower machine need not be measured again"
    other = [replace(m, fingerprint="other work") if m.rule == "machine" else m for m in slower.measurements]
    assert suspects(judge_run(replace(slower, measurements=tuple(other)), BASELINE)) == (B,), (
        "another yardstick excuses"
    )
    (times,) = BASELINE.times.values()
    older = replace(times, lines={key: line for key, line in times.lines.items() if line.rule != "machine"})
    older = replace(BASELINE, times={HERE.key: older})
    assert suspects(judge_run(slower, older)) == (B,), "a baseline without a yardstick excuses"
    first = judge_run(make_run(changed(B, anchor=1.6)), BASELINE)
    expect(confirm(first, measured(B, anchor=1.6, yardstick=1.5), BASELINE), 0, drifted, excused)
    fresh = (*measured(B, anchor=1.6, yardstick=1.5), *measured(B, anchor=1.55))
    expect(confirm(first, fresh, BASELINE), 1, (B, "anchor_latency", "REGRESSED"), drifted)
    other = (C, "anchor_latency", "INCONCLUSIVE")
    expect(
        judge_run(make_run(changed(C, anchor=1.6, yardstick=1.0)), BASELINE),
        0,
        other,
        (C, "relative_time", "INCONCLUSIVE"),
    )


def check_fresh_controls_count(judge_run, confirm):
    first = judge_run(make_run(changed(B, slow=0.2)), BASELINE)
    bad = Measurement(B, "twin", 1.0, "1", "neither", "control", detail={"holds": False})
    again = confirm(first, (*measured(B, slow=0.2, processes=3), bad), BASELINE)
    assert again.exit_status == 6, f"{again.counts}"


def _many(lost_first, lost_others, cases, profile="ci"):
    """A run of accuracies: the first loses so many examples, each of the others so many."""
    states = tuple(CaseStatus(c, "ran") for c in cases)
    lost = [lost_first, *[lost_others] * (len(cases) - 1)]
    tops = (
        next(m for m in measured(c, lost=count) if m.metric == "top1") for c, count in zip(cases, lost, strict=True)
    )
    return Run("r", "t", profile, HERE, states, tuple(tops))


MANY = [f"m-d/dense/r{i}" for i in range(60)]
STRICT = Policy(accuracy_margin=1e-6)


def check_holm(judge_run, confirm):
    """One of very many changed accuracies at p = .002 is chance; the same alone is a regression."""
    baseline = accept(Baseline(), _many(0, 0, MANY), reason="first")
    alone = judge_run(_many(9, 0, MANY[:1], profile="other"), baseline, STRICT)
    expect(alone, 1, (MANY[0], "top1", "REGRESSED"))
    open_ = [(case, "top1", "INCONCLUSIVE") for case in MANY]
    among = judge_run(_many(9, 1, MANY), baseline, STRICT)
    expect(among, 0, *open_)
    notes = [v.note for v in among.verdicts if v.case_id == MANY[0]]
    assert "Holm's correction over 60 metrics" in notes[0], notes
    expect(judge_run(_many(40, 1, MANY), baseline, STRICT), 1, (MANY[0], "top1", "REGRESSED"), *open_[1:])


def check_what_did_not_change_hides_nothing(judge_run, confirm):
    """However many accuracies are the same and however many speeds nobody suspects, a loss is found as if alone."""
    baseline = accept(Baseline(), _many(0, 0, MANY), reason="first")
    report = judge_run(_many(9, 0, MANY), baseline, STRICT)
    expect(report, 1, (MANY[0], "top1", "REGRESSED"))
    assert report.tested == 1, f"{report.tested} tested"
    assert judge_run(make_run(), BASELINE).tested == 0, "speeds that are no suspects count"
    first = judge_run(make_run(changed(B, slow=0.2)), BASELINE)
    assert first.tested == 0, "a suspicion counts before it is looked into"
    assert confirm(first, measured(B, slow=0.2, processes=3), BASELINE).tested == 1, "a confirmed hit does not count"


def check_seeds_are_judged_together(judge_run, confirm):
    cases = ["m-d/finetune:1/eager", "m-d/finetune:1/eager-s1"]
    states = tuple(CaseStatus(c, "ran", trains=True) for c in cases)
    tops = [m for c in cases for m in measured(c) if m.metric == "top1"]
    run = Run("r", "t", "ci", HERE, states, tuple(tops))
    baseline = accept(Baseline(), run, reason="first")
    expect(judge_run(run, baseline), 0)
    worse = [m for c in cases for m in measured(c, lost=20) if m.metric == "top1"]
    report = judge_run(replace(run, measurements=tuple(worse)), baseline)
    expect(report, 0, (cases[0], "top1", "INCONCLUSIVE"))
    assert "2 common seeds, needs 5" in report.verdicts[0].note, report.verdicts[0].note


CHECKS = [value for name, value in sorted(globals().items()) if name.startswith("check_")]


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_gate(check):
    check(judge_run, confirm)


def _patched(name, replacement, where=gate):
    def mutant(patch):
        patch.setattr(where, name, replacement)
        return judge_run, confirm

    return mutant


def _run_wrapped(change):
    return lambda patch: (lambda run, *a, **k: change(judge_run, run, *a, **k), confirm)


def _confirm_wrapped(change):
    return lambda patch: (judge_run, lambda report, fresh, baseline: change(report, tuple(fresh), baseline))


def _first_samples_too(report, fresh, baseline):
    old = [
        Measurement(v.case_id, v.metric, v.now, v.unit, v.better, v.rule, samples=(math.log(v.now),) * 20)
        for v in report.verdicts
        if v.suspect
    ]
    return confirm(report, (*fresh, *old), baseline)


def _canary_last(report, fresh, baseline):
    last = [m for m in fresh if m.rule == "canary"][-1:]
    return confirm(report, [*last, *(m for m in fresh if m.rule != "canary")], baseline)


REAL_MISSING, REAL_STATES, REAL_STATE = gate._missing, gate._of_states, gate._state


def _missing_but_deselected(run, baseline):
    ran = tuple(replace(c, state="ran") if c.state in ("deselected", "not_run") else c for c in run.cases)
    return REAL_MISSING(replace(run, cases=ran), baseline)


def _whole_grid_of_baseline(run, baseline):
    absent = {key[0] for key in baseline.portable} - {c.case_id for c in run.cases}
    return [*REAL_MISSING(run, baseline), *(gate._absent(c, "case", "") for c in absent)]


MUTANTS = {
    "missing ignored": (_patched("_missing", lambda run, baseline: []), check_missing),
    "deselected is missing": (_patched("_missing", _missing_but_deselected), check_no_false_missing),
    "other profiles are missing": (_patched("_missing", _whole_grid_of_baseline), check_no_false_missing),
    "a crash excuses everything": (_patched("_missing", lambda run, base: REAL_MISSING(
        replace(run, cases=tuple(c for c in run.cases if c.state == "ran")), Baseline())), check_a_crash_hides_nothing),
    "what nobody measures is forgotten": (_patched("_missing", lambda run, base: REAL_MISSING(
        replace(run, cases=tuple(replace(c, whole=False) for c in run.cases)), base)),
        check_a_metric_nobody_measures_is_missing),
    "all that a baseline has is due": (_patched("_missing", lambda run, base: REAL_MISSING(
        replace(run, cases=tuple(replace(c, whole=True) for c in run.cases)), base)),
        check_no_false_missing),
    "states ignored": (_patched("_of_states", lambda run, require: []), check_error),
    "require ignored": (_patched("_of_states", lambda run, require: REAL_STATES(run, ())), check_unavailable),
    "any require fails": (_patched("runtime_of", lambda case: "eager"), check_unavailable),
    "times of any machine": (
        _run_wrapped(lambda real, run, *a, **k: real(replace(run, environment=HERE), *a, **k)),
        check_another_machine,
    ),
    "another machine is new": (
        _run_wrapped(lambda real, run, base, *a, **k: real(run, Baseline(base.portable), *a, **k)),
        check_another_machine,
    ),
    "new fails": (_patched("EXIT_PASS", 1), check_new_is_no_failure),
    "a pass is inconclusive": (
        _patched("suspected", lambda v: replace(v, outcome=Outcome.INCONCLUSIVE)),
        check_unchanged_passes,
    ),
    "fingerprint never fails": (
        _run_wrapped(lambda real, run, *a, **k: real(
            replace(run, measurements=tuple(replace(m, fingerprint="") for m in run.measurements)), *a, **k)),
        check_changed_checkpoint,
    ),
    "controls ignored": (
        _run_wrapped(lambda real, run, *a, **k: real(
            replace(run, measurements=tuple(m for m in run.measurements if m.rule != "control")), *a, **k)),
        check_invalid_beats,
    ),
    "invalid is red": (_patched("EXIT_INVALID", 1), check_invalid_beats),
    "interrupted is judged": (
        _run_wrapped(lambda real, run, *a, **k: real(replace(run, interrupted=False), *a, **k)),
        check_interrupted,
    ),
    "no confirmation": (_patched("suspected", lambda v: replace(v, suspect=False)), check_a_hit_has_to_be_confirmed),
    "nothing is confirmed": (_confirm_wrapped(lambda r, f, b: r), check_a_hit_has_to_be_confirmed),
    "first samples confirm": (_confirm_wrapped(_first_samples_too), check_only_fresh_samples_confirm),
    "any hit is confirmed": (
        _patched("_confirmed", lambda v, *a: gate.finished(replace(v, outcome=Outcome.REGRESSED, suspect=False))),
        check_only_fresh_samples_confirm,
    ),
    "the machine's state ignored": (_patched("_state", lambda *a: {}), check_the_machines_state_counts),
    "the yardstick ignored": (
        _patched("_state", lambda *a: {c: {"drift": s["drift"]} for c, s in REAL_STATE(*a).items()}),
        check_a_slower_machine_is_no_regression,
    ),
    "canary of the last process": (_confirm_wrapped(_canary_last), check_canary_is_confirmed),
    "fresh controls ignored": (
        _confirm_wrapped(lambda r, f, b: confirm(r, [m for m in f if m.rule != "control"], b)),
        check_fresh_controls_count,
    ),
    "holm skipped": (_patched("holm", lambda ps: list(ps)), check_holm),
    "everything is tested": (_patched("is_tested", lambda v: v.p is not None), check_what_did_not_change_hides_nothing),
    "everything corrected away": (_patched("holm", lambda ps: [1.0 for _ in ps]), check_holm),
    "each seed alone": (_patched("_trained_groups", lambda run, baseline: set()), check_seeds_are_judged_together),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_gate_bites(name, monkeypatch):
    mutant, check = MUTANTS[name]
    with pytest.raises(AssertionError):
        check(*mutant(monkeypatch))


def test_every_check_has_a_mutant():
    assert {check for _, check in MUTANTS.values()} == set(CHECKS), "a check that nothing proves to bite"


def test_undecided_times_may_be_measured_again():
    first = judge_run(make_run(changed(B, slow=0.028)), BASELINE)
    assert undecided(first) == (B,), f"{outcomes(first)}"
    assert undecided(confirm(first, measured(B, processes=4), BASELINE)) == (), "still undecided"
    hit = confirm(first, measured(B, slow=0.3, processes=4), BASELINE)
    assert suspects(hit) == (B,), f"a first hit of fresh processes is a suspicion: {outcomes(hit)}"
    assert hit.exit_status == 0, f"{outcomes(hit)}"


def test_a_case_of_times_alone_is_missing_only_on_its_machine():
    times_only = Baseline({}, BASELINE.times)
    run = make_run([], {A: None, B: None, C: None})
    assert len(judge_run(run, times_only).failing) == 3, "absent on its machine"
    assert judge_run(replace(run, environment=THERE), times_only).failing == (), "absent on another machine"


@given(
    states=st.lists(st.sampled_from(["ran", "skipped", "error", "deselected", "not_run"]), min_size=3, max_size=3),
    kept=st.sets(st.integers(0, 17)),
    require=st.sets(st.sampled_from(["eager", "onnxruntime"])),
)
def test_any_part_of_a_run_is_judged(states, kept, require):
    everything = make_run().measurements
    due = {"ran": DUE}
    cases = tuple(CaseStatus(c, s, "why", due.get(s, ())) for c, s in zip((A, B, C), states, strict=True))
    run = replace(make_run(), cases=cases, measurements=tuple(m for i, m in enumerate(everything) if i in kept))
    report = judge_run(run, BASELINE, require=require)
    ranks = [v.severity for v in report.verdicts]
    assert ranks == sorted(ranks), "not sorted by severity"
    assert report.exit_status == (1 if report.failing else 0), f"{report.counts}"
    for verdict in report.verdicts:
        state = dict(zip((A, B, C), states, strict=True))[verdict.case_id]
        assert verdict.outcome is not Outcome.MISSING or state == "ran", f"a false MISSING: {verdict}, {state}"
    assert sum(report.counts.values()) == len(report.verdicts), f"{report.counts}"
