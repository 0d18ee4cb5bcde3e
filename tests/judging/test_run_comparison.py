"""Two runs compared: every change is named, rounding and times are not, and damage is told by file and line."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning_bench.errors import RecordError
from pruning_bench.judging import run_comparison as module
from pruning_bench.judging.run_comparison import OTHER_EXAMPLES, OTHER_INPUTS, RunComparison, compare_runs
from pruning_bench.judging.vectors import pack, pack_classes, pack_scores
from pruning_bench.records import CaseStatus, Environment, Measurement, Run

OLD, NEW = Environment({"torch": "2.11.0", "cpu": "x"}), Environment({"torch": "2.14.1", "cpu": "x"})
CASE = "net-data/dense/eager"
LABELS = np.arange(100) % 10


def run_of(environment: Environment, *measured: Measurement, **fields: object) -> Run:
    return replace(Run("1", "now", "smoke", environment, (), measured), **fields)


def top1(predicted: np.ndarray, case: str = CASE, **fields: object) -> Measurement:
    right = predicted == LABELS[: len(predicted)]
    found = Measurement(case, "top1", float(right.mean()), "1", "higher", "paired", vector=pack(right))
    return replace(found, **{"detail": {"predictions": pack_classes(predicted)}, **fields})


def number(metric: str, value: float, case: str = CASE, **fields: object) -> Measurement:
    return replace(Measurement(case, metric, value, "B", "lower", "exact"), **fields)


def loss(value: float) -> Measurement:
    return Measurement(CASE, "loss", value, "1", "lower", "shown")


def flipped(count: int, offset: int = 0) -> np.ndarray:
    predicted = LABELS.copy()
    predicted[offset : offset + count] = (predicted[offset : offset + count] + 1) % 10
    return predicted


Compare = Callable[[Run, Run], RunComparison]


def check_counts(compare: Compare, then: np.ndarray, now: np.ndarray) -> None:
    """The counts against those of the arrays themselves."""
    found = compare(run_of(OLD, top1(then)), run_of(NEW, top1(now)))
    was, is_ = then == LABELS, now == LABELS
    expected = (int((was & ~is_).sum()), int((~was & is_).sum()), int((then != now).sum()))
    counts = [(c.lost, c.gained, c.flips) for c in found.changes]
    assert counts == ([expected] if any(expected) else []), f"{counts}, should be {expected}"


@given(st.lists(st.integers(0, 9), min_size=100, max_size=100), st.lists(st.integers(0, 99), max_size=20))
def test_lost_gained_and_flips_are_those_of_the_predictions(guesses: list[int], changed: list[int]) -> None:
    then = np.array(guesses)
    now = then.copy()
    now[changed] = (now[changed] + 3) % 10
    check_counts(compare_runs, then, now)


def by_value_alone(a: Run, b: Run) -> RunComparison:
    """Mutant: what has the same accuracy is the same."""
    found = compare_runs(a, b)
    return replace(found, changes=tuple(c for c in found.changes if c.a != c.b))


def swapped(a: Run, b: Run) -> RunComparison:
    """Mutant: A and B exchanged."""
    return compare_runs(b, a)


def by_correctness(a: Run, b: Run) -> RunComparison:
    """Mutant: a flip is what changes between right and wrong."""
    found = compare_runs(a, b)
    return replace(found, changes=tuple(replace(c, flips=(c.lost or 0) + (c.gained or 0)) for c in found.changes))


@pytest.mark.parametrize(
    ("mutant", "then", "now"),
    [
        (by_value_alone, flipped(3), flipped(3, offset=50)),
        (swapped, flipped(1), flipped(3, offset=50)),
        (by_correctness, flipped(3), (flipped(3) + (np.arange(100) < 3)) % 10),
    ],
)
def test_the_counts_reject(mutant: Compare, then: np.ndarray, now: np.ndarray) -> None:
    check_counts(compare_runs, then, now)
    with pytest.raises(AssertionError):
        check_counts(mutant, then, now)


def test_equal_runs_have_no_changes() -> None:
    measured = (top1(LABELS), number("bytes", 10), loss(0.5))
    found = compare_runs(run_of(OLD, *measured), run_of(NEW, *measured))
    assert (found.changes, found.rounded, found.only_a, found.only_b) == ((), 0, (), ()), found
    assert (found.cases, found.numbers, found.predictions) == (1, 3, 100), found
    assert found.environment == ("torch 2.11.0 -> 2.14.1",), found.environment


@pytest.mark.parametrize("factor", [1 + 1e-8, 1 + 1e-4])
def test_only_shown_numbers_may_differ_by_rounding(factor: float) -> None:
    then, now = (run_of(OLD, loss(0.5 * f), number("macs", 1e12 * f)) for f in (1, factor))
    found = compare_runs(then, now)
    changed = [change.metric for change in found.changes]
    small = factor < 1 + module.ROUNDING
    assert changed == (["macs"] if small else ["loss", "macs"]), f"{changed} for {factor}"
    assert found.rounded == small, found


def test_what_one_run_alone_has_is_named_with_the_reason() -> None:
    other = "net-data/static:w8a8/eager"
    status = CaseStatus(other, "error", "operator missing")
    a = run_of(OLD, number("bytes", 10), number("macs", 5), cases=(status,))
    b = run_of(NEW, number("bytes", 10), number("bytes", 4, other))
    found = compare_runs(a, b)
    assert found.only_a == (f"{CASE} macs",), found.only_a
    assert found.only_b == (f"{other} (error: operator missing)",), found.only_b
    assert found.changes == (), found.changes


@pytest.mark.parametrize(
    ("now", "note"),
    [
        (top1(LABELS, fingerprint="other"), OTHER_INPUTS),
        (top1(LABELS[:50], fingerprint=""), OTHER_EXAMPLES),
        (top1(LABELS, detail={"predictions": pack_classes(LABELS[:50])}), OTHER_EXAMPLES),
    ],
)
def test_what_is_not_the_same_thing_is_not_compared(now: Measurement, note: str) -> None:
    found = compare_runs(run_of(OLD, top1(LABELS)), run_of(NEW, now))
    assert [(c.note, c.flips) for c in found.changes] == [(note, None)], found.changes
    assert found.predictions == 0, found


def test_records_without_predictions_are_compared_by_correctness() -> None:
    found = compare_runs(run_of(OLD, top1(LABELS, detail={})), run_of(NEW, top1(flipped(2))))
    assert [(c.lost, c.gained, c.flips) for c in found.changes] == [(2, 0, None)], found.changes


def test_a_recipe_that_trains_is_marked() -> None:
    cases = (CaseStatus(CASE, "ran", trains=True),)
    found = compare_runs(run_of(OLD, top1(LABELS), cases=cases), run_of(NEW, top1(flipped(2)), cases=cases))
    assert [c.note for c in found.changes] == ["trains"], found.changes


def timed(ratio: float, error: float = 0.002) -> Measurement:
    fields = {"samples": (math.log(ratio),), "errors": (error,)}
    return Measurement(CASE, "relative_time", ratio, "1", "lower", "speed", **fields)


@pytest.mark.parametrize(
    ("now", "error", "differs"), [(0.5, 0.002, False), (0.51, 0.002, False), (0.6, 0.002, True), (0.6, 0.2, False)]
)
def test_times_are_compared_in_one_environment_alone(now: float, error: float, differs: bool) -> None:
    runs = run_of(OLD, timed(0.5)), run_of(OLD, timed(now, error))
    same = compare_runs(*runs)
    assert same.times is not None, "times of one environment should be compared"
    assert [case_id for case_id, _ in same.times] == [CASE] * differs, same.times
    assert same.timed == 1, same
    assert same.numbers == 0, "a time is no portable number"
    elsewhere = compare_runs(runs[0], replace(runs[1], environment=NEW))
    assert elsewhere.times is None, "times of two environments were compared"


@pytest.mark.parametrize(
    ("damaged", "words"),
    [
        (top1(LABELS, vector="100:!!"), "damaged"),
        (top1(LABELS, vector="nonsense"), "count"),
        (top1(LABELS, detail={"predictions": pack_classes(LABELS)[:-4]}), "damaged"),
        (top1(LABELS, detail={"predictions": 3}), "text"),
        (number("bytes", 1), "twice"),
    ],
    ids=["vector", "no vector", "cut predictions", "no predictions", "twice"],
)
def test_damage_is_told_by_file_and_line(damaged: Measurement, words: str) -> None:
    good, bad = run_of(OLD, number("bytes", 1), top1(LABELS)), run_of(NEW, number("bytes", 1), damaged)
    with pytest.raises(RecordError, match=words) as caught:
        compare_runs(good, bad, ("a.jsonl", "b.jsonl"))
    assert caught.value.where == "b.jsonl:3", str(caught.value)


def scored(*values: float, better: str = "higher") -> Measurement:
    scores = np.asarray(values, np.float32)
    return Measurement(CASE, "ssim", float(scores.mean()), "1", better, "paired", vector=pack_scores(scores))


def check_scores(compare: Compare) -> None:
    """Two examples are worse and one better; the other way round where lower is better."""
    for better, expected in (("higher", (2, 1)), ("lower", (1, 2))):
        then, now = scored(0.5, 0.5, 0.5, 0.5, better=better), scored(0.4, 0.3, 0.9, 0.5, better=better)
        found = compare(run_of(OLD, then), run_of(NEW, now))
        counts = [(change.lost, change.gained) for change in found.changes]
        assert counts == [expected], f"{better} is better: {counts}, should be {expected}"


def test_scores_are_compared_example_by_example() -> None:
    check_scores(compare_runs)


def test_the_check_of_scores_rejects_one_that_ignores_their_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    real = module._changed
    monkeypatch.setattr(module, "_changed", lambda then, now, better: real(then, now, "higher"))
    with pytest.raises(AssertionError, match="lower is better"):
        check_scores(compare_runs)


def test_scores_and_correctness_are_other_examples() -> None:
    right = Measurement(CASE, "ssim", 1.0, "1", "higher", "paired", vector=pack([True] * 4))
    (change,) = compare_runs(run_of(OLD, right), run_of(NEW, scored(1, 1, 1, 1))).changes
    assert change.note == OTHER_EXAMPLES, f"{change}"
