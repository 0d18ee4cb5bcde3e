"""How long tests will take, from what earlier runs took; where they do not tell, a guess that is called one."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pruning_bench.errors import RecordError
from pruning_bench.judging.history import run_files
from pruning_bench.records import Environment, Run, read_head

LONG_SECONDS = 180.0  # from here on it is worth a line before it starts
LOOKED_AT = 10  # latest runs
# Rough, of the order of what the shipped models take on two cores; for a machine without any record.
GUESSES: Mapping[str, float] = {"quality": 8.0, "footprint": 1.0, "latency": 6.0}
OTHERWISE = 5.0


@dataclass(frozen=True)
class Expected:
    """How long some tests will take.

    Args:
        seconds: all of them together; measuring suspects again not included.
        known: how many of them an earlier run tells of.
        guessed: how many it does not.
        runs: ids of the runs that tell, the best first.
    """

    seconds: float
    known: int
    guessed: int
    runs: tuple[str, ...]


def earlier_runs(folder: Path, environment: Environment) -> list[Run]:
    """The latest runs of a folder without their measurements, those of the same environment first, then the newest.

    A file that cannot be read tells nothing; whoever judges it will hear of it.
    """
    found = []
    for path in reversed(run_files(folder)[-LOOKED_AT:]):
        try:
            found.append(read_head(path))
        except RecordError:
            continue
    return sorted(found, key=lambda run: run.environment.key != environment.key)


def expect(tests: Iterable[tuple[str, str]], earlier: Iterable[Run]) -> Expected:
    """How long tests, each a (family, case id), will take together.

    A test takes what it took in the first run that has it; one that none has takes the median of its family there, or
    what `GUESSES` says.

    Example:
        >>> from pruning_bench.records import CaseStatus
        >>> status = CaseStatus("net-data/dense/eager", "ran", seconds={"quality": 30.0})
        >>> run = Run("1", "now", "ci", Environment({}), (status,), ())
        >>> expect([("quality", "net-data/dense/eager"), ("quality", "net-data/new:0.5/eager")], [run])
        Expected(seconds=60.0, known=1, guessed=1, runs=('1',))
    """
    took: dict[tuple[str, str], tuple[float, str]] = {}
    for run in earlier:
        for case in run.cases:
            for family, seconds in case.seconds.items():
                took.setdefault((family, case.case_id), (seconds, run.id))
    by_family: dict[str, list[float]] = {}
    for (family, _), (seconds, _) in took.items():
        by_family.setdefault(family, []).append(seconds)
    total, known, guessed = 0.0, 0, 0
    runs: dict[str, None] = {}
    for family, case_id in tests:
        if (found := took.get((family, case_id))) is not None:
            total, known = total + found[0], known + 1
            runs[found[1]] = None
        else:
            others = by_family.get(family)
            total += statistics.median(others) if others else GUESSES.get(family, OTHERWISE)
            guessed += 1
    return Expected(total, known, guessed, tuple(runs))
