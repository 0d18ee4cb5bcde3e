"""A whole run against the baselines: all verdicts, what has to be confirmed, and the exit status."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from pruning_bench.judging import controls
from pruning_bench.judging.baseline import ABSOLUTE, TIMED, Baseline, BaselineLine, Lines, differences
from pruning_bench.judging.case_ids import case_of, group_of
from pruning_bench.judging.policy import Policy
from pruning_bench.judging.seeds import judge_seeds
from pruning_bench.judging.statistics import holm
from pruning_bench.judging.verdicts import (
    SEVERITY,
    WHOLE_CASE,
    Verdict,
    comparable,
    direction,
    finished,
    incomparable,
    judge,
)
from pruning_bench.records import CaseStatus, Environment, Measurement, Outcome, Run, merge

EXIT_PASS, EXIT_FAIL, EXIT_NOT_JUDGED, EXIT_INVALID = 0, 1, 2, 6
STATE = {"canary": "drift", "machine": "machine"}  # rule of an absolute time -> the argument of `judge` that it gives
State: TypeAlias = "dict[str, float]"


@dataclass(frozen=True)
class Report:
    """All verdicts of a run, worst first.

    Args:
        judged: False for an interrupted run, which has no verdicts.
        environment: of the run; fresh measurements that confirm must come from it.
        policy: that it was judged by.
    """

    run_id: str
    profile: str
    environment: Environment
    policy: Policy
    verdicts: tuple[Verdict, ...] = ()
    judged: bool = True

    @property
    def exit_status(self) -> int:
        """0; 1 with a failing verdict; 6 when a control failed, whatever else; 2 when not judged."""
        if not self.judged:
            return EXIT_NOT_JUDGED
        if any(v.outcome is Outcome.INVALID for v in self.verdicts):
            return EXIT_INVALID
        return EXIT_FAIL if self.failing else EXIT_PASS

    @property
    def failing(self) -> tuple[Verdict, ...]:
        """Verdicts that fail the run, worst first."""
        return tuple(v for v in self.verdicts if v.fails)

    @property
    def counts(self) -> dict[Outcome, int]:
        """How many verdicts of each outcome, worst first; outcomes that do not occur are left out."""
        counter = Counter(v.outcome for v in self.verdicts)
        return {outcome: counter[outcome] for outcome in SEVERITY if counter[outcome]}

    @property
    def tested(self) -> int:
        """How many primary metrics were tested: the family of Holm's correction."""
        return sum(map(is_tested, self.verdicts))

    @property
    def new_times(self) -> int:
        """Cases whose times have nothing to be compared with on this machine."""
        unknown = (Outcome.NEW, Outcome.INCOMPARABLE)
        return len({v.case_id for v in self.verdicts if v.rule in TIMED and v.outcome in unknown})


def judge_run(run: Run, baseline: Baseline, policy: Policy | None = None, require: Collection[str] = ()) -> Report:
    """Judges all that a run recorded and all that it should have recorded.

    Args:
        require: runtimes whose absence fails the run.
    """
    policy = policy or Policy()
    report = Report(run.id, run.profile, run.environment, policy)
    if run.interrupted:
        return replace(report, judged=False)
    run = replace(run, measurements=merge(run.measurements))
    verdicts = [
        *_of_states(run, require),
        *_missing(run, baseline),
        *_single(run, baseline, policy),
        *_trained(run, baseline, policy),
    ]
    return replace(report, verdicts=_sorted(_corrected(verdicts, policy)))


def suspects(report: Report) -> tuple[str, ...]:
    """Cases to measure again in fresh processes before anything is called REGRESSED, sorted."""
    return tuple(sorted({v.case_id for v in report.verdicts if v.suspect}))


def undecided(report: Report) -> tuple[str, ...]:
    """Cases whose time is neither proved within its margin nor suspect, sorted; fresh processes may decide them."""
    open_ = (v for v in report.verdicts if v.rule == "speed" and v.outcome is Outcome.INCONCLUSIVE and not v.suspect)
    return tuple(sorted({v.case_id for v in open_}))


def confirm(report: Report, fresh: Iterable[Measurement], baseline: Baseline) -> Report:
    """The report after times were measured again in fresh processes, and judged by the fresh samples alone.

    A suspect is whatever lies beyond its margin at first: that only costs time. One that the fresh samples prove to
    be beyond, with the bound of the interval and after Holm's correction, is REGRESSED; otherwise it
    becomes PASS or INCONCLUSIVE. An undecided time gets the verdict of the fresh samples, in which a hit is a
    first hit and so no more than a suspicion. What was not measured again stays as it is.

    Args:
        fresh: measurements of the same environment; those of several processes may come apart or merged. A broken
            control among them makes the run INVALID.
    """
    policy, parts = report.policy, tuple(fresh)
    again = _joined(parts)
    lines = baseline.own_times(report.environment)
    state = _state(again.values(), lines)
    verdicts = [judge(control, None) for control in controls.broken(parts)]
    for verdict in report.verdicts:
        key = (verdict.case_id, verdict.metric)
        if verdict.outcome is Outcome.INCONCLUSIVE and key in again and key in lines:
            verdicts.append(_confirmed(verdict, again[key], lines[key], policy, state.get(verdict.case_id, {})))
        else:
            verdicts.append(verdict)
    return replace(report, verdicts=_sorted(_corrected(verdicts, policy)))


def _joined(parts: Iterable[Measurement]) -> dict[tuple[str, str], Measurement]:
    """Samples of a speed together; of several absolute times the best, for a busy machine only ever slows."""
    joined: dict[tuple[str, str], Measurement] = {}
    for part in sorted(parts, key=lambda m: -direction(m.better) * m.value if m.rule in ABSOLUTE else 0.0):
        key = (part.case_id, part.metric)
        joined[key] = merge((joined[key], part))[0] if key in joined else part
    return joined


def _confirmed(first: Verdict, fresh: Measurement, line: BaselineLine, policy: Policy, state: State) -> Verdict:
    count = len(fresh.samples)
    if fresh.rule == "speed" and count < policy.confirmation_processes:
        return replace(first, note=f"{count} fresh processes, needs {policy.confirmation_processes} to say more")
    second = judge(fresh, line, policy, **state)
    if not first.suspect:
        return suspected(second)
    outcome, note = second.outcome, "a first hit was not confirmed in fresh processes"
    if outcome is Outcome.REGRESSED:
        note = f"confirmed in {count} fresh processes" if fresh.rule == "speed" else "confirmed in fresh processes"
    elif outcome is Outcome.IMPROVED:
        outcome = Outcome.INCONCLUSIVE
    note = "; ".join(filter(None, (note, second.note)))
    return replace(second, outcome=outcome, suspect=False, confirming=fresh.rule == "speed", note=note)


def suspected(verdict: Verdict) -> Verdict:
    """A time beyond its margin is no more than a suspicion until fresh processes say the same."""
    if not verdict.suspect:
        return verdict
    note = "; ".join(filter(None, ("beyond the margin, to be confirmed in fresh processes", verdict.note)))
    return finished(replace(verdict, outcome=Outcome.INCONCLUSIVE, note=note))


def is_tested(verdict: Verdict) -> bool:
    """Whether a verdict counts in Holm's correction: whether it could be REGRESSED by its p-value at all.

    An accuracy counts once any example changed: without one, p is 1 whatever the truth (Tarone, A modified Bonferroni
    method for discrete data, Biometrics 1990). A speed counts once a suspicion was measured again: its samples are
    independent of those that chose it, so that what was not suspect is no part of the family.
    """
    return verdict.confirming or (verdict.rule == "paired" and verdict.p is not None and verdict.p < 1)


def _corrected(verdicts: list[Verdict], policy: Policy) -> list[Verdict]:
    """Holm over what is tested: a regression that does not survive it is INCONCLUSIVE."""
    family = [i for i, v in enumerate(verdicts) if is_tested(v) and v.p is not None]
    adjusted = holm([verdicts[i].p or 0.0 for i in family])
    result = list(verdicts)
    for i, p in zip(family, adjusted, strict=True):
        alpha = policy.accuracy_p if verdicts[i].rule == "paired" else policy.alpha
        if verdicts[i].outcome is Outcome.REGRESSED and p >= alpha:
            note = f"p = {p:.2g} after Holm's correction over {len(family)} metrics; {verdicts[i].note}"
            result[i] = finished(replace(verdicts[i], outcome=Outcome.INCONCLUSIVE, note=note))
    return result


def _of_states(run: Run, require: Collection[str]) -> list[Verdict]:
    """UNAVAILABLE and ERROR: what the runner itself said of a case."""
    verdicts = []
    for case in run.cases:
        if case.state == "error":
            verdicts.append(finished(Verdict(case.case_id, WHOLE_CASE, Outcome.ERROR, note=case.reason)))
        elif case.state == "skipped":
            fails = runtime_of(case.case_id) in require
            verdicts.append(Verdict(case.case_id, WHOLE_CASE, Outcome.UNAVAILABLE, note=case.reason, fails=fails))
    for name in sorted(require):
        of_it = [case for case in run.cases if runtime_of(case.case_id) == name]
        if of_it and all(case.state in ("deselected", "not_run") for case in of_it):
            note = f"{name} is required, and no case of it was chosen to run"
            verdicts.append(Verdict(of_it[0].case_id, WHOLE_CASE, Outcome.UNAVAILABLE, note=note, fails=True))
    return verdicts


def runtime_of(case_id: str) -> str:
    """The runtime in a case id, "" when it cannot be told.

    Example:
        >>> runtime_of("resnet20-fashion_mnist/dense/onnxruntime-t2")
        'onnxruntime'
    """
    case = case_of(case_id)
    return "" if case is None else case.runtime


def _missing(run: Run, baseline: Baseline) -> list[Verdict]:
    """What should be there and is not; never what was left out, skipped or not reached."""
    recorded: dict[str, set[str]] = {}
    for m in run.measurements:
        recorded.setdefault(m.case_id, set()).add(m.metric)
    known = baseline.metrics(run.profile, run.environment)
    verdicts = [
        _absent(case_id, WHOLE_CASE, f"the {run.profile} profile no longer yields it")
        for case_id in known.keys() - {case.case_id for case in run.cases}
    ]
    for case in run.cases:
        there = recorded.get(case.case_id, set())
        due = set(case.metrics) - there  # of the tests that ran to their end, whatever became of the others
        verdicts += [_absent(case.case_id, metric, "ran and did not record it") for metric in due]
        if case.whole:
            gone = known.get(case.case_id, set()) - there - due
            verdicts += [_absent(case.case_id, metric, "no benchmark measures it any more") for metric in gone]
        elif case.state == "ran" and not there and not due and case.case_id in known:
            verdicts.append(_absent(case.case_id, WHOLE_CASE, "ran and recorded nothing"))
    return verdicts


def _absent(case_id: str, metric: str, note: str) -> Verdict:
    return finished(Verdict(case_id, metric, Outcome.MISSING, note=note))


def _single(run: Run, baseline: Baseline, policy: Policy) -> list[Verdict]:
    """Verdicts of all measurements that are judged one by one."""
    trained = _trained_groups(run, baseline)
    state = _state(run.measurements, baseline.own_times(run.environment))
    verdicts = []
    for m in run.measurements:
        if m.rule in ("shown", "machine") or (m.rule == "paired" and group_of(m.case_id)[0] in trained):
            continue
        lines = baseline.own_times(run.environment) if m.rule in TIMED else baseline.portable
        key = (m.case_id, m.metric)
        verdict = suspected(judge(m, lines.get(key), policy, **state.get(m.case_id, {})))
        foreign = baseline.foreign_times(run.environment, key) if verdict.outcome is Outcome.NEW else None
        if foreign is not None and m.rule in TIMED:
            changed = differences(foreign.must_match, run.environment.must_match)
            verdict = incomparable(verdict, f"measured elsewhere: {'; '.join(changed[:3])}")
        verdicts.append(verdict)
    return verdicts


def _state(measurements: Iterable[Measurement], lines: Lines) -> dict[str, State]:
    """Case id -> how the machine differs from the baseline's, as arguments of `judge`: logs of ratios of times."""
    state: dict[str, State] = {}
    for m in measurements:
        then = lines.get((m.case_id, m.metric))
        if m.rule in STATE and then is not None and m.value > 0 and not comparable(m, then):
            state.setdefault(m.case_id, {})[STATE[m.rule]] = math.log(m.value / then.value)
    return state


def _trained(run: Run, baseline: Baseline, policy: Policy) -> list[Verdict]:
    """One verdict per paired metric of a recipe that trains, over its seeds."""
    trained = _trained_groups(run, baseline)
    now: dict[tuple[str, str], dict[int, Measurement]] = {}
    for m in run.measurements:
        group, seed = group_of(m.case_id)
        if m.rule == "paired" and group in trained:
            now.setdefault((group, m.metric), {})[seed] = m
    then: dict[tuple[str, str], dict[int, BaselineLine]] = {}
    for line in baseline.portable.values():
        group, seed = group_of(line.case_id)
        then.setdefault((group, line.metric), {})[seed] = line
    return [judge_seeds(seeds, then.get(key, {}), policy) for key, seeds in now.items()]


def _trained_groups(run: Run, baseline: Baseline) -> set[str]:
    """Ids without seed of the cases whose recipe trains, by this run or, where it does not say, by the baseline."""
    said: Mapping[str, CaseStatus] = {case.case_id: case for case in run.cases}
    before = {line.case_id for line in baseline.portable.values() if line.trains and line.case_id not in said}
    return {group_of(case_id)[0] for case_id in before | {c.case_id for c in run.cases if c.trains}}


def _sorted(verdicts: Iterable[Verdict]) -> tuple[Verdict, ...]:
    return tuple(sorted(verdicts, key=lambda v: (v.severity, v.case_id, v.metric)))
