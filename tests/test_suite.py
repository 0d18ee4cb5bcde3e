"""Which cases one run of the suite holds."""

from dataclasses import replace
from pathlib import Path

import pytest

from pruning_bench.cases import PROFILES
from pruning_bench.suite import Options, Suite


def models_of(suite: Suite) -> set[str]:
    return {case.model for case in suite.grid}


def check_left_out_models_run_only_by_name(results: Path) -> None:
    assert models_of(Suite(Options(results))) == {"image_classifier", "resnet20"}
    asked = Suite(Options(results, model=["lenet5"]))
    assert models_of(asked) == {"lenet5"}
    extra = {status.extra for status in asked.statuses() if status.case_id.startswith("lenet5")}
    assert extra == {True}, "cases that the profile does not hold are owed by it"


def test_smoke_leaves_models_out_unless_they_are_asked_for(tmp_path: Path) -> None:
    check_left_out_models_run_only_by_name(tmp_path)


def test_the_check_bites_where_nothing_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROFILES, "smoke", replace(PROFILES["smoke"], leaves_out=()))
    with pytest.raises(AssertionError):
        check_left_out_models_run_only_by_name(tmp_path)
