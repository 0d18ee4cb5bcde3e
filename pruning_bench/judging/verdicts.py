"""One measurement against its baseline: the verdict, by the measurement's rule."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pruning_bench.errors import PruningBenchError, RecordError
from pruning_bench.judging import controls, vectors
from pruning_bench.judging.baseline import PORTABLE, BaselineLine
from pruning_bench.judging.policy import Policy
from pruning_bench.judging.processes import Processes, process_difference
from pruning_bench.judging.scores import ScoreChange, change_of_scores, margin_of, policy_of
from pruning_bench.judging.statistics import (
    Estimate,
    drop_interval,
    mcnemar_midp,
    smallest_drop,
    smallest_effect,
)
from pruning_bench.records import Better, Measurement, Outcome, Rule

SEVERITY: tuple[Outcome, ...] = (  # worst first
    Outcome.INVALID,
    Outcome.ERROR,
    Outcome.REGRESSED,
    Outcome.MISSING,
    Outcome.INCOMPARABLE,
    Outcome.INCONCLUSIVE,
    Outcome.UNAVAILABLE,
    Outcome.NEW,
    Outcome.IMPROVED,
    Outcome.PASS,
)
ALWAYS_FAIL = frozenset({Outcome.INVALID, Outcome.ERROR, Outcome.REGRESSED, Outcome.MISSING})
NO_VECTORS = "per-example vectors missing or of different length"
CUT_MARGIN = 2.0  # how many times slower a time of too few pairs must be to count
WHOLE_CASE = "case"  # the metric of a verdict about a case as a whole: MISSING, UNAVAILABLE, ERROR


@dataclass(frozen=True)
class Verdict:
    """How one metric of one case compares with its baseline.

    Args:
        case_id, metric, unit, better, rule: as in `Measurement`; a recipe that trains is judged over its seeds, and
            `case_id` is then the id without seed.
        now, then: the values compared, None where there is none.
        delta: now - then in `unit`; for rules "speed" and "canary" the relative change now / then - 1 (for
            "canary" beyond what the machine is slower).
        interval: of `delta`, at the policy's confidence.
        margin: how much worse is still no regression, >= 0, as `delta`.
        smallest_detectable: size of the smallest change for the worse that this test could have shown.
        n: what the test counted: examples, seeds or processes.
        p: one-sided p-value of "not worse", of the primary metrics that were tested.
        suspect: a time beyond its margin, proved or not, that fresh processes have not yet looked at.
        confirming: judged by samples of fresh processes alone, which an earlier suspicion asked for.
        fails: fails the run.
    """

    case_id: str
    metric: str
    outcome: Outcome
    rule: Rule = "shown"
    unit: str = "1"
    better: Better = "neither"
    now: float | None = None
    then: float | None = None
    delta: float | None = None
    interval: tuple[float, float] | None = None
    margin: float | None = None
    smallest_detectable: float | None = None
    n: int = 0
    p: float | None = None
    note: str = ""
    suspect: bool = False
    confirming: bool = False
    fails: bool = False

    @property
    def severity(self) -> int:
        """0 for the worst outcome."""
        return SEVERITY.index(self.outcome)


def judge(
    now: Measurement,
    then: BaselineLine | None,
    policy: Policy | None = None,
    *,
    drift: float = 0.0,
    machine: float = 0.0,
) -> Verdict:
    """The verdict on one measurement, alone.

    Over a run, `gate.judge_run` adds Holm's correction, and holds a time REGRESSED only once it is confirmed.

    Args:
        then: a line that `now` may be compared with: for times, one of the same environment. None: NEW.
        drift: log of the anchor's own time over that of the baseline, for speeds: how unlike the machine's state is.
        machine: log of the yardstick's time over that of the baseline, for canaries: how much slower the machine is.
    Raises:
        PruningBenchError: a measurement that is never judged (rules "shown" and "machine").
    Example:
        >>> size = Measurement("case", "bytes", 1001, "B", "lower", "exact")
        >>> verdict = judge(size, BaselineLine("case", "bytes", 1000, "B", "lower", "exact"))
        >>> verdict.outcome.value, verdict.delta, verdict.fails
        ('REGRESSED', 1, True)
    """
    policy = policy or Policy()
    if now.rule == "control":
        return _control(now)
    if now.rule not in _RULES:
        raise PruningBenchError("judge", f"rule {now.rule!r}", f"one of {', '.join(_RULES)}", now.case_id)
    verdict = Verdict(now.case_id, now.metric, Outcome.NEW, now.rule, now.unit, now.better, now.value)
    if then is None:
        return verdict
    verdict = replace(verdict, then=then.value)
    if why := comparable(now, then):
        return incomparable(verdict, why)
    try:
        further = {"speed": (drift,), "canary": (machine,)}.get(now.rule, ())
        return finished(_RULES[now.rule](verdict, now, then, policy, *further))
    except RecordError as problem:  # one damaged record must not cost the other verdicts, and must not pass either
        return finished(replace(verdict, outcome=Outcome.ERROR, note=str(problem)))


def comparable(now: Measurement, then: BaselineLine) -> str:
    """Why the two are not comparable, "" when they are; a margin that grew would let pass what it was to catch."""
    for name in ("rule", "unit", "better"):
        if getattr(now, name) != getattr(then, name):
            return f"{name} {getattr(then, name)} -> {getattr(now, name)}"
    if now.fingerprint != then.fingerprint:
        return "fingerprint differs: the checkpoint, the data or the metric's definition changed"
    if then.margin and (margin := margin_of(now)) and margin > then.margin:
        return f"margin {then.margin:g} -> {margin:g}: a wider one than was accepted"
    return ""


def incomparable(verdict: Verdict, why: str) -> Verdict:
    """The verdict INCOMPARABLE."""
    return finished(replace(verdict, outcome=Outcome.INCOMPARABLE, note=why))


def finished(verdict: Verdict) -> Verdict:
    """With `fails` as the outcome says: INCOMPARABLE fails for a portable metric until accepted, never for a time."""
    changed = verdict.outcome is Outcome.INCOMPARABLE and verdict.rule in PORTABLE
    return replace(verdict, fails=changed or verdict.outcome in ALWAYS_FAIL)


def direction(better: Better) -> int:
    """+1 where more is worse, -1 where less is."""
    return -1 if better == "higher" else 1


def _control(now: Measurement) -> Verdict:
    outcome = Outcome.PASS if controls.holds(now) else Outcome.INVALID
    note = controls.reason_of(now)
    return finished(Verdict(now.case_id, now.metric, outcome, "control", now.unit, now.better, now.value, note=note))


def _exact(verdict: Verdict, now: Measurement, then: BaselineLine, policy: Policy) -> Verdict:
    delta = now.value - then.value
    worse = direction(now.better) * delta
    if now.better == "neither" and delta:
        return replace(verdict, outcome=Outcome.REGRESSED, delta=delta, margin=0, note="changed, and should not")
    outcome = Outcome.REGRESSED if worse > 0 else Outcome.IMPROVED if worse < 0 else Outcome.PASS
    return replace(verdict, outcome=outcome, delta=delta, margin=0)


def _paired(verdict: Verdict, now: Measurement, then: BaselineLine, policy: Policy) -> Verdict:
    """Same weights: McNemar's test and the interval of the drop, over examples."""
    if (vector := examples(now, then)) is None:
        return incomparable(verdict, NO_VECTORS)
    before, after = vector
    policy = policy_of(now, policy)
    if before.dtype != np.bool_:
        return _scored(verdict, now, change_of_scores(before, after, direction(now.better), policy), policy)
    lost, gained = vectors.flips(before, after)
    n = len(before)
    verdict = replace(verdict, delta=now.value - then.value, margin=policy.accuracy_margin, n=n)
    smallest = smallest_drop(n, len(gained), policy.accuracy_margin, policy.accuracy_p, policy.confidence)
    verdict = replace(verdict, smallest_detectable=smallest)
    if not len(lost) and not len(gained):
        return replace(verdict, outcome=Outcome.PASS, interval=(0.0, 0.0), p=1.0)
    drop = drop_interval(len(lost), len(gained), n, policy.confidence)
    p, mirrored = mcnemar_midp(len(lost), len(gained)), mcnemar_midp(len(gained), len(lost))
    return replace(
        verdict,
        outcome=drop_outcome(drop, p, mirrored, policy),
        interval=signed(drop, now.better),
        p=p,
        note=f"lost {_listed(lost.tolist())}, gained {_listed(gained.tolist())}",
    )


def _scored(verdict: Verdict, now: Measurement, change: ScoreChange, policy: Policy) -> Verdict:
    """Same weights, a score an example: the paired t test over examples."""
    margin = policy.accuracy_margin
    verdict = replace(verdict, delta=now.value - (verdict.then or 0.0), margin=margin, n=change.n, p=change.p)
    if not change.worse and not change.better:
        return replace(verdict, outcome=Outcome.PASS, interval=(0.0, 0.0))
    return replace(
        verdict,
        outcome=drop_outcome(change.drop, change.p, change.mirrored, policy),
        interval=signed(change.drop, now.better),
        smallest_detectable=change.smallest,
        note=f"{change.worse} examples worse, {change.better} better",
    )


def signed(worse: tuple[float, float], better: Better) -> tuple[float, float]:
    """An interval of "how much worse" as an interval of now - then."""
    low, high = worse
    return (-high, -low) if better == "higher" else (low, high)


def drop_outcome(drop: tuple[float, float], p: float, mirrored: float, policy: Policy) -> Outcome:
    """From the interval of a drop of accuracy and the p-values of "not worse" and "not better"."""
    low, high = drop
    margin = policy.accuracy_margin
    if p < policy.accuracy_p and low > margin:
        return Outcome.REGRESSED
    if mirrored < policy.accuracy_p and high < -margin:
        return Outcome.IMPROVED
    return Outcome.PASS if high <= margin else Outcome.INCONCLUSIVE


def examples(now: Measurement, then: BaselineLine) -> tuple[Any, Any] | None:
    """(then, now) per example, as long as each other and of one kind: bits or scores; None where that is not to be had.

    Raises:
        RecordError: a damaged vector, or one that is not what the value is the share or the mean of.
    """
    if not now.vector or not then.vector:
        return None
    before = vectors.unpack(then.vector, f"baseline, {then.metric} of {then.case_id}")
    after = vectors.unpack(now.vector, f"run, {now.metric} of {now.case_id}")
    vectors.check_mean(after, now.value, now.better, "judge", f"{now.metric} of {now.case_id}")
    return (before, after) if (before.dtype, len(before)) == (after.dtype, len(after)) else None


def _listed(indices: list[int], most: int = 5) -> str:
    shown = ", ".join(map(str, indices[:most])) + (", ..." if len(indices) > most else "")
    return f"{len(indices)} ({shown})" if indices else "0"


def speed_margin(spread: float, policy: Policy) -> float:
    """The margin as a log ratio: max(log(1 + floor), factor * spread).

    Example:
        >>> round(speed_margin(0.001, Policy()), 4), round(speed_margin(0.02, Policy()), 4)
        (0.0296, 0.06)
    """
    return max(math.log1p(policy.speed_floor), policy.spread_factor * spread)


def too_few_pairs(now: Measurement, policy: Policy) -> str:
    """Why a speed whose sampling was cut short cannot be judged, "" when it can: few pairs tell no error.

    Example:
        >>> cut = Measurement("case", "relative_time", 1.0, "1", "lower", "speed", (0.0,), detail={"pairs": 9})
        >>> too_few_pairs(cut, Policy())
        'sampling ran out of time after 9 pairs, an interval needs 60'
    """
    pairs = now.detail.get("pairs")
    if not isinstance(pairs, int) or pairs >= policy.min_pairs:
        return ""
    return f"sampling ran out of time after {pairs} pairs, an interval needs {policy.min_pairs}"


def _speed(verdict: Verdict, now: Measurement, then: BaselineLine, policy: Policy, drift: float) -> Verdict:
    """Log ratios to the anchor, one a process: beyond the margin with the bound, else within it, else unknown.

    A sample that was cut short says nothing unless it is slower by a factor: its error inside the process is not known.
    Where the anchor itself is slower or faster than at the baseline by more than the floor, part of what is beyond may
    be in the ratio; see `drifted`.
    """
    if not now.samples:
        raise RecordError("judge", "a speed without samples", "one log ratio a process", now.case_id)
    cut = too_few_pairs(now, policy)
    sign = direction(now.better)
    estimate = process_difference(Processes.of(now.samples, now.errors), then.summary)
    estimate = drifted(estimate, drift, policy)
    worse = replace(estimate, value=sign * estimate.value)
    margin = max(speed_margin(then.spread, policy), math.log(CUT_MARGIN) if cut else 0.0)
    low, high = worse.interval(policy.confidence)
    outcome = (
        Outcome.REGRESSED if low > margin else Outcome.IMPROVED if high < -margin
        else Outcome.PASS if high <= margin else Outcome.INCONCLUSIVE
    )  # fmt: skip
    if cut and outcome is not Outcome.REGRESSED:
        return replace(verdict, outcome=Outcome.INCONCLUSIVE, n=len(now.samples), note=cut)
    ends = signed((low, high), now.better)
    smallest = smallest_effect(worse, margin, policy.confidence, policy.power)
    return replace(
        verdict,
        outcome=outcome,
        delta=math.expm1(estimate.value),
        interval=(math.expm1(ends[0]), math.expm1(ends[1])),
        margin=math.expm1(margin),
        smallest_detectable=math.expm1(smallest),
        n=len(now.samples),
        p=worse.p_above(0.0),
        note="; ".join(filter(None, (cut, _in_words(drift, policy)))),
        suspect=worse.value > margin,
    )


def drifted(estimate: Estimate, drift: float, policy: Policy) -> Estimate:
    """An estimate with the error that the machine's state may add, a normal one (Welch-Satterthwaite):

        error^2 = own error^2 + (drift_share * max(0, |drift| - log(1 + floor)))^2
        freedom = own freedom * (error / own error)^4

    Example:
        >>> drifted(Estimate(0.0, 0.01, 4), 0.02, Policy())
        Estimate(value=0.0, error=0.01, freedom=4)
        >>> drifted(Estimate(0.0, 0.01, 4), 0.2, Policy()).interval(0.98)[1] < 0.25
        True
    """
    added = policy.drift_share * (abs(drift) - math.log1p(policy.speed_floor))
    if added <= 0:
        return estimate
    error = math.hypot(estimate.error, added)
    freedom = estimate.freedom * (error / estimate.error) ** 4 if estimate.error else math.inf
    return replace(estimate, error=error, freedom=freedom)


def _in_words(drift: float, policy: Policy) -> str:
    """A drift beyond the floor in words, "" for less."""
    if abs(drift) <= math.log1p(policy.speed_floor):
        return ""
    word = "slower" if drift > 0 else "faster"
    return f"the dense model itself is {abs(math.expm1(drift)):.0%} {word} than at the baseline"


def _canary(verdict: Verdict, now: Measurement, then: BaselineLine, policy: Policy, machine: float) -> Verdict:
    """The anchor's own absolute time: a loose bound that a slower dense model trips, and a slower machine does not.

        change = now / (then * max(1, yardstick now / yardstick then)) - 1

    A change that only the yardstick excuses is INCONCLUSIVE, so that it is seen: what slows the whole process, such as
    other threads in it, slows both.
    """
    slower = max(0.0, machine)
    change = now.value / (then.value * math.exp(slower)) - 1
    worse = direction(now.better) * change
    beyond, excused = worse > policy.canary, direction(now.better) * (now.value / then.value - 1) > policy.canary
    outcome = Outcome.REGRESSED if beyond else Outcome.INCONCLUSIVE if excused else Outcome.PASS
    note = (
        f"beyond a machine that is itself {math.expm1(slower):.0%} slower"
        if slower > math.log1p(policy.speed_floor)
        else ""
    )
    return replace(verdict, outcome=outcome, delta=change, margin=policy.canary, n=1, note=note, suspect=beyond)


_RULES: dict[str, Callable[..., Verdict]] = {
    "exact": _exact,
    "paired": _paired,
    "speed": _speed,
    "canary": _canary,
}
