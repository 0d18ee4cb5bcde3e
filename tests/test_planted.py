"""What the suite is for, end to end on real models and a real clock: unchanged code passes, planted losses do not."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from pruning_bench.judging.policy import Policy

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
RECIPES = ("dense", "l1_filter:0.5", "lossy:0", "static:w8a8")
ARGUMENTS = ("benchmarks", "--pb-runtime=slowable", *(f"--pb-recipe={recipe}" for recipe in RECIPES))


class Suite:
    """A folder with the benchmarks and the planted definitions."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(HERE.parent / "benchmarks", pytester.path / "benchmarks", ignore=ignored)
        shutil.copy(HERE / "planted_suite" / "planted_definitions.py", pytester.path / "conftest.py")
        (pytester.path / "pytest.ini").write_text("[pytest]\n")

    def run(self) -> int:
        return int(self.pytester.runpytest_subprocess(*ARGUMENTS).ret)

    def accept(self) -> None:
        done = self.pytester.run(
            sys.executable, "-m", "pruning_bench.cli", "accept", "latest", "--reason=test", "--import=conftest.py"
        )
        assert done.ret == 0, done.stderr.str()

    def verdicts(self, metric: str) -> dict[str, dict[str, Any]]:
        report = json.loads((self.pytester.path / "results" / "reports" / "latest.json").read_text())
        return {v["case_id"]: v for v in report["verdicts"] if v["metric"] == metric}

    def spreads(self) -> dict[str, float]:
        (file,) = (self.pytester.path / "results" / "baselines").glob("times-*.jsonl")
        rows = [json.loads(line) for line in file.read_text().splitlines()[1:]]
        return {row["case_id"]: row.get("spread", 0.0) for row in rows if row["rule"] == "speed"}


def test_planted_losses_are_found_and_nothing_else(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNING_BENCH_CACHE_MIB", "0")  # the lossy method reads a variable
    suite, policy = Suite(pytester), Policy()
    assert suite.run() == 0
    suite.accept()
    spreads = suite.spreads()

    assert suite.run() == 0, "unchanged code fails"

    monkeypatch.setenv("PLANTED_SLOW", "0.15")
    status = suite.run()
    found = {case: v["outcome"] for case, v in suite.verdicts("relative_time").items()}
    for case, spread in spreads.items():
        if "/dense/" in case:
            assert found[case] != "REGRESSED", f"{case} was not slowed"
        elif spread <= policy.promised_spread:
            assert found[case] == "REGRESSED", f"{case}: {found[case]} at a spread of {spread:.2%}"
        else:
            assert found[case] in ("REGRESSED", "INCONCLUSIVE"), f"{case}: {found[case]} at a spread of {spread:.2%}"
    assert status == ("REGRESSED" in found.values()), f"exit status {status}"

    monkeypatch.delenv("PLANTED_SLOW")
    monkeypatch.setenv("PLANTED_DROP", "1")
    assert suite.run() == 1
    found = {case: v["outcome"] for case, v in suite.verdicts("top1").items()}
    lost = {case for case, outcome in found.items() if outcome == "REGRESSED"}
    assert lost == {case for case in found if "/lossy:0/" in case}, found
