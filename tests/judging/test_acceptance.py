"""Accepting: only what was asked for changes, and only from a run that is fit for it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning_bench.errors import RecordError
from pruning_bench.judging.acceptance import accept
from pruning_bench.judging.baseline import Baseline, BaselineLine, Times, by_key
from pruning_bench.judging.vectors import pack, pack_scores
from pruning_bench.records import CaseStatus, Environment, Measurement, Run

HERE = Environment({"cpu": "A"})
THERE = Environment({"cpu": "B"})
CASES = ("m-d/dense/eager", "m-d/finetune:1/eager", "m-d/finetune:1/eager-s1")


def measured(case, size=10.0, processes=5):
    samples = tuple(0.01 * i for i in range(processes))
    return (
        Measurement(case, "bytes", size, "B", "lower", "exact"),
        Measurement(case, "top1", 0.5, "1", "higher", "paired", vector=pack([1, 0])),
        Measurement(case, "latency", 1.0, "s", "lower", "shown"),
        Measurement(case, "twin", 1.0, "1", "neither", "control", detail={"holds": True}),
        Measurement(case, "anchor_latency", 1.0, "s", "lower", "canary"),
        Measurement(case, "relative_time", 1.0, "1", "lower", "speed", samples=samples, errors=(0.001,) * processes),
    )


def make_run(cases=CASES, size=10.0, processes=5, profile="ci", run_id="r1", environment=HERE):
    states = tuple(CaseStatus(case, "ran", metrics=("bytes", "top1"), trains="finetune" in case) for case in cases)
    return Run(run_id, "t", profile, environment, states, sum((measured(c, size, processes) for c in cases), ()))


RUN = make_run()
FULL = accept(Baseline(), RUN, reason="first")


def test_what_is_kept_of_a_run():
    line = FULL.portable[CASES[1], "top1"]
    assert line == BaselineLine(
        CASES[1], "top1", 0.5, "1", "higher", "paired", vector=pack([1, 0]), trains=True, profiles=("ci",),
        reason="first", run="r1",
    ), f"{line}"  # fmt: skip
    assert {metric for _, metric in FULL.portable} == {"bytes", "top1"}, "shown and controls are not stored"
    times = FULL.times[HERE.key]
    assert {metric for _, metric in times.lines} == {"anchor_latency", "relative_time"}, "times only"
    speed = times.lines[CASES[0], "relative_time"]
    assert (speed.processes, speed.spread, speed.within) == (5, 0.0158114, 0.001), f"{speed}"
    assert speed.summary.centre == pytest.approx(0.02, abs=1e-5), f"{speed}"
    assert times.must_match == HERE.must_match, "the environment of the times"


def lines_of(baseline):
    return {
        **{("portable", *key): line for key, line in baseline.portable.items()},
        **{(name, *key): line for name, times in baseline.times.items() for key, line in times.lines.items()},
    }


def check_accept_changes_only_what_was_asked_for(accept_one):
    """Accepting one case, from another run on another machine, leaves every other line as it is."""
    before = accept(FULL, make_run(environment=THERE), reason="there", scope="times")
    changed = make_run(size=11.0, processes=6, run_id="r2")
    after = lines_of(accept_one(before, changed, reason="grew", only=[CASES[0]], scope="portable"))
    differ = {key for key in lines_of(before).keys() | after.keys() if lines_of(before).get(key) != after.get(key)}
    assert differ == {("portable", CASES[0], "bytes")}, f"changed: {differ}"
    line = after["portable", CASES[0], "bytes"]
    assert (line.value, line.reason, line.run) == (11.0, "grew", "r2"), f"{line}"


def test_accept_changes_only_what_was_asked_for():
    check_accept_changes_only_what_was_asked_for(accept)


def _whole_files(baseline, run, *, reason, only=None, scope="all"):
    fresh = accept(Baseline(), run, reason=reason, only=only, scope=scope)
    return Baseline({**fresh.portable}, {**baseline.times, **fresh.times})


def _all_cases(baseline, run, *, reason, only=None, scope="all"):
    return accept(baseline, run, reason=reason, scope=scope)


def _other_machines_lost(baseline, run, **options):
    after = accept(baseline, run, **options)
    return Baseline(after.portable, {HERE.key: after.times[HERE.key]})


def _all_scopes(baseline, run, *, reason, only=None, scope="all"):
    return accept(baseline, run, reason=reason, only=only)


def _words_always_new(baseline, run, *, reason, only=None, scope="all"):
    after = accept(baseline, run, reason=reason, only=only, scope=scope)
    new = {k: replace(line, reason=reason) if k[0] in (only or ()) else line for k, line in after.portable.items()}
    return Baseline(new, after.times)


@pytest.mark.parametrize(
    "mutant",
    [_whole_files, _all_cases, _other_machines_lost, _all_scopes, _words_always_new],
    ids=lambda m: m.__name__.strip("_"),
)
def test_accept_changes_bites(mutant):
    with pytest.raises(AssertionError):
        check_accept_changes_only_what_was_asked_for(mutant)


def test_an_id_without_seed_means_all_its_seeds():
    after = accept(FULL, make_run(size=11.0), reason="grew", only=["m-d/finetune:1/eager"])
    grown = {case for (case, metric), line in after.portable.items() if metric == "bytes" and line.value == 11.0}
    assert grown == set(CASES[1:]), f"{grown}"


@given(
    kept=st.sets(st.sampled_from(CASES), min_size=1),
    profile=st.sampled_from(["ci", "nightly"]),
    scope=st.sampled_from(["portable", "times", "all"]),
)
def test_cases_that_left_the_grid_leave_their_profile_and_no_other(kept, profile, scope):
    both = accept(FULL, make_run(CASES[:2], profile="nightly", run_id="r2"), reason="nightly")
    after = lines_of(accept(both, make_run(sorted(kept), profile=profile), reason="smaller grid", scope=scope))
    for key, line in lines_of(both).items():
        case = key[1]
        in_scope = scope == "all" or (scope == "portable") == (key[0] == "portable")
        changed = {profile} if in_scope else set()
        expected = set(line.profiles) | changed if case in kept else set(line.profiles) - changed
        found = set(after[key].profiles) if key in after else set()
        assert found == expected, f"{key} of {line.profiles}: now {found}, should be {expected}"


def test_what_came_while_cases_were_measured_is_never_dropped():
    other = accept(Baseline(), make_run(("m-d/new:1/eager",), run_id="r2"), reason="meanwhile")
    times = {HERE.key: Times(HERE.must_match, {**FULL.times[HERE.key].lines, **other.times[HERE.key].lines})}
    meanwhile = Baseline({**FULL.portable, **other.portable}, times)
    after = accept(meanwhile, make_run(CASES[:2]), reason="mine", known=FULL)
    lost = {key[1] for key in lines_of(meanwhile).keys() - lines_of(after).keys()}
    assert lost == {CASES[2]}, f"{lost} left, should be what this run's grid no longer yields"
    without = accept(meanwhile, make_run(CASES[:2]), reason="mine")
    assert "m-d/new:1/eager" not in {key[1] for key in lines_of(without)}, "the test cannot fail"


def test_only_never_drops_a_case():
    after = accept(FULL, make_run(CASES[:1]), reason="one", only=[CASES[0]])
    assert lines_of(after).keys() == lines_of(FULL).keys(), "a line was lost"


@pytest.mark.parametrize("only", [None, [CASES[0]]], ids=["all", "only"])
def test_a_metric_nobody_measures_leaves_the_baseline(only):
    both = accept(FULL, make_run(CASES[:1], profile="nightly", run_id="r2"), reason="nightly")
    run = make_run()
    gone = {(CASES[0], "relative_time"), (CASES[0], "anchor_latency")}
    kept = tuple(m for m in run.measurements if (m.case_id, m.metric) not in gone)
    for whole, profiles in ((True, {"nightly"}), (False, {"ci", "nightly"})):
        states = tuple(replace(case, whole=whole) for case in run.cases)
        after = accept(both, replace(run, measurements=kept, cases=states), reason="not timed", only=only)
        lines = after.times[HERE.key].lines
        assert all(set(lines[key].profiles) == profiles for key in gone), f"{whole=}: {lines}"
        assert set(lines[CASES[1], "relative_time"].profiles) == {"ci"}, f"another case: {lines}"


def test_what_was_left_out_keeps_its_lines():
    states = (CaseStatus(CASES[0], "ran"), CaseStatus(CASES[1], "deselected"), CaseStatus(CASES[2], "not_run"))
    part = replace(make_run(CASES[:1]), cases=states)
    assert lines_of(accept(FULL, part, reason="part")).keys() == lines_of(FULL).keys(), "a line was lost"


def test_the_margin_of_a_score_is_accepted_with_it():
    scored = Measurement(CASES[0], "psnr", 1.5, "dB", "higher", "paired", vector=pack_scores([1.0, 2.0]))
    plain = replace(RUN, cases=(CaseStatus(CASES[0], "ran"),))
    before = accept(Baseline(), replace(plain, measurements=(scored,)), reason="of before margins were kept")
    assert before.portable[CASES[0], "psnr"].margin == 0, f"{before}"
    run = replace(plain, measurements=(replace(scored, detail={"margin": 0.25}),))
    after = accept(before, run, reason="with its margin")
    line = after.portable[CASES[0], "psnr"]
    assert (line.margin, line.reason) == (0.25, "with its margin"), f"{line}"


def test_accepting_the_same_again_changes_nothing():
    again = accept(FULL, make_run(run_id="r2"), reason="again")
    assert again == FULL, f"{again}"


def test_the_same_bits_keep_their_spelling(monkeypatch):
    from pruning_bench.judging import acceptance

    vector = FULL.portable[CASES[0], "top1"].vector
    other = make_run(run_id="r2")
    respelt = tuple(replace(m, vector="2:other") if m.vector else m for m in other.measurements)
    real = acceptance.vectors.unpack
    monkeypatch.setattr(acceptance.vectors, "unpack", lambda text, *a: real(vector if text == "2:other" else text, *a))
    again = accept(FULL, replace(other, measurements=respelt), reason="another zlib")
    assert again == FULL, "another spelling of the same bits is a diff"


def _with_state(run, state, **fields):
    first, *rest = run.cases
    return replace(run, cases=(replace(first, state=state, **fields), *rest))


BROKEN = Measurement(CASES[0], "twin", 1.0, "1", "neither", "control", detail={"holds": False, "why": "load 9"})


@pytest.mark.parametrize(
    ("run", "options", "words"),
    [
        pytest.param(RUN, {"reason": "  "}, "no reason", id="no reason"),
        pytest.param(replace(RUN, interrupted=True), {}, "interrupted", id="interrupted"),
        pytest.param(replace(RUN, measurements=(*RUN.measurements, BROKEN)), {}, "load 9", id="INVALID"),
        pytest.param(_with_state(RUN, "error", reason="boom"), {}, "boom", id="ERROR"),
        pytest.param(_with_state(RUN, "ran", metrics=("loss",)), {}, "no loss recorded", id="MISSING"),
        pytest.param(make_run(processes=4), {}, "4 processes, should be at least 5", id="four processes"),
        pytest.param(make_run(processes=4), {"scope": "times"}, "at least 5", id="four processes, times"),
        pytest.param(
            replace(RUN, measurements=tuple(replace(m, value=0.0) for m in RUN.measurements if m.rule == "canary")),
            {"scope": "times", "only": []} | {"only": [CASES[0]]},
            "anchor_latency 0|no bytes recorded",
            id="canary 0",
        ),
        pytest.param(RUN, {"only": ["m-d/dense/eagre"]}, "should be 'm-d/dense/eager'", id="unknown case"),
        pytest.param(replace(RUN, measurements=()), {"only": []}, "no measurement", id="nothing"),
        pytest.param(
            replace(RUN, measurements=(replace(RUN.measurements[1], vector=""),)),
            {"only": []} | {"only": [CASES[0]]},
            "no bytes recorded|vector",
            id="no vector",
        ),
    ],
)
def test_what_is_not_fit_is_refused(run, options, words):
    with pytest.raises(RecordError, match=words) as caught:
        accept(FULL, run, **{"reason": "because", **options})
    assert "\n" not in str(caught.value), "more than one line"


def test_portable_needs_no_processes():
    after = accept(Baseline(), make_run(processes=1), reason="portable", scope="portable")
    assert after.times == {}, "times were stored all the same"


def test_samples_of_several_processes_may_come_apart():
    one = make_run(processes=1)
    five = replace(one, measurements=one.measurements * 5)
    line = accept(Baseline(), five, reason="apart").times[HERE.key].lines[CASES[0], "relative_time"]
    assert line.processes == 5, f"{line}"


def test_accept_never_touches_what_it_was_given():
    before = Baseline(by_key(FULL.portable.values()), {k: Times(t.must_match, t.lines) for k, t in FULL.times.items()})
    accept(FULL, make_run(CASES[:1], size=99.0), reason="x")
    assert before == FULL, "the old baseline changed in place"
