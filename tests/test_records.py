"""Records: they read back as written, a write is whole or not at all, and foreign files are named with their line."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning_bench import records
from pruning_bench.errors import RecordError, one_line
from pruning_bench.records import (
    Better,
    CaseState,
    CaseStatus,
    Environment,
    Measurement,
    Rule,
    Run,
    merge,
    read_measurement,
    read_run,
    to_line,
    write_atomically,
    write_run,
)

# Some of which str.splitlines() takes for line ends (U+2028, U+0085) or UTF-8 cannot hold (a lone surrogate).
texts = st.text(max_size=12) | st.sampled_from(["", "\u2028", "\x85", "\ud800", "\r\n", "ä\x0b"])
finite = st.floats(allow_nan=False, allow_infinity=False)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | finite | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)


@st.composite
def measurements(draw: st.DrawFn) -> Measurement:
    samples = draw(st.lists(finite, max_size=3).map(tuple), label="samples")
    return Measurement(
        case_id=draw(texts, label="case_id"),
        metric=draw(texts, label="metric"),
        value=draw(finite, label="value"),
        unit=draw(st.sampled_from(["s", "B", "MAC", "1", "count"]), label="unit"),
        better=draw(st.sampled_from(get_args(Better)), label="better"),
        rule=draw(st.sampled_from(get_args(Rule)), label="rule"),
        samples=samples,
        errors=draw(st.just(()) | st.just(tuple(abs(x) for x in samples)), label="errors"),
        vector=draw(texts, label="vector"),
        fingerprint=draw(texts, label="fingerprint"),
        detail=draw(st.dictionaries(texts, plain, max_size=2), label="detail"),
    )


statuses = st.builds(
    CaseStatus,
    texts,
    st.sampled_from(get_args(CaseState)),
    texts,
    st.lists(texts, max_size=2).map(tuple),
    st.booleans(),
)
environments = st.builds(
    Environment, st.dictionaries(texts, texts, max_size=2), st.dictionaries(texts, texts, max_size=2)
)
runs = st.builds(
    Run,
    texts,
    texts,
    texts,
    environments,
    st.lists(statuses, max_size=3).map(tuple),
    st.lists(measurements(), max_size=3).map(tuple),
    st.booleans(),
)

ONE = Measurement("net-data/dense/eager", "top1", 0.5, "1", "higher", "paired")
SPEED = Measurement("net-data/dense/eager", "relative_time", 1.0, "1", "lower", "speed", samples=(0.0,), errors=(0.1,))
RUN = Run(
    "run",
    "2026-01-01",
    "smoke",
    Environment({"cpu": "x"}),
    (CaseStatus("net-data/dense/eager", "ran"),),
    (ONE, SPEED),
)


def raw_line(record: Measurement) -> str:
    """Mutant of `to_line`: leaves characters outside ASCII as they are."""
    return json.dumps(dataclasses.asdict(record), ensure_ascii=False)


@settings(max_examples=100, deadline=None)
@given(run=runs)
def test_runs_read_back(run: Run, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("runs") / "run.jsonl"
    write_run(run, path)
    assert read_run(path) == run, f"{path.read_text()!r} reads back as {read_run(path)}, should be {run}"


@given(measurement=measurements())
def test_a_line_is_one_line_and_sorted(measurement: Measurement) -> None:
    line = to_line(measurement)
    assert len(line.splitlines()) == 1, f"{line!r} is {len(line.splitlines())} lines, should be one"
    assert list(json.loads(line)) == sorted(json.loads(line)), f"{line!r} should have its keys sorted"
    back = read_measurement(json.loads(line), "here")
    assert back == measurement, f"{line!r} reads back as {back}, should be {measurement}"


def test_one_line_rejects_raw_separators() -> None:
    assert len(raw_line(dataclasses.replace(ONE, vector="\u2028a")).splitlines()) == 2, "the mutant should break a line"


def test_fields_at_their_default_are_left_out() -> None:
    expected = ["better", "case_id", "metric", "rule", "unit", "value"]
    assert list(json.loads(to_line(ONE))) == expected, f"{to_line(ONE)} should hold {expected}"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["value", "samples", "errors"])
def test_numbers_must_be_finite(field: str, bad: float) -> None:
    change: dict[str, Any] = {field: bad if field == "value" else (bad,)}
    with pytest.raises(RecordError, match="should be finite"):
        dataclasses.replace(SPEED, **change)


def test_errors_must_be_one_a_sample() -> None:
    with pytest.raises(RecordError, match="2 errors of 1 samples"):
        dataclasses.replace(SPEED, errors=(0.1, 0.1))


@given(environments, environments)
def test_the_key_is_that_of_what_must_match(a: Environment, b: Environment) -> None:
    same = dict(a.must_match) == dict(b.must_match)
    assert (a.key == b.key) == same, f"keys {a.key} and {b.key} of {a.must_match} and {b.must_match}"


class Crash(BaseException):
    """What stops a process in the middle of a write."""


@pytest.mark.parametrize("crashing", ["fsync", "replace", "chmod"])
@pytest.mark.parametrize("before", [None, "the old text\n"])
def test_a_crash_in_a_write_leaves_the_old_file(
    before: str | None, crashing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "baseline.jsonl"
    if before is not None:
        path.write_text(before)

    def crash(*args: object) -> None:
        raise Crash

    monkeypatch.setattr(records.os, crashing, crash)
    with pytest.raises(Crash):
        write_atomically(path, "the new text\n")
    check_old_or_new(path, before, "the new text\n")
    assert not path.exists() or path.read_text() == before, f"{path.read_text()!r}, should still be {before!r}"
    left = sorted(p.name for p in tmp_path.iterdir())
    assert left == ([] if before is None else [path.name]), f"{left} should hold no temporary files"


def check_old_or_new(path: Path, old: str | None, new: str) -> None:
    found = path.read_text() if path.exists() else None
    assert found in (old, new), f"{found!r} should be {old!r} or {new!r}"


def test_a_full_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_atomically(tmp_path / "run.jsonl", "x")
    assert one_line(caught.value) == f"No space left on device [{tmp_path / 'run.jsonl'}]", one_line(caught.value)


def test_old_or_new_rejects_a_write_in_place(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("the old text\n")
    with path.open("w") as stream:  # the mutant: opens, writes the half, dies
        stream.write("the new")
    with pytest.raises(AssertionError):
        check_old_or_new(path, "the old text\n", "the new text\n")


def test_writing_makes_folders_and_readable_files(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    write_atomically(path, "text")
    assert path.read_text() == "text", f"{path.read_text()!r}, should be 'text'"
    assert os.stat(path).st_mode & 0o777 == 0o644, f"mode {os.stat(path).st_mode:o}, should be 644"


@pytest.fixture
def lines(tmp_path: Path) -> list[str]:
    path = tmp_path / "whole.jsonl"
    write_run(RUN, path)
    return path.read_text().splitlines(keepends=True)


def changed(index: int, **fields: Any) -> Callable[[list[str]], str]:
    """A file whose line at `index` has other fields; None takes a field away."""

    def change(lines: list[str]) -> str:
        row = {k: v for k, v in (json.loads(lines[index]) | fields).items() if v is not None}
        return "".join([*lines[:index], json.dumps(row) + "\n", *lines[index + 1 :]])

    return change


FOREIGN: dict[str, tuple[Callable[[list[str]], str], int]] = {
    "empty": (lambda lines: "", 1),
    "blank": (lambda lines: "\n", 1),
    "no JSON": (lambda lines: "hello\n", 1),
    "a list": (lambda lines: "[]\n", 1),
    "NUL bytes": (lambda lines: "\0" * 40, 1),
    "nested too deep": (lambda lines: "[" * 200_000 + "\n", 1),
    "a number of 5000 digits": (lambda lines: lines[0] + '{"value": ' + "9" * 5000 + "}\n", 2),
    "another kind": (changed(0, kind="baseline"), 1),
    "no kind": (changed(0, kind=None), 1),
    "a newer schema": (changed(0, schema=records.SCHEMA + 1), 1),
    "no schema": (changed(0, schema=None), 1),
    "no id": (changed(0, id=None), 1),
    "no environment": (changed(0, environment=None), 1),
    "an environment of text": (changed(0, environment="x"), 1),
    "no cases": (changed(0, cases=None), 1),
    "cases of text": (changed(0, cases=["x"]), 1),
    "a case without metrics": (changed(0, cases=[{"case_id": "a", "state": "ran"}]), 1),
    "a case with more": (changed(0, cases=[{"case_id": "a", "state": "ran", "metrics": [], "x": 1}]), 1),
    "a case in no known state": (changed(0, cases=[{"case_id": "a", "state": "run", "metrics": []}]), 1),
    "a case id that is a number": (changed(0, cases=[{"case_id": 3, "state": "ran", "metrics": []}]), 1),
    "metrics that are numbers": (changed(0, cases=[{"case_id": "a", "state": "ran", "metrics": [1]}]), 1),
    "a state that is a list": (changed(0, cases=[{"case_id": "a", "state": ["ran"], "metrics": []}]), 1),
    "a flag of text": (changed(0, interrupted="no"), 1),
    "a profile that is a list": (changed(0, profile=["ci"]), 1),
    "an environment of numbers": (changed(0, environment={"must_match": {"cores": 2}}), 1),
    "an environment that is a list": (changed(0, environment={"must_match": ["cores"]}), 1),
    "an unknown header field": (changed(0, colour="red"), 1),
    "no count of lines": (changed(0, lines=None), 1),
    "cut in the header": (lambda lines: lines[0][:40], 1),
    "cut in a line": (lambda lines: "".join(lines)[:-20], 3),
    "cut before the last newline": (lambda lines: "".join(lines)[:-1], 3),
    "cut between lines": (lambda lines: "".join(lines[:-1]), 2),
    "a conflict marker": (lambda lines: "".join([*lines[:2], "<<<<<<< HEAD\n", *lines[2:]]), 3),
    "a blank line": (lambda lines: "".join([*lines[:2], "\n", *lines[2:]]), 3),
    "no value": (changed(1, value=None), 2),
    "no unit": (changed(2, unit=None), 3),
    "an unknown field": (changed(1, colour="red"), 2),
    "an unknown rule": (changed(1, rule="guess"), 2),
    "an unknown direction": (changed(1, better="more"), 2),
    "a rule that is a list": (changed(1, rule=["exact"]), 2),
    "a value of text": (changed(1, value="0.5"), 2),
    "a value of true": (changed(1, value=True), 2),
    "a value beyond floats": (changed(1, value=10**400), 2),
    "a value that is not finite": (changed(1, value=math.nan), 2),
    "samples of text": (changed(1, samples="123"), 2),
    "samples with text": (changed(1, samples=["1"]), 2),
    "samples that are not finite": (changed(1, samples=[math.inf]), 2),
    "more errors than samples": (changed(2, errors=[0.1, 0.2]), 3),
    "a case id of a number": (changed(1, case_id=5), 2),
    "a detail of a list": (changed(1, detail=[1]), 2),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_and_truncated_files(name: str, lines: list[str], tmp_path: Path) -> None:
    make, line = FOREIGN[name]
    path = tmp_path / "run.jsonl"
    path.write_text(make(lines))
    with pytest.raises(RecordError) as caught:
        read_run(path)
    assert caught.value.where == f"{path}:{line}", f"{caught.value} should point at line {line}"
    assert "\n" not in str(caught.value), f"{str(caught.value)!r} should be one line"


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_cut_of_a_run_is_read(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("runs") / "run.jsonl"
    write_run(RUN, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1), label="bytes kept")])
    with pytest.raises(RecordError, match=r"run\.jsonl:"):
        read_run(path)


def test_binary_and_missing_files(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with pytest.raises(RecordError, match="unreadable file"):
        read_run(path)
    path.write_bytes(b"\x80\x04\x95")
    with pytest.raises(RecordError, match="unreadable file"):
        read_run(path)


@given(samples=st.lists(st.floats(-3, 3), min_size=1, max_size=6))
def test_merge_joins_the_samples_of_speed(samples: list[float]) -> None:
    parts = [
        dataclasses.replace(SPEED, value=math.exp(s), samples=(s,), errors=(abs(s),), detail={"of": i})
        for i, s in enumerate(samples)
    ]
    (joined,) = merge(parts)
    assert joined.samples == tuple(samples), f"{joined.samples}, should be {samples} in order"
    assert joined.errors == tuple(map(abs, samples)), f"{joined.errors} should stay with their samples"
    expected = math.exp(math.fsum(samples) / len(samples))
    assert math.isclose(joined.value, expected, rel_tol=1e-9), f"{joined.value}, should be {expected}"


@pytest.mark.parametrize("order", [(60, 40, 120), (120, 60, 40), (40, 120, 60)])
def test_merge_tells_of_the_process_with_the_fewest_pairs(order: tuple[int, ...]) -> None:
    parts = [dataclasses.replace(SPEED, detail={"pairs": pairs}) for pairs in order]
    (joined,) = merge([*parts, dataclasses.replace(SPEED, detail={})])
    assert joined.detail == {"pairs": 40}, f"{joined.detail}"


def test_merge_keeps_the_last_of_other_rules_and_cases_apart() -> None:
    later = dataclasses.replace(ONE, value=0.75)
    elsewhere = dataclasses.replace(SPEED, case_id="other")
    merged = merge([ONE, SPEED, later, elsewhere])
    assert merged == (later, SPEED, elsewhere), f"{merged}"


def test_merge_refuses_samples_of_different_things() -> None:
    with pytest.raises(RecordError, match="one for all processes"):
        merge([SPEED, dataclasses.replace(SPEED, fingerprint="other")])


def test_merge_refuses_speed_without_samples() -> None:
    empty = dataclasses.replace(SPEED, samples=(), errors=())
    with pytest.raises(RecordError, match="no samples"):
        merge([empty, empty])
