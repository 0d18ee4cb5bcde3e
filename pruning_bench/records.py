"""The record in which the compute and the results column meet: immutable, flat, versioned; no torch.

A run is one file of JSON lines: a header (`Run` without its measurements), then one `Measurement` a line.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args

from pruning_bench.errors import RecordError

SCHEMA = 1
# History of the format: 1 (2026-11) the first.

Better = Literal["lower", "higher", "neither"]
Rule = Literal["exact", "paired", "speed", "canary", "machine", "control", "shown"]
# exact   portable number that must not get worse at all (bytes, MACs, parameters)
# paired  accuracy with a per-example vector: paired test, or a test over seeds where the recipe trains
# speed   log ratio to the anchor, one sample a process: margin + interval + confirmation
# canary  absolute time of the anchor itself: a loose bound
# machine absolute time of fixed work beside it: how fast the machine is; kept, and never judged itself
# control must hold for the run to be valid (A/A twin, injected slow-down)
# shown   never judged


class Outcome(str, Enum):
    """How a case's metric compares with its baseline; the closed set of the suite."""

    PASS = "PASS"
    IMPROVED = "IMPROVED"
    REGRESSED = "REGRESSED"
    INCONCLUSIVE = "INCONCLUSIVE"
    NEW = "NEW"
    MISSING = "MISSING"
    INCOMPARABLE = "INCOMPARABLE"
    UNAVAILABLE = "UNAVAILABLE"
    ERROR = "ERROR"
    INVALID = "INVALID"


@dataclass(frozen=True)
class Measurement:
    """One number of one case.

    Args:
        case_id: id of the case.
        metric: name of the metric.
        value: the number, in `unit`; finite.
        unit: "s", "B", "MAC", "1" (a share or ratio), "count".
        better: which direction is better.
        rule: how it is judged.
        samples: raw samples in `unit`; for rule "speed" the log ratio to the anchor, one a process.
        errors: for rule "speed", the standard error of each sample inside its process.
        vector: for rule "paired", one bit per test example, 1 = right (`judging.vectors.pack`).
        fingerprint: digest of what the number depends on besides the code: checkpoint, data, metric version.
        detail: further numbers for the report (confusion matrix, flips), never judged.
    """

    case_id: str
    metric: str
    value: float
    unit: str
    better: Better
    rule: Rule
    samples: tuple[float, ...] = ()
    errors: tuple[float, ...] = ()
    vector: str = ""
    fingerprint: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for number in (self.value, *self.samples, *self.errors):
            if not math.isfinite(number):
                raise RecordError(self.metric, f"value {number}", "finite", self.case_id)
        if self.errors and len(self.errors) != len(self.samples):
            found = f"{len(self.errors)} errors of {len(self.samples)} samples"
            raise RecordError(self.metric, found, "one error a sample", self.case_id)


@dataclass(frozen=True)
class Environment:
    """Where a run was made.

    Args:
        must_match: what must be equal for times to be comparable: CPU or GPU model, cores, torch and runtime versions.
        info: everything else worth keeping (governor, load, operating system, git revision); never compared.
    """

    must_match: Mapping[str, str]
    info: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Short digest of `must_match`; names the file of the baselines for times."""
        return digest_of(dict(self.must_match))[:12]


CaseState = Literal["ran", "skipped", "error", "deselected", "not_run"]


@dataclass(frozen=True)
class CaseStatus:
    """What became of a case of the grid; `reason` says why it was skipped or crashed.

    Args:
        metrics: what the tests that ran to their end were due to record for this case; if absent it is MISSING.
        trains: the recipe trains weights, so that seeds are the unit of accuracy.
        whole: nothing that measures the case was left out or cut off, so that all that a baseline has of it is due.
        seconds: family -> how long its test took, building included; of those that ran to their end.
        extra: asked for by name and not of the profile, so that later runs of the profile need not yield it.
    """

    case_id: str
    state: CaseState
    reason: str = ""
    metrics: tuple[str, ...] = ()
    trains: bool = False
    extra: bool = False
    whole: bool = False
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """All that one run of the suite recorded.

    Args:
        id: file-name-safe, sortable by time.
        profile: smoke, ci, nightly or the user's own.
        cases: the whole grid of the profile, also what was not selected.
        interrupted: stopped before its end; never judged.
    """

    id: str
    created: str
    profile: str
    environment: Environment
    cases: tuple[CaseStatus, ...]
    measurements: tuple[Measurement, ...]
    interrupted: bool = False


def digest_of(value: Any) -> str:
    """sha256 of the canonical JSON of `value`, hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes the file whole or not at all: a reader sees the old content or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as problem:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(problem, OSError) and problem.filename is None:  # as when the disk is full
            problem.filename = str(path)
        raise


def to_line(record: Any) -> str:
    """One JSON line of a record, keys sorted, fields at their default left out."""
    fields = {f.name: f for f in dataclasses.fields(record)}
    kept = {
        name: value
        for name, value in dataclasses.asdict(record).items()
        if value not in ((), "", {}) or fields[name].default is dataclasses.MISSING is fields[name].default_factory
    }
    return json.dumps(kept, sort_keys=True)


def write_run(run: Run, path: Path) -> None:
    """Writes a run, atomically."""
    header = dataclasses.asdict(dataclasses.replace(run, measurements=()))
    del header["measurements"]
    count = len(run.measurements)  # tells a file that was cut between two lines
    lines = [json.dumps({"schema": SCHEMA, "kind": "run", "lines": count, **header}, sort_keys=True)]
    write_atomically(path, "\n".join([*lines, *map(to_line, run.measurements)]) + "\n")


def read_run(path: Path) -> Run:
    """Reads a run; raises `RecordError` naming file and line."""
    rows = read_lines(path, "run")
    measurements = tuple(read_measurement(row, f"{path}:{number}") for number, row in rows[1:])
    run, lines = _read_header(rows[0][1], path)
    if lines != len(measurements):
        raise RecordError("run", f"{len(measurements)} measurements", f"{lines}", f"{path}:{rows[-1][0]}")
    return dataclasses.replace(run, measurements=measurements)


def read_head(path: Path) -> Run:
    """A run without its measurements, from the first line alone; raises `RecordError` naming file and line."""
    return _read_header(read_lines(path, "run", first=True)[0][1], path)[0]


def _read_header(row: Mapping[str, Any], path: Path) -> tuple[Run, int]:
    """A run without its measurements, and how many there should be."""
    header = {key: value for key, value in row.items() if key not in ("schema", "kind")}
    try:
        lines = header.pop("lines")
        environment = Environment(**header.pop("environment"))
        cases = tuple(CaseStatus(**{**case, "metrics": tuple(case["metrics"])}) for case in header.pop("cases"))
        run = Run(**header, environment=environment, cases=cases, measurements=())
    except (KeyError, TypeError) as problem:
        found = f"field {problem} missing" if isinstance(problem, KeyError) else f"{problem}"
        raise RecordError("run", f"header with {found}", "what this suite writes", f"{path}:1") from None
    headers: list[Run | Environment | CaseStatus] = [run, environment, *cases]
    for record in headers:
        _check_header(record, f"{path}:1")
    return run, lines


_FLAGS = ("interrupted", "trains", "extra", "whole")


def _check_header(record: Run | Environment | CaseStatus, where: str) -> None:
    """Raises `RecordError` for a field of a header that is of another type than this suite writes."""
    for name, value in vars(record).items():
        if name in _FLAGS:
            fits, expected = isinstance(value, bool), "true or false"
        elif name == "state":
            fits, expected = value in get_args(CaseState), f"one of {', '.join(get_args(CaseState))}"
        elif name == "seconds":
            fits = isinstance(value, dict) and all(map(is_number, value.values()))
            expected = "numbers by family"
        elif name in ("must_match", "info"):
            fits = isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
            expected = "text by name"
        elif name == "metrics":
            fits, expected = all(isinstance(metric, str) for metric in value), "a list of names"
        else:
            fits, expected = isinstance(value, str) or name in ("environment", "cases", "measurements"), "text"
        if not fits:
            raise RecordError("run", f"{name} {value!r:.60}", expected, where)


_NEEDED = tuple(
    f.name
    for f in dataclasses.fields(Measurement)
    if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
)
_CHOICES = {"better": get_args(Better), "rule": get_args(Rule)}
_EXPECTED = {
    "value": "a number",
    "samples": "a list of numbers",
    "errors": "a list of numbers",
    "detail": "an object",
    **{name: f"one of {', '.join(choices)}" for name, choices in _CHOICES.items()},
}


def read_measurement(row: Mapping[str, Any], where: str) -> Measurement:
    """A measurement from its JSON object; raises `RecordError` with `where`."""
    for name in (f.name for f in dataclasses.fields(Measurement)):
        if name in _NEEDED and name not in row:
            raise RecordError("measurement", f"field {name!r} missing", "what this suite writes", where)
        if name in row and not _fits(name, row[name]):
            raise RecordError("measurement", f"{name} {row[name]!r}", _EXPECTED.get(name, "text"), where)
    if unknown := sorted(set(row) - {f.name for f in dataclasses.fields(Measurement)}):
        raise RecordError("measurement", f"unknown field {unknown[0]!r}", "what this suite writes", where)
    try:
        lists = {k: tuple(map(float, row[k])) for k in ("samples", "errors") if k in row}
        return Measurement(**{**row, **lists, "value": float(row["value"])})
    except OverflowError as problem:
        raise RecordError("measurement", f"{problem}", "a number of double precision", where) from None
    except RecordError as problem:
        raise RecordError(problem.who, problem.found, problem.expected, where) from None


def is_number(value: object) -> bool:
    """Whether a JSON value is a number, as it stands.

    Example:
        >>> is_number(1.5), is_number("1.5"), is_number(True)
        (True, False, False)
    """
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _fits(name: str, value: Any) -> bool:
    """Whether a JSON value may stand in the field of a measurement."""
    if name in ("samples", "errors"):
        return isinstance(value, list) and all(map(is_number, value))
    if name == "value":
        return is_number(value)
    if name == "detail":
        return isinstance(value, dict)
    return value in _CHOICES[name] if name in _CHOICES else isinstance(value, str)


def read_lines(path: Path, kind: str, *, first: bool = False) -> list[tuple[int, dict[str, Any]]]:
    """(line number, object) of a JSON-lines file whose first line says `kind` and the schema.

    Args:
        first: only of that line.
    Raises:
        RecordError: missing file, a line that is no JSON object, a foreign or newer file; with `file:line`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise RecordError(kind, f"unreadable file ({problem})", f"a {kind} file", str(path)) from None
    if first and "\n" in text:
        text = text[: text.index("\n") + 1]
    rows: list[tuple[int, dict[str, Any]]] = []
    # Not splitlines(): it also splits at characters that may stand inside a JSON string.
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as problem:
            raise RecordError(kind, f"no JSON ({problem})", "one JSON object a line", f"{path}:{number}") from None
        if not isinstance(row, dict):
            raise RecordError(kind, f"{type(row).__name__}", "one JSON object a line", f"{path}:{number}")
        rows.append((number, row))
    if not rows or rows[0][1].get("kind") != kind:
        raise RecordError(kind, "a foreign file", f"a first line with kind {kind!r}", f"{path}:1")
    if rows[0][1].get("schema") != SCHEMA:
        raise RecordError(kind, f"schema {rows[0][1].get('schema')!r}", f"schema {SCHEMA}", f"{path}:1")
    if not text.endswith("\n"):
        raise RecordError(kind, "a truncated file", "a last line that ends", f"{path}:{rows[-1][0]}")
    return rows


def merge(parts: Iterable[Measurement]) -> tuple[Measurement, ...]:
    """Measurements of several processes: of one case and metric of rule "speed" the samples are joined, in order.

    The detail is that of the process with the fewest pairs.
    """
    joined: dict[tuple[str, str], Measurement] = {}
    for part in parts:
        key = (part.case_id, part.metric)
        first = joined.get(key)
        if first is None or part.rule != "speed":
            joined[key] = part
            continue
        if part.fingerprint != first.fingerprint:
            found = f"fingerprints {first.fingerprint!r} and {part.fingerprint!r}"
            raise RecordError(part.metric, found, "one for all processes", part.case_id)
        samples = first.samples + part.samples
        if not samples:
            raise RecordError(part.metric, "no samples", "one a process", part.case_id)
        joined[key] = dataclasses.replace(
            first,
            samples=samples,
            errors=first.errors + part.errors,
            value=math.exp(sum(samples) / len(samples)),
            detail=min(first.detail, part.detail, key=_pairs),
        )
    return tuple(joined.values())


def _pairs(detail: Mapping[str, Any]) -> float:
    pairs = detail.get("pairs")
    return pairs if isinstance(pairs, int) else math.inf
