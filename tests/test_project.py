"""What the project's own files must agree on."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def found(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.MULTILINE)
    assert match, f"no {pattern} in {text}"
    return match[1]


def test_types_and_rules_are_checked_for_the_oldest_python() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    oldest = found(r'^requires-python = ">=([0-9.]+)"', text)
    types, rules = found(r'^python_version = "([0-9.]+)"', text), found(r'^target-version = "py([0-9]+)"', text)
    assert types == oldest, f"mypy checks for {types}, should be {oldest}"
    assert rules == oldest.replace(".", ""), f"ruff checks for {rules}, should be {oldest}"


def test_the_nightly_run_keeps_every_folder_of_records() -> None:
    text = (ROOT / ".github" / "workflows" / "nightly.yml").read_text()
    kept = [folder for folder in ("reports", "runs", "runs/confirmations") if f" results/{folder}/*.json" in text]
    assert len(kept) == 3, f"{kept} are uploaded, should be reports, runs and confirmations"
