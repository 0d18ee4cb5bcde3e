"""How long a run will take: what earlier runs took, in the right order of trust; a guess is counted as one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pruning_bench.judging.durations import GUESSES, LOOKED_AT, Expected, earlier_runs, expect
from pruning_bench.judging.history import run_path
from pruning_bench.records import CaseStatus, Environment, Run, write_run

HERE, ELSEWHERE = Environment({"cpu": "a"}), Environment({"cpu": "b"})
CASE, OTHER, NEW = (f"net-data/{recipe}/eager" for recipe in ("dense", "magnitude:0.5", "l1_filter:0.5"))


def run_of(run_id: str, seconds: dict[str, dict[str, float]], environment: Environment = HERE) -> Run:
    cases = tuple(CaseStatus(case, "ran", seconds=took) for case, took in seconds.items())
    return Run(run_id, "now", "ci", environment, cases, ())


Expect = Callable[..., Expected]


def check(expect: Expect) -> None:
    newer = run_of("2", {CASE: {"quality": 10.0}})
    older = run_of("1", {CASE: {"quality": 100.0, "latency": 3.0}, OTHER: {"quality": 20.0}})
    tests = [("quality", CASE), ("latency", CASE), ("quality", OTHER), ("quality", NEW), ("footprint", NEW)]
    found = expect(tests, [newer, older])
    # of NEW nothing is known: the median of 10 and 20, and for a family that nobody timed the rough figure
    assert found == Expected(10.0 + 3.0 + 20.0 + 15.0 + GUESSES["footprint"], 3, 2, ("2", "1")), found


def test_each_test_takes_what_it_took_last() -> None:
    check(expect)


def oldest_first(tests: list[tuple[str, str]], earlier: list[Run]) -> Expected:
    """Mutant: the oldest run is trusted most."""
    return expect(tests, earlier[::-1])


def by_case_alone(tests: list[tuple[str, str]], earlier: list[Run]) -> Expected:
    """Mutant: a case takes the same in every family."""
    return expect([("quality", case) for _, case in tests], earlier)


def sure(tests: list[tuple[str, str]], earlier: list[Run]) -> Expected:
    """Mutant: a guess passes for knowledge."""
    found = expect(tests, earlier)
    return replace(found, known=found.known + found.guessed, guessed=0)


@pytest.mark.parametrize("mutant", [oldest_first, by_case_alone, sure])
def test_the_check_bites(mutant: Expect) -> None:
    with pytest.raises(AssertionError):
        check(mutant)


def test_without_a_record_everything_is_guessed() -> None:
    found = expect([("quality", CASE), ("latency", CASE)], [])
    assert found == Expected(GUESSES["quality"] + GUESSES["latency"], 0, 2, ()), found


def test_runs_of_this_machine_come_first_and_damaged_ones_not_at_all(tmp_path: Path) -> None:
    for run_id, environment in (("1", HERE), ("2", ELSEWHERE), ("3", HERE), ("4", ELSEWHERE)):
        write_run(run_of(run_id, {CASE: {"quality": 1.0}}, environment), run_path(tmp_path, run_id))
    (tmp_path / "5.jsonl").write_text("half writ")
    found = [run.id for run in earlier_runs(tmp_path, HERE)]
    assert found == ["3", "1", "4", "2"], f"{found}, should be this machine's, then the newest"
    assert earlier_runs(tmp_path, HERE)[0].cases[0].seconds == {"quality": 1.0}, "what the record tells"


def test_only_the_latest_runs_are_read(tmp_path: Path) -> None:
    for number in range(LOOKED_AT + 3):
        write_run(run_of(f"{number:03}", {}), run_path(tmp_path, f"{number:03}"))
    assert len(earlier_runs(tmp_path, HERE)) == LOOKED_AT, "as many as are looked at"
