"""The small modules: policy, history, what is read from case ids, controls."""

from __future__ import annotations

import dataclasses

import pytest

from pruning_bench.errors import PruningBenchError, RecordError
from pruning_bench.judging import controls
from pruning_bench.judging.case_ids import case_of, group_of
from pruning_bench.judging.history import find_run, run_files, run_path
from pruning_bench.judging.policy import Policy
from pruning_bench.records import Environment, Measurement, Run, write_run


def test_policy_is_what_the_documents_promise():
    promised = {
        "confidence": 0.98, "power": 0.9, "speed_floor": 0.03, "spread_factor": 3.0, "min_processes": 5,
        "confirmation_processes": 3, "drift_share": 0.5, "promised_spread": 0.015,
        "promised_slowdown": 0.15, "canary": 0.3,
        "accuracy_p": 0.01, "accuracy_margin": 0.002, "collapse_margin": 0.03, "min_seeds": 5, "min_pairs": 60,
        "max_pairs": 120, "bootstrap_draws": 1000,
    }  # fmt: skip
    assert dataclasses.asdict(Policy()) == promised, "a threshold changed"
    assert Policy().alpha == pytest.approx(0.01), f"{Policy().alpha=}"


@pytest.mark.parametrize(
    "options",
    [{"speed_floor": 0}, {"confidence": 1.0}, {"power": float("nan")}, {"min_seeds": 1}, {"min_processes": 1}],
    ids=str,
)
def test_policy_refuses_thresholds_without_meaning(options):
    with pytest.raises(PruningBenchError, match=f"policy: {next(iter(options))}"):
        Policy(**options)


@pytest.mark.parametrize(
    ("case_id", "expected"),
    [
        ("m-d/magnitude:0.9/eager", ("m-d/magnitude:0.9/eager", 0)),
        ("m-d/finetune:1/eager-cuda-t2-b64-s12", ("m-d/finetune:1/eager-cuda-t2-b64", 12)),
        ("m-d/finetune:1,lr=1e-s3/eager", ("m-d/finetune:1,lr=1e-s3/eager", 0)),
        ("somebody's own-s3", ("somebody's own-s3", 0)),
    ],
)
def test_group_of_takes_the_seed_off(case_id, expected):
    assert group_of(case_id) == expected, f"{group_of(case_id)=}"


def test_case_of_an_own_id_is_none():
    assert case_of("somebody's own") is None, "an id of no grid became a case"


@pytest.mark.parametrize("said", [{}, {"holds": "yes"}, {"holds": 1}, {"holds": None}, {"holds": False}], ids=str)
def test_a_control_holds_only_when_it_says_so(said):
    control = Measurement("case", "twin", 1.0, "1", "neither", "control", detail=said)
    assert controls.broken([control]) == (control,), f"{said} holds"
    assert controls.reason_of(control), "a broken control without a reason"


@pytest.fixture
def runs(tmp_path):
    for run_id, profile, interrupted in (
        ("20260101-1-ci", "ci", False),
        ("20260102-1-smoke", "smoke", False),
        ("20260103-1-ci", "ci", True),
    ):
        run = Run(run_id, "now", profile, Environment({}), (), (), interrupted)
        write_run(run, run_path(tmp_path, run_id))
    return tmp_path


def test_runs_are_found_by_time_and_beginning(runs):
    assert [p.stem for p in run_files(runs)] == ["20260101-1-ci", "20260102-1-smoke", "20260103-1-ci"]
    assert find_run(runs, "latest").stem == "20260103-1-ci", "not the newest"
    assert find_run(runs, "20260102").stem == "20260102-1-smoke", "not the one that begins so"
    assert find_run(runs, str(runs / "20260101-1-ci.jsonl")).stem == "20260101-1-ci", "not the path given"


@pytest.mark.parametrize(("name", "words"), [("2026010", "begins 3 ids"), ("x", "one of 3 ids"), ("", "begins 3 ids")])
def test_a_run_that_cannot_be_told_is_refused(runs, name, words):
    with pytest.raises(RecordError, match=words):
        find_run(runs, name)


def test_no_runs_at_all(tmp_path):
    assert run_files(tmp_path / "none") == [], "runs in a folder that is not there"
    with pytest.raises(RecordError, match="no run is there"):
        find_run(tmp_path, "latest")


@pytest.fixture
def versions(tmp_path):
    for run_id, torch in (("1-a", "2.11.0+cpu"), ("2-b", "2.11.0+cpu"), ("3-c", "2.1.0"), ("4-d", "2.14.1")):
        write_run(Run(run_id, "now", "smoke", Environment({"torch": torch}), (), ()), run_path(tmp_path, run_id))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "found"),
    [("torch=2.11", "2-b"), ("torch=2.11.0", "2-b"), ("torch=2.1", "3-c"), ("torch=2", "4-d"), ("torch=2.14.1", "4-d")],
)
def test_a_run_is_found_by_a_version(versions, name, found):
    assert find_run(versions, name).stem == found, f"{name} should be the latest whose version begins so, part by part"


@pytest.mark.parametrize(("name", "words"), [("torch=2.12", "no run with torch 2.12"), ("onnx=1", "known: none")])
def test_a_version_that_no_run_has_is_refused(versions, name, words):
    with pytest.raises(RecordError, match=words):
        find_run(versions, name)


def test_a_damaged_run_hides_no_whole_one_and_is_named_where_there_is_none(versions):
    (versions / "5-e.jsonl").write_text("{broken\n")
    assert find_run(versions, "torch=2.11").stem == "2-b"
    with pytest.raises(RecordError, match=r"5-e\.jsonl:1"):
        find_run(versions, "torch=2.12")
