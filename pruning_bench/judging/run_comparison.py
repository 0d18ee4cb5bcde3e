"""Two recorded runs, number by number and prediction by prediction: what differs in all that no machine decides.

Typically the same cases with two versions of torch. Nothing is judged: a change is named, however small.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pruning_bench.errors import RecordError
from pruning_bench.judging import vectors
from pruning_bench.judging.baseline import PORTABLE, differences
from pruning_bench.judging.policy import Policy
from pruning_bench.judging.statistics import Estimate
from pruning_bench.records import Measurement, Run

OF_THE_MACHINE = frozenset({"relative_time", "strongest_ratio", "peak_memory"})  # besides everything in seconds
ROUNDING = 1e-6  # of its size: a mean of floats that differs by less has been summed otherwise
OTHER_INPUTS = "another checkpoint, data set or metric definition"
OTHER_EXAMPLES = "another number of examples"


@dataclass(frozen=True)
class Change:
    """A number that differs, or whose examples do.

    Args:
        a, b: its value in each run, in `unit`.
        lost, gained: examples right only in A, only in B; None where correctness is not recorded.
        flips: examples whose predicted class differs; None where predictions are not recorded.
        note: why it was to be expected, or why the two are not the same thing; else "".
    """

    case_id: str
    metric: str
    unit: str
    a: float
    b: float
    lost: int | None = None
    gained: int | None = None
    flips: int | None = None
    note: str = ""


@dataclass(frozen=True)
class RunComparison:
    """Run B against run A.

    Args:
        environment: what differs, as "torch 2.11.0 -> 2.14.1".
        cases, numbers, predictions: how many of each both runs hold and were compared.
        changes: what differs, in the order of A.
        rounded: how many numbers that are only shown differ by no more than `ROUNDING`; they are not among the changes.
        only_a, only_b: "case metric" or "case (state: reason)" of what one run alone measured.
        times: cases whose time against the dense model differs beyond the margin and the noise inside both processes,
            with the estimated log ratio B / A; None where the environments differ, so that times were not compared.
        timed: how many cases both runs timed.
    """

    a: Run
    b: Run
    environment: tuple[str, ...]
    cases: int
    numbers: int
    predictions: int
    changes: tuple[Change, ...]
    rounded: int
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    times: tuple[tuple[str, Estimate], ...] | None
    timed: int = 0


def is_portable(found: Measurement) -> bool:
    """Whether a number should be the same on every machine: no time, nothing made of times, no control."""
    shown = found.rule == "shown" and found.unit != "s" and found.metric not in OF_THE_MACHINE
    return found.rule in PORTABLE or shown


def compare_runs(a: Run, b: Run, where: tuple[str, str] = ("A", "B"), policy: Policy | None = None) -> RunComparison:
    """Compares what both runs recorded.

    Args:
        where: the files that they were read from, for messages.
    Raises:
        RecordError: a damaged vector, or one case's metric twice; with `file:line`.
    Example:
        >>> from pruning_bench.records import Environment
        >>> def run(torch, size):
        ...     found = Measurement("net-data/dense/eager", "bytes", size, "B", "lower", "exact")
        ...     return Run("1", "", "smoke", Environment({"torch": torch}), (), (found,))
        >>> found = compare_runs(run("2.11", 1000), run("2.14", 1001))
        >>> found.environment, [(change.metric, change.b - change.a) for change in found.changes]
        (('torch 2.11 -> 2.14',), [('bytes', 1)])
    """
    sides = [_by_key(run, file) for run, file in zip((a, b), where, strict=True)]
    shared = [key for key in sides[0] if key in sides[1]]
    trains = {case.case_id for run in (a, b) for case in run.cases if case.trains}
    changes, rounded, predictions = [], 0, 0
    for key in shared:
        change, compared = _compared(sides[0][key], sides[1][key], key[0] in trains)
        predictions += compared
        if _is_rounding(sides[0][key][0], change):
            rounded += 1
        elif change.a != change.b or change.lost or change.gained or change.flips or change.note in _NOT_COMPARABLE:
            changes.append(change)
    environment = differences(a.environment.must_match, b.environment.must_match)
    return RunComparison(
        a,
        b,
        tuple(environment),
        cases=len({case_id for case_id, _ in shared}),
        numbers=len(shared),
        predictions=predictions,
        changes=tuple(changes),
        rounded=rounded,
        only_a=_alone(sides[0], sides[1], b),
        only_b=_alone(sides[1], sides[0], a),
        times=None if environment else _times(a, b, policy or Policy()),
        timed=len(_ratios(a).keys() & _ratios(b).keys()),
    )


_NOT_COMPARABLE = (OTHER_INPUTS, OTHER_EXAMPLES)
_Key = tuple[str, str]
_Side = dict[_Key, tuple[Measurement, str]]


def _by_key(run: Run, file: str) -> _Side:
    """(case, metric) -> the portable measurement and where it stands."""
    found: _Side = {}
    for line, measurement in enumerate(run.measurements, 2):  # the header is the first
        if not is_portable(measurement):
            continue
        key, place = (measurement.case_id, measurement.metric), f"{file}:{line}"
        if key in found:
            raise RecordError("run", f"{key[1]} of {key[0]} twice", "there once", place)
        found[key] = measurement, place
    return found


def _compared(one: tuple[Measurement, str], other: tuple[Measurement, str], trains: bool) -> tuple[Change, int]:
    """What differs between two measurements of one metric, and how many predictions were compared."""
    (a, _), (b, _) = one, other
    values = (a.case_id, a.metric, a.unit, a.value, b.value)
    if (a.fingerprint, a.unit, a.rule) != (b.fingerprint, b.unit, b.rule):
        return Change(*values, note=OTHER_INPUTS), 0
    note = "trains" if trains else ""
    lost = gained = flips = None
    compared = 0
    if a.vector and b.vector:
        then, now = (vectors.unpack(found.vector, place) for found, place in (one, other))
        if then.shape != now.shape or then.dtype != now.dtype:
            return Change(*values, note=OTHER_EXAMPLES), 0
        lost, gained = _changed(then, now, a.better)
    if all("predictions" in found.detail for found in (a, b)):
        classes = [vectors.unpack_classes(_text(found.detail, place), place) for found, place in (one, other)]
        if len(classes[0]) != len(classes[1]):
            return Change(*values, note=OTHER_EXAMPLES), 0
        flips, compared = int(np.count_nonzero(classes[0] != classes[1])), len(classes[0])
    return Change(*values, lost, gained, flips, note), compared


def _changed(then: npt.NDArray[Any], now: npt.NDArray[Any], better: str) -> tuple[int, int]:
    """How many examples are worse in the second run, and how many better: by right or wrong, or by their scores."""
    if then.dtype == np.bool_:
        lost, gained = vectors.flips(then, now)
        return len(lost), len(gained)
    less, more = int((now < then).sum()), int((now > then).sum())
    return (less, more) if better == "higher" else (more, less)


def _text(detail: Mapping[str, Any], place: str) -> str:
    text = detail["predictions"]
    if not isinstance(text, str):
        raise RecordError("classes", f"predictions {text!r:.40}", "text", place)
    return text


def _is_rounding(a: Measurement, change: Change) -> bool:
    """Whether a number that is only shown differs by rounding alone."""
    same = a.rule == "shown" and not change.flips and change.note not in _NOT_COMPARABLE
    return same and change.a != change.b and math.isclose(change.a, change.b, rel_tol=ROUNDING)


def _alone(own: Iterable[_Key], other: Iterable[_Key], other_run: Run) -> tuple[str, ...]:
    """What only one run measured: cases with what became of them in the other, and single metrics."""
    there = set(other)
    cases_there = {case_id for case_id, _ in there}
    states = {case.case_id: f"{case.state}: {case.reason}".rstrip(": ") for case in other_run.cases}
    found: dict[str, None] = {}
    for case_id, metric in own:
        if case_id not in cases_there:
            found[f"{case_id} ({states.get(case_id, 'not among its cases')})"] = None
        elif (case_id, metric) not in there:
            found[f"{case_id} {metric}"] = None
    return tuple(found)


def _times(a: Run, b: Run, policy: Policy) -> tuple[tuple[str, Estimate], ...]:
    """Changes of the time against the dense model that are beyond the smallest margin, with their interval."""
    then, now = _ratios(a), _ratios(b)
    found = []
    for case_id in (case_id for case_id in then if case_id in now):
        one, other = then[case_id], now[case_id]
        change = Estimate(other.value - one.value, math.hypot(one.error, other.error))
        low, high = change.interval(policy.confidence)
        if max(low, -high) > math.log1p(policy.speed_floor):
            found.append((case_id, change))
    return tuple(found)


def _ratios(run: Run) -> dict[str, Estimate]:
    """Case -> mean log ratio to the dense model, with the error that its processes see inside themselves."""
    timed = [m for m in run.measurements if m.rule == "speed" and m.samples and m.errors]
    return {
        m.case_id: Estimate(math.fsum(m.samples) / len(m.samples), math.hypot(*m.errors) / len(m.errors)) for m in timed
    }
