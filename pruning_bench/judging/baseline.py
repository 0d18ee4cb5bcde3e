"""Baselines: what cases measured when somebody accepted it; files made to be reviewed as a diff.

A folder holds `portable.jsonl` (rules exact and paired) and, for each environment, `times-<key>.jsonl` (speed,
canary and machine). Each is a header line, which counts the others, and one sorted line per case and metric.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from pruning_bench.errors import RecordError
from pruning_bench.judging import vectors
from pruning_bench.judging.processes import Processes
from pruning_bench.records import SCHEMA, Better, Environment, Rule, is_number, read_lines, write_atomically

PORTABLE: tuple[Rule, ...] = ("exact", "paired")
TIMED: tuple[Rule, ...] = ("speed", "canary", "machine")
ABSOLUTE: tuple[Rule, ...] = ("canary", "machine")  # of several processes the best counts: a busy machine only slows
Scope = Literal["portable", "times", "all"]
PORTABLE_FILE = "portable.jsonl"
WHO = "baseline"
TINY = 1e-12  # no time in seconds and no ratio of times is smaller, or larger than its inverse
MOST_SPREAD = 1.0  # of log ratios: processes that differ by a factor e are fit for no comparison


@dataclass(frozen=True)
class BaselineLine:
    """One metric of one case as it was accepted.

    Args:
        case_id, metric, unit, better, rule, fingerprint, vector: as in `Measurement`.
        value: the number; for rule "speed" exp of the mean log ratio over processes.
        spread, within, processes: for rule "speed", in log ratios: see `processes.Processes`.
        margin: of a score, what it was accepted with, in `unit`; 0 where there is none, or it was not kept yet.
        trains: the case's recipe trains, so that the seed is the unit of its accuracy.
        profiles: the profiles that yield the case, sorted.
        reason, run: why and from which run it was accepted.
    """

    case_id: str
    metric: str
    value: float
    unit: str
    better: Better
    rule: Rule
    fingerprint: str = ""
    spread: float = 0.0
    within: float = 0.0
    processes: int = 0
    margin: float = 0.0
    vector: str = ""
    trains: bool = False
    profiles: tuple[str, ...] = ()
    reason: str = ""
    run: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """(case id, metric): what a line is found by."""
        return self.case_id, self.metric

    @property
    def summary(self) -> Processes:
        """For rule "speed": the log ratios of its processes."""
        return Processes(self.processes, math.log(self.value), self.spread, self.within)


Lines = Mapping[tuple[str, str], BaselineLine]


@dataclass(frozen=True)
class Times:
    """Times accepted in one environment, by case and metric."""

    must_match: Mapping[str, str]
    lines: Lines


@dataclass(frozen=True)
class Baseline:
    """All accepted lines of a folder.

    Args:
        portable: lines that hold on every machine, by case and metric.
        times: key of an environment -> its times.
    """

    portable: Lines = field(default_factory=dict)
    times: Mapping[str, Times] = field(default_factory=dict)

    def own_times(self, environment: Environment) -> Lines:
        """The lines that times of this environment may be compared with."""
        found = self.times.get(environment.key)
        return found.lines if found else {}

    def foreign_times(self, environment: Environment, key: tuple[str, str]) -> Times | None:
        """Times of another environment that hold this case and metric; the most similar environment."""
        others = [t for name, t in self.times.items() if name != environment.key and key in t.lines]
        return min(others, key=lambda t: len(differences(t.must_match, environment.must_match)), default=None)

    def metrics(self, profile: str, environment: Environment) -> dict[str, set[str]]:
        """Case of a profile -> its metrics with a line which counts here: portable, or times of this environment."""
        found: dict[str, set[str]] = {}
        for line in (*self.portable.values(), *self.own_times(environment).values()):
            if profile in line.profiles:
                found.setdefault(line.case_id, set()).add(line.metric)
        return found


def differences(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What two environments do not share, as "name then -> now".

    Example:
        >>> differences({"torch": "2.13", "cores": "2"}, {"torch": "2.14", "cores": "2"})
        ['torch 2.13 -> 2.14']
    """
    names = sorted({*then, *now})
    return [f"{n} {then.get(n, 'none')} -> {now.get(n, 'none')}" for n in names if then.get(n) != now.get(n)]


def read_baseline(folder: Path) -> Baseline:
    """All baselines of a folder; one that is not there is empty.

    Raises:
        RecordError: a truncated, foreign or damaged file, two lines for one case and metric, more or fewer lines than
            the header says; with `file:line`.
    """
    portable: Lines = {}
    if (path := folder / PORTABLE_FILE).exists():
        portable = _read_file(path, PORTABLE)[1]
    times = {}
    for path in sorted(folder.glob("times-*.jsonl")):
        header, lines = _read_file(path, TIMED)
        must_match = header.get("must_match")
        if not isinstance(must_match, dict):
            raise RecordError(WHO, "a header without must_match", "the environment of the times", f"{path}:1")
        key = Environment({str(k): str(v) for k, v in must_match.items()}).key
        if path.name != times_file(key):
            raise RecordError(WHO, "times of another environment", f"in a file {times_file(key)}", f"{path}:1")
        times[key] = Times(must_match, lines)
    return Baseline(portable, times)


def write_baseline(baseline: Baseline, folder: Path, scope: Scope = "all") -> list[Path]:
    """Writes what differs from the files of that scope there, each atomically; returns the paths written."""
    texts = {}
    if scope != "times" and (baseline.portable or (folder / PORTABLE_FILE).exists()):
        texts[PORTABLE_FILE] = _text({"scope": "portable"}, baseline.portable)
    for key, times in baseline.times.items() if scope != "portable" else ():
        texts[times_file(key)] = _text({"scope": "times", "must_match": dict(times.must_match)}, times.lines)
    written = []
    for name, text in texts.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_atomically(path, text)
            written.append(path)
    return written


def times_file(key: str) -> str:
    """Name of the file with the times of an environment.

    Example:
        >>> times_file("0123456789ab")
        'times-0123456789ab.jsonl'
    """
    return f"times-{key}.jsonl"


def by_key(lines: Iterable[BaselineLine]) -> dict[tuple[str, str], BaselineLine]:
    """Lines by case and metric, sorted; a later one replaces an earlier one."""
    return dict(sorted({line.key: line for line in lines}.items()))


def _text(header: Mapping[str, Any], lines: Lines) -> str:
    count = len(lines)  # tells a file that was cut between two lines
    first = json.dumps({"schema": SCHEMA, "kind": WHO, "lines": count, **header}, sort_keys=True, ensure_ascii=False)
    return "\n".join([first, *map(_to_line, by_key(lines.values()).values())]) + "\n"


def _to_line(line: BaselineLine) -> str:
    """JSON in the order of the fields, what is at its default left out."""
    kept = {f.name: getattr(line, f.name) for f in dataclasses.fields(line) if getattr(line, f.name) != f.default}
    return json.dumps(kept, ensure_ascii=False)


def _read_file(path: Path, rules: tuple[Rule, ...]) -> tuple[dict[str, Any], Lines]:
    rows = read_lines(path, WHO)
    scope = rows[0][1].get("scope")
    if scope != (expected := "portable" if rules == PORTABLE else "times"):
        raise RecordError(WHO, f"scope {scope!r}", repr(expected), f"{path}:1")
    lines: dict[tuple[str, str], BaselineLine] = {}
    for number, row in rows[1:]:
        line = _read_line(row, rules, f"{path}:{number}")
        if line.key in lines:
            raise RecordError(WHO, f"{line.metric} of {line.case_id} twice", "there once", f"{path}:{number}")
        lines[line.key] = line
    count, found = rows[0][1].get("lines", len(lines)), len(lines)  # files of before there was a count do not say
    if count != found:
        expected = f'{count!r} as the first line says: restore the file, or after a merge write "lines": {found} there'
        raise RecordError(WHO, f"{found} lines", expected, f"{path}:1")
    return rows[0][1], lines


_TEXT = ("case_id", "metric", "unit", "better", "rule", "fingerprint", "vector", "reason", "run")


def _read_line(row: Mapping[str, Any], rules: tuple[Rule, ...], where: str) -> BaselineLine:
    names = [f.name for f in dataclasses.fields(BaselineLine)]
    if unknown := sorted(set(row) - set(names)):
        raise RecordError(WHO, f"unknown field {unknown[0]!r}", f"one of {', '.join(names)}", where)
    try:
        line = BaselineLine(**{**row, "profiles": tuple(row.get("profiles", ()))})
        given = (line.value, line.spread, line.within, line.processes, line.margin)
        numbers = [float(x) for x in given if is_number(x)]
    except (TypeError, ValueError, OverflowError) as problem:
        raise RecordError(WHO, str(problem), "a line of a baseline", where) from None
    if wrong := next((n for n in _TEXT if not isinstance(getattr(line, n), str)), None):
        raise RecordError(WHO, f"{wrong} {getattr(line, wrong)!r}", "text", where)
    if isinstance(row.get("profiles"), str) or not all(isinstance(name, str) for name in line.profiles):
        raise RecordError(WHO, f"profiles {row.get('profiles')!r}", "a list of names", where)
    if not isinstance(line.trains, bool) or not isinstance(line.processes, int):
        raise RecordError(WHO, f"trains {line.trains!r}, processes {line.processes!r}", "true or false, a count", where)
    if line.rule not in rules or line.better not in get_args(Better):
        found = f"rule {line.rule!r}, better {line.better!r}"
        raise RecordError(WHO, found, f"rule {' or '.join(rules)}, better {' or '.join(get_args(Better))}", where)
    if len(numbers) < len(given) or not all(map(math.isfinite, numbers)) or min(numbers[1:]) < 0:
        found = f"value {line.value!r}, spread {line.spread!r}, within {line.within!r}, margin {line.margin!r}"
        raise RecordError(WHO, found, "finite numbers, all but the value not negative", where)
    if line.vector:
        vectors.check_mean(vectors.unpack(line.vector, where), line.value, line.better, WHO, where)
    check_time(line, where)
    return line


def check_time(line: BaselineLine, where: str) -> None:
    """Raises `RecordError` for a time that nothing can be compared with; portable lines pass."""
    if line.rule in TIMED and not TINY < line.value < 1 / TINY:
        raise RecordError(WHO, f"{line.metric} {line.value:.6g}", f"above {TINY:g} and below {1 / TINY:g}", where)
    if line.rule != "speed":
        return
    if line.processes < 1:
        raise RecordError(WHO, f"a ratio of {line.processes} processes", "of 1 or more", where)
    if max(line.spread, line.within) > MOST_SPREAD:
        found = f"spread {line.spread:.6g}, within {line.within:.6g}"
        raise RecordError(WHO, found, f"at most {MOST_SPREAD:g} (log ratios)", where)
