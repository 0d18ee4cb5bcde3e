"""The one way a baseline changes: deliberately, with a reason, from a run that is fit for it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import replace

from pruning_bench.errors import RecordError, closest
from pruning_bench.judging import controls, vectors
from pruning_bench.judging.baseline import (
    ABSOLUTE,
    PORTABLE,
    TIMED,
    Baseline,
    BaselineLine,
    Lines,
    Scope,
    Times,
    by_key,
    check_time,
)
from pruning_bench.judging.case_ids import group_of
from pruning_bench.judging.policy import Policy
from pruning_bench.judging.processes import Processes
from pruning_bench.judging.scores import margin_of
from pruning_bench.records import CaseStatus, Measurement, Run, merge

Gone = set[BaselineLine]
WHO = "accept"
_RULES = {"portable": PORTABLE, "times": TIMED, "all": PORTABLE + TIMED}


def accept(
    baseline: Baseline,
    run: Run,
    *,
    reason: str,
    only: Collection[str] | None = None,
    scope: Scope = "all",
    policy: Policy | None = None,
    known: Baseline | None = None,
) -> Baseline:
    """The baseline with the run's measurements in it; nothing is written.

    Lines of other cases, metrics, profiles, environments and scopes stay as they are. Without `only`, lines of cases
    that the run's profile no longer yields leave that profile, and go when it was their last; so do lines of metrics
    that no benchmark measures any more. A line whose numbers are the same as before keeps its reason.

    Args:
        only: case ids; an id without a seed means all its seeds. None: every case of the run.
        scope: "portable" leaves times alone, "times" everything else.
        known: the baseline as it was when the accepting began; a line that it does not hold came meanwhile, from
            somebody who knows more than the run, and is never dropped. None: `baseline`.
    Raises:
        RecordError: no reason; a run that was interrupted or is INVALID; a chosen case that is unknown, crashed or
            did not record what it should; a speed from too few processes or that no run can be compared with; nothing
            to accept.
    """
    policy = policy or Policy()
    refuse_run(run, reason)
    run = replace(run, measurements=merge(run.measurements))
    chosen = _chosen(run, only)
    measured = [m for m in run.measurements if m.case_id in chosen and m.rule in _RULES[scope]]
    _refuse_cases(run, chosen)
    if not measured:
        raise RecordError(WHO, f"no measurement of scope {scope!r}", "at least one", f"run {run.id}")
    cases = {case.case_id: case for case in run.cases}
    fresh = [_line(m, run, reason, cases.get(m.case_id), policy) for m in measured]
    for line in fresh:
        check_time(line, line.case_id)
    gone = _gone(baseline, run, chosen, only is None)
    if known is not None:
        gone &= set(_lines(known))
    leaving: dict[str, Gone] = {part: gone if scope in (part, "all") else set() for part in ("portable", "times")}
    portable = _merged(baseline.portable, (x for x in fresh if x.rule in PORTABLE), leaving["portable"], run.profile)
    times = {
        key: Times(other.must_match, _merged(other.lines, (), leaving["times"], run.profile))
        for key, other in baseline.times.items()
    }
    if timed := [line for line in fresh if line.rule in TIMED]:
        key = run.environment.key
        own = times[key].lines if key in times else {}
        times[key] = Times(run.environment.must_match, _merged(own, timed, set(), run.profile))
    return Baseline(portable, times)


def refuse_run(run: Run, reason: str) -> None:
    """Raises `RecordError` for a run that can become no baseline: no reason, interrupted, a control that failed."""
    where = f"run {run.id}"
    if not reason.strip():
        raise RecordError(WHO, "no reason", "a reason that a reviewer can read")
    if run.interrupted:
        raise RecordError(WHO, "an interrupted run", "a whole one", where)
    if bad := controls.broken(run.measurements):
        found = f"an INVALID run ({bad[0].metric} of {bad[0].case_id}: {controls.reason_of(bad[0])})"
        raise RecordError(WHO, found, "a run whose controls hold", where)


def _chosen(run: Run, only: Collection[str] | None) -> set[str]:
    known = {case.case_id for case in run.cases} | {m.case_id for m in run.measurements}
    if only is None:
        return known
    groups = {group_of(case_id)[0] for case_id in known}
    for wanted in only:
        if wanted not in known and wanted not in groups:
            raise RecordError(WHO, f"no case {wanted!r}", closest(wanted, known), f"run {run.id}")
    return {case_id for case_id in known if case_id in only or group_of(case_id)[0] in only}


def _refuse_cases(run: Run, chosen: set[str]) -> None:
    recorded = {(m.case_id, m.metric) for m in run.measurements}
    for case in run.cases:
        if case.case_id not in chosen:
            continue
        if case.state == "error":
            raise RecordError(WHO, f"a case that crashed ({case.reason})", "cases that ran", case.case_id)
        lost = [metric for metric in case.metrics if (case.case_id, metric) not in recorded]
        if lost:
            raise RecordError(WHO, f"no {lost[0]} recorded", "every metric that was due", case.case_id)


def _line(m: Measurement, run: Run, reason: str, case: CaseStatus | None, policy: Policy) -> BaselineLine:
    line = BaselineLine(
        m.case_id,
        m.metric,
        m.value,
        m.unit,
        m.better,
        m.rule,
        fingerprint=m.fingerprint,
        vector=m.vector,
        trains=case is not None and case.trains,
        profiles=() if case is not None and case.extra else (run.profile,),
        reason=reason.strip(),
        run=run.id,
    )
    if m.rule == "paired":
        vectors.unpack(m.vector, f"{m.metric} of {m.case_id}")
        return replace(line, margin=margin_of(m) or 0.0)
    if m.rule in ABSOLUTE:
        return replace(line, value=_short(m.value))
    if m.rule != "speed":
        return line
    if len(m.samples) < policy.min_processes:
        expected = f"at least {policy.min_processes} to become a baseline"
        raise RecordError(WHO, f"{m.metric} of {len(m.samples)} processes", expected, m.case_id)
    known = Processes.of(m.samples, m.errors)
    return replace(
        line,
        value=_short(math.exp(known.centre)),
        spread=_short(known.spread),
        within=_short(known.within),
        processes=known.count,
    )


def _short(value: float) -> float:
    """Six digits: more would be noise in a reviewed diff."""
    return float(f"{value:.6g}")


def _lines(baseline: Baseline) -> list[BaselineLine]:
    return [*baseline.portable.values(), *(x for t in baseline.times.values() for x in t.lines.values())]


def _gone(baseline: Baseline, run: Run, chosen: Collection[str], all_cases: bool) -> Gone:
    """What was of this profile and is so no longer: cases that its grid does not yield, metrics nobody measures.

    Args:
        all_cases: whether the grid counts, or only what became of the chosen cases.
    """
    here = {case.case_id for case in run.cases}
    whole = {case.case_id for case in run.cases if case.whole and case.case_id in chosen}
    recorded = {(m.case_id, m.metric) for m in run.measurements}
    return {
        line
        for line in _lines(baseline)
        if (all_cases and line.case_id not in here) or (line.case_id in whole and line.key not in recorded)
    }


def _merged(old: Lines, fresh: Iterable[BaselineLine], gone: Gone, profile: str) -> Lines:
    kept: list[BaselineLine] = []
    for line in old.values():
        if line not in gone or profile not in line.profiles:
            kept.append(line)
        elif rest := tuple(name for name in line.profiles if name != profile):
            kept.append(replace(line, profiles=rest))
    return by_key([*kept, *(_over(old.get(line.key), line) for line in fresh)])


def _over(old: BaselineLine | None, new: BaselineLine) -> BaselineLine:
    """The new line, of all profiles of both; where nothing else changed, the old one's words and vector text."""
    if old is None:
        return new
    new = replace(new, profiles=tuple(sorted({*old.profiles, *new.profiles})))
    if old.vector and new.vector and (vectors.unpack(old.vector).tolist() == vectors.unpack(new.vector).tolist()):
        new = replace(new, vector=old.vector)  # another zlib may spell the same bits differently
    as_old = replace(new, reason=old.reason, run=old.run)
    return as_old if replace(as_old, profiles=old.profiles) == old else new
