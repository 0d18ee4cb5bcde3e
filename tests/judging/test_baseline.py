"""Baseline files: what is written comes back; what is damaged is refused with file and line."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning_bench.errors import RecordError
from pruning_bench.judging.baseline import (
    Baseline,
    BaselineLine,
    Times,
    by_key,
    differences,
    read_baseline,
    times_file,
    write_baseline,
)
from pruning_bench.judging.vectors import pack
from pruning_bench.records import Environment

HERE = Environment({"cpu": "A", "torch": "2.14.1"})
THERE = Environment({"cpu": "A", "torch": "2.13.0"})
SIZE = BaselineLine("m-d/dense/eager", "bytes", 1000, "B", "lower", "exact", profiles=("ci",), reason="first", run="1")
TOP1 = BaselineLine("m-d/dense/eager", "top1", 2 / 3, "1", "higher", "paired", "f1", vector=pack([1, 1, 0]))
SPEED = BaselineLine(
    "m-d/dense/eager", "relative_time", 1.01, "1", "lower", "speed", spread=0.01, within=0.002, processes=5
)
CANARY = BaselineLine("m-d/dense/eager", "anchor_latency", 1e-3, "s", "lower", "canary")
WHOLE = Baseline(
    by_key([SIZE, TOP1]),
    {
        HERE.key: Times(HERE.must_match, by_key([SPEED, CANARY])),
        THERE.key: Times(THERE.must_match, by_key([SPEED])),
    },
)


def test_round_trip(tmp_path):
    write_baseline(WHOLE, tmp_path)
    assert read_baseline(tmp_path) == WHOLE, f"{read_baseline(tmp_path)}"


def test_nothing_there_is_an_empty_baseline(tmp_path):
    assert read_baseline(tmp_path / "none") == Baseline()


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
portable_lines = st.builds(
    BaselineLine, words, words, st.floats(-1e9, 1e9), words, st.sampled_from(["lower", "higher", "neither"]),
    st.just("exact"), words, profiles=st.lists(words, max_size=2).map(tuple), reason=words, run=words,
    trains=st.booleans(),
)  # fmt: skip


@given(lines=st.lists(portable_lines, max_size=4))
def test_any_words_and_numbers_come_back(lines, tmp_path_factory):
    folder = tmp_path_factory.mktemp("baseline")
    write_baseline(Baseline(by_key(lines)), folder)
    assert read_baseline(folder).portable == by_key(lines), f"{lines}"


def test_files_are_a_header_and_sorted_lines(tmp_path):
    write_baseline(Baseline(by_key([TOP1, SIZE])), tmp_path)
    header, *lines = (tmp_path / "portable.jsonl").read_text().splitlines()
    assert json.loads(header) == {"kind": "baseline", "lines": 2, "schema": 1, "scope": "portable"}, header
    assert [json.loads(line)["metric"] for line in lines] == ["bytes", "top1"], "not sorted"
    assert lines[0] == (
        '{"case_id": "m-d/dense/eager", "metric": "bytes", "value": 1000, "unit": "B", "better": "lower", '
        '"rule": "exact", "profiles": ["ci"], "reason": "first", "run": "1"}'
    ), lines[0]


def test_only_files_that_differ_are_written(tmp_path):
    assert len(write_baseline(WHOLE, tmp_path)) == 3, "three files"
    assert write_baseline(WHOLE, tmp_path) == [], "written again without a change"
    fewer = Baseline(by_key([SIZE]), WHOLE.times)
    assert [p.name for p in write_baseline(fewer, tmp_path)] == ["portable.jsonl"], "more than what changed"
    write_baseline(Baseline({}, WHOLE.times), tmp_path)
    assert read_baseline(tmp_path).portable == {}, "lines that were dropped are still there"


def test_times_are_found_by_environment():
    key = SPEED.key
    other = Environment({"cpu": "B", "torch": "2.13.0"})
    assert WHOLE.own_times(HERE)[key] == SPEED, "own times"
    assert WHOLE.own_times(other) == {}, "times of another machine taken for own"
    foreign = WHOLE.foreign_times(other, key)
    assert foreign is not None, "no times of another machine"
    assert differences(foreign.must_match, other.must_match) == ["cpu A -> B"], "not the most similar one"
    assert WHOLE.foreign_times(other, ("x", "y")) is None, "times of a case nobody measured"


def _written(tmp_path, name, *lines, scope="portable", **header):
    first = json.dumps({"schema": 1, "kind": "baseline", "scope": scope, **header})
    (tmp_path / name).write_text("\n".join([first, *lines]) + "\n")
    return tmp_path


GOOD = '{"case_id": "c", "metric": "m", "value": 1, "unit": "B", "better": "lower", "rule": "exact"}'
TIMED = (
    '{"case_id": "c", "metric": "m", "value": 1, "unit": "1", "better": "lower", "rule": "speed", "processes": 5, '
    '"spread": 0.1}'
)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        pytest.param(GOOD[:-7], "no JSON", id="truncated"),
        pytest.param("[]", "list", id="no object"),
        pytest.param(GOOD.replace('"unit"', '"units"'), "units", id="unknown field"),
        pytest.param(GOOD.replace('"unit": "B", ', ""), "unit", id="missing field"),
        pytest.param(GOOD.replace('"lower"', '"faster"'), "better 'faster'", id="unknown direction"),
        pytest.param(GOOD.replace('"exact"', '"speed"'), "rule 'speed'", id="a time among portable"),
        pytest.param(GOOD.replace('"exact"', '"shown"'), "rule 'shown'", id="never judged"),
        pytest.param(GOOD.replace("1,", "NaN,"), "nan", id="not a number"),
        pytest.param(GOOD.replace("1,", '"one",'), "one", id="text for a number"),
        pytest.param(GOOD.replace("1,", '"1",'), "value '1'", id="a number in quotes"),
        pytest.param(GOOD.replace("1,", "true,"), "value True", id="a truth for a number"),
        pytest.param(
            GOOD.replace("}", f', "vector": "{pack([True, False])}"}}'), "should be 0.5", id="a vector of another value"
        ),
        pytest.param(GOOD.replace("1,", "1" + "0" * 400 + ","), "too large", id="beyond double precision"),
        pytest.param(GOOD.replace('"B"', "3"), "unit 3", id="number for a text"),
        pytest.param(GOOD.replace("}", ', "vector": "3:x"}'), "vector", id="damaged vector"),
        pytest.param(GOOD.replace("}", ', "profiles": "ci"}'), "profiles 'ci'", id="one profile for a list"),
        pytest.param(GOOD.replace("}", ', "profiles": 3}'), "int", id="number for a list"),
        pytest.param(GOOD.replace("}", ', "trains": "no"}'), "trains 'no'", id="text for a truth"),
        pytest.param(GOOD.replace("}", ', "margin": -0.1}'), "margin -0.1", id="negative margin"),
        pytest.param(GOOD.replace("}", ', "margin": "wide"}'), "margin 'wide'", id="text for a margin"),
        pytest.param(GOOD + "\n" + GOOD, "twice", id="duplicate"),
    ],
)
def test_a_damaged_line_is_refused_with_file_and_line(tmp_path, line, words):
    _written(tmp_path, "portable.jsonl", GOOD.replace('"m"', '"first"'), line)
    number = 4 if "twice" in words else 3
    with pytest.raises(RecordError, match=words) as caught:
        read_baseline(tmp_path)
    assert str(caught.value).endswith(f"[{tmp_path}/portable.jsonl:{number}]"), f"{caught.value}"
    assert "\n" not in str(caught.value), "more than one line"


CANNOT_BE = {
    "no processes": TIMED.replace("5", "0"),
    "negative spread": TIMED.replace("0.1", "-0.1"),
    "spread beyond all bounds": TIMED.replace("0.1", "1e200"),
    "ratio 0": TIMED.replace('"value": 1', '"value": 0'),
    "ratio beyond all bounds": TIMED.replace('"value": 1', '"value": 1e300'),
    "processes beyond double precision": TIMED.replace("5", "5" + "0" * 400),
    "canary 0": TIMED.replace('"value": 1', '"value": 0').replace("speed", "canary"),
    "canary negative": TIMED.replace('"value": 1', '"value": -1e-3').replace("speed", "canary"),
}


@pytest.mark.parametrize("line", CANNOT_BE.values(), ids=CANNOT_BE)
def test_times_that_cannot_be_are_refused(tmp_path, line):
    _written(tmp_path, times_file(HERE.key), line, scope="times", must_match=dict(HERE.must_match))
    with pytest.raises(RecordError, match=f"{times_file(HERE.key)}:2"):
        read_baseline(tmp_path)


def test_foreign_files_are_refused(tmp_path):
    name = times_file(HERE.key)
    for header in (
        {"scope": "times", "must_match": dict(THERE.must_match)},
        {"scope": "times"},
        {"scope": "portable", "must_match": dict(HERE.must_match)},
        {"scope": "times", "schema": 2},
        {"scope": "times", "kind": "run"},
    ):
        _written(tmp_path, name, **header)
        with pytest.raises(RecordError, match=f"{name}:1"):
            read_baseline(tmp_path)
    (tmp_path / name).write_text("")
    with pytest.raises(RecordError, match=f"{name}:1"):
        read_baseline(tmp_path)


def test_a_file_cut_at_any_place_is_refused(tmp_path):
    write_baseline(Baseline(by_key([SIZE, TOP1])), tmp_path)
    path = tmp_path / "portable.jsonl"
    whole = path.read_text()
    for end in [*range(1, len(whole) - 1, 37), len(whole) - 1]:
        path.write_text(whole[:end])
        with pytest.raises(RecordError, match=r"portable.jsonl:\d"):
            read_baseline(tmp_path)


def test_a_file_cut_between_two_lines_is_refused_in_words_that_mend_it(tmp_path):
    write_baseline(WHOLE, tmp_path)
    for name in ("portable.jsonl", times_file(HERE.key)):
        path = tmp_path / name
        whole = path.read_text()
        path.write_text("".join(whole.splitlines(keepends=True)[:-1]))
        with pytest.raises(RecordError) as caught:
            read_baseline(tmp_path)
        mend = 'restore the file, or after a merge write "lines": 1 there'
        expected = f"baseline: 1 lines, should be 2 as the first line says: {mend} [{path}:1]"
        assert str(caught.value) == expected, f"{caught.value}"
        path.write_text(path.read_text().replace('"lines": 2', '"lines": 1'))
        read_baseline(tmp_path)
        path.write_text(whole)


def test_a_file_without_a_count_is_read(tmp_path):
    _written(tmp_path, "portable.jsonl", GOOD)
    assert [line.value for line in read_baseline(tmp_path).portable.values()] == [1], "of before the count"


def test_only_files_of_the_scope_are_written(tmp_path):
    for scope, count in (("portable", 1), ("times", 2)):
        paths = {path.name for path in write_baseline(WHOLE, tmp_path / scope, scope)}
        found = {path.name for path in (tmp_path / scope).iterdir()}
        assert paths == found, f"{scope}: {paths} said to be written, there {found}"
        assert len(found) == count, f"{scope}: {found}"
        assert ("portable.jsonl" in found) == (scope == "portable"), f"{scope}: {found}"
