"""`pruning-bench compare-runs` on the command line: two records in, what changed out, one line for bad input."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pruning_bench import cli
from pruning_bench.records import Environment, Measurement, Run, write_run
from pruning_bench.reporting.insertion import marks


def record(results: Path, torch: str, size: float) -> Path:
    found = Measurement("net-data/dense/eager", "bytes", size, "B", "lower", "exact")
    run = Run(f"20260101T00000{size:.0f}-smoke", "now", "smoke", Environment({"torch": torch}), (), (found,))
    path = results / "runs" / f"{run.id}.jsonl"
    write_run(run, path)
    return path


@pytest.fixture
def results(tmp_path: Path) -> Path:
    record(tmp_path, "2.11.0+cpu", 1)
    record(tmp_path, "2.14.1", 2)
    return tmp_path


def test_runs_are_named_by_version_and_need_no_torch(results: Path) -> None:
    words = ["compare-runs", "torch=2.11", "torch=2.14", f"--results={results}"]
    code = f"import sys; from pruning_bench.cli import main; sys.exit(main({words!r}) or 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for said in ("torch 2.11.0+cpu -> 2.14.1", "bytes", "+1", "times are not compared"):
        assert said in done.stdout, f"{said!r} is not in\n{done.stdout}"


def _truncated(path: Path) -> str:
    path.write_text(path.read_text()[:-20])
    return f"{path.name}:2"


def _without_its_last_line(path: Path) -> str:
    path.write_text(path.read_text().partition("\n")[0] + "\n")
    return f"{path.name}:1"


def _foreign(path: Path) -> str:
    path.write_text('{"kind": "report"}\n')
    return f"{path.name}:1"


def _binary(path: Path) -> str:
    path.write_bytes(b"\x00\xff\n")
    return path.name


def _gone(path: Path) -> str:
    path.unlink()
    return "20260101T000001-smoke"  # the closest name


@pytest.mark.parametrize("damage", [_truncated, _without_its_last_line, _foreign, _binary, _gone])
def test_bad_input_is_one_line_with_file_and_line(
    damage: Callable[[Path], str], results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = results / "runs" / "20260101T000002-smoke.jsonl"
    said = damage(file)
    assert cli.main(["compare-runs", "20260101T000001-smoke", file.stem, f"--results={results}"]) == 2
    error = capsys.readouterr().err
    assert said in error, f"{said!r} is not in {error}"
    assert len(error.strip().splitlines()) == 1, error


@pytest.mark.parametrize("name", ["other.txt", "nowhere/run.jsonl", "torch=1.0"])
def test_what_is_no_run_is_named(name: str, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (results / "other.txt").write_text("hello\n")
    second = name if "=" in name else str(results / name)
    assert cli.main(["compare-runs", "latest", second, f"--results={results}"]) == 2
    error = capsys.readouterr().err
    assert name.removeprefix("torch=") in error, error
    assert len(error.strip().splitlines()) == 1, error


def test_a_file_anywhere_is_a_run(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere = record(tmp_path / "elsewhere", "2.12.0", 3)
    assert cli.main(["compare-runs", "latest", str(elsewhere), f"--results={results}"]) == 0
    assert "torch 2.14.1 -> 2.12.0" in capsys.readouterr().out, "the run of the file"


def test_the_comparison_is_put_between_the_marks_alone(results: Path, tmp_path: Path) -> None:
    begin, end = marks()
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n{begin}\nthe last one\n{end}\n\nbelow\n")
    words = ["compare-runs", "torch=2.11", "torch=2.14", f"--results={results}", f"--into={page}"]
    assert cli.main(words) == 0
    once = page.read_text()
    assert once.startswith(f"# Title\n\n{begin}\n"), once
    assert once.endswith(f"{end}\n\nbelow\n"), once
    assert "| net-data/dense/eager | bytes | 1 B | 2 B | +1 |" in once, once
    assert "the last one" not in once, once
    assert cli.main(words) == 0
    assert page.read_text() == once, "a second time is not the same"
