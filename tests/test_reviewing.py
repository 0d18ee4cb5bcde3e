"""A recorded run judged again."""

from pathlib import Path

import pytest

from pruning_bench.errors import UnknownNameError
from pruning_bench.judging.history import run_path
from pruning_bench.records import CaseStatus, Environment, Run, write_run
from pruning_bench.reviewing import review

CASE = "m-d/dense/onnxruntime"


def recorded(results: Path) -> None:
    states = (CaseStatus(CASE, "skipped", "not installed"),)
    run = Run("1-ci", "now", "ci", Environment({"cpu": "A"}), states, ())
    write_run(run, run_path(results / "runs", run.id))


def test_a_required_runtime_that_was_away_fails(tmp_path: Path) -> None:
    recorded(tmp_path)
    assert review(tmp_path, "latest").exit_status == 0
    assert review(tmp_path, "latest", require=["onnxruntime"]).exit_status == 1


def test_a_required_runtime_of_no_case_is_refused_with_the_closest_name(tmp_path: Path) -> None:
    recorded(tmp_path)
    with pytest.raises(UnknownNameError, match="'onnxruntim', should be 'onnxruntime'"):
        review(tmp_path, "latest", require=["onnxruntim"])
