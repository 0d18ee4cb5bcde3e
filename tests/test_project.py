"""What the project's own files must agree on."""

import re
from pathlib import Path

import pytest

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


def wrong_torch_versions(tox: str, nightly: str, project: str) -> list[str]:
    """What tox, the nightly run and the project's dependencies do not agree on."""
    torch = dict(re.findall(r"^    torch(\d+): torch==([\d.]+)\.\*$", tox, re.MULTILINE))
    vision = dict(re.findall(r"^    torch(\d+): torchvision==([\d.]+)\.\*$", tox, re.MULTILINE))
    wrong = [f"{factor} is torch {version}" for factor, version in torch.items() if factor != version.replace(".", "")]
    for factor, version in torch.items():  # torchvision 0.N belongs to torch 2.(N - 15)
        expected = f"0.{int(version.removeprefix('2.')) + 15}"
        if vision.get(factor) != expected:
            wrong.append(f"torchvision {vision.get(factor)} with torch {version}")
    for header in re.findall(r"^\[testenv:.*(?:shared|bench).*\]$", tox, re.MULTILINE):
        wrong += [f"torch{factor} not in {header}" for factor in torch if f",-torch{factor}" not in header]
    wrong += [f"no environment for torch{f}" for f in torch if f"torch{f}: SHARED = shared-torch{f}\n" not in tox]
    oldest, *others = sorted(torch)
    if f'"torch>={torch[oldest]}"' not in project:
        wrong.append(f"the oldest torch is {torch[oldest]}")
    nightly_runs = {factor for factor in torch if f"factor: torch{factor}\n" in nightly}
    return wrong + [f"{f} is not run nightly" for f in {oldest, *others[:-1]} - nightly_runs]  # the last is current


FILES = TOX, NIGHTLY, PROJECT = (
    ROOT / "tox.ini",
    ROOT / ".github" / "workflows" / "nightly.yml",
    ROOT / "pyproject.toml",
)


def test_tox_and_the_nightly_run_agree_on_torch_versions() -> None:
    wrong = wrong_torch_versions(TOX.read_text(), NIGHTLY.read_text(), PROJECT.read_text())
    assert not wrong, f"{wrong}"


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        (TOX, "torch212: torch==2.12.*", "torch212: torch==2.13.*"),
        (TOX, "torchvision==0.28.*", "torchvision==0.27.*"),
        (TOX, "shared{,-torch211,-torch212", "shared{,-torch211"),
        (TOX, "bench,types}{,-torch211,-torch212", "bench,types}{,-torch211"),
        (TOX, "SHARED = shared-torch213", "SHARED = shared-torch212"),
        (NIGHTLY, "factor: torch212", "factor: torch211"),
        (NIGHTLY, "factor: torch211", "factor: torch212"),
        (PROJECT, "torch>=2.11", "torch>=2.12"),
    ],
)
def test_versions_that_disagree_are_found(file: Path, old: str, new: str) -> None:
    texts = [path.read_text() for path in FILES]
    changed = [t.replace(old, new) if path == file else t for path, t in zip(FILES, texts, strict=True)]
    assert changed != texts, f"{old} is not in {file.name}"
    assert wrong_torch_versions(*changed), f"{new} in {file.name} should be found"
