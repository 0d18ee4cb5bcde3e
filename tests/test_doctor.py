"""The doctor: says what is here and what is missing with the command, whatever the machine, and never fails for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pruning_bench import cli, doctor
from pruning_bench.datasets.contract import Found, ReferenceDataset
from pruning_bench.doctor import datasets, disk, examine, runtimes, software
from pruning_bench.environment import Machine
from pruning_bench.errors import DataError, PluginError, PruningBenchError
from pruning_bench.records import Environment
from pruning_bench.registry import Registry


class Here:
    """A runtime as it should be."""

    def available(self, device: str = "cpu") -> str | None:
        return None if device == "cpu" else "runs on the CPU only"

    def version(self) -> str:
        return "fast 7"


class Everywhere(Here):
    def available(self, device: str = "cpu") -> str | None:
        return None


class Slower(Here):
    def remarks(self) -> tuple[str, ...]:
        return ("one thing", "another")


class Away(Here):
    def available(self, device: str = "cpu") -> str | None:
        return "fast not installed; python -m pip install fast"


class Broken(Here):
    def version(self) -> str:
        raise ImportError("libfast.so: cannot open")


class CannotRemark(Here):
    def remarks(self) -> tuple[str, ...]:
        raise RuntimeError("no session")


@pytest.mark.parametrize(
    ("runtime", "expected"),
    [
        (Here(), ("ok", "fast 7 on cpu", "")),
        (Everywhere(), ("ok", "fast 7 on cpu and cuda", "")),
        (Slower(), ("note", "fast 7 on cpu", "one thing; another")),
        (Away(), ("note", "not here", "fast not installed; python -m pip install fast")),
    ],
    ids=["here", "everywhere", "slower", "away"],
)
def test_runtimes(runtime: object, expected: tuple[str, str, str]) -> None:
    registry: Registry[Any] = Registry("runtime")
    registry.add("fast", runtime)
    found = [(f.what, (f.level, f.found, f.todo)) for f in runtimes(registry)]
    assert found == [("runtime fast", expected)], f"{found}"


@pytest.mark.parametrize(("runtime", "says"), [(Broken(), "libfast.so"), (CannotRemark(), "no session")])
def test_a_broken_runtime_hides_no_other(runtime: object, says: str) -> None:
    registry: Registry[Any] = Registry("runtime")
    registry.add("broken", runtime)
    registry.add("fast", Here())
    broken, fast = runtimes(registry)
    assert (broken.level, broken.found, fast.level) == ("warning", "broken", "ok"), f"{broken}, {fast}"
    assert says in broken.todo, f"{broken} should say {says}"


def test_what_is_not_installed_has_its_command() -> None:
    found = software(Environment({"torch": "2.14.1"}, {"python": "CPython 3.11.9"}))
    assert [(f.level, f.found, f.todo) for f in found] == [
        ("ok", "CPython 3.11.9", ""),
        ("ok", "2.14.1", ""),
        ("warning", "not installed", "python -m pip install torchvision"),
    ], f"{found}"


@pytest.mark.parametrize(("free", "level"), [(6e8, "ok"), (4e8, "warning")])
def test_room_where_the_results_go(free: float, level: str, tmp_path: Path) -> None:
    asked: list[Path] = []

    def left(folder: Path) -> int:
        asked.append(folder)
        return int(free)

    found = disk(tmp_path / "results" / "deep", left)
    assert found.level == level, f"{found}, should be {level}"
    assert set(asked) == {tmp_path}, f"{asked}, should be the folder that it would be made in"


def test_a_results_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = disk(tmp_path / "file" / "results")
    assert (found.level, found.found) == ("warning", f"{tmp_path / 'file'} cannot be written"), f"{found}"


def _misplaced() -> Found:
    raise DataError("pets", "no images.bin", "in the folder", "PRUNING_BENCH_DATA /data")


@pytest.mark.parametrize(
    ("look", "expected"),
    [
        (lambda: Found(True, None), ("ok", "shipped part")),
        (lambda: Found(True, Path("/data")), ("ok", "shipped part, full data in /data")),
        (lambda: Found(False, Path("/data")), ("ok", "full data in /data")),
        (lambda: Found(False, None), ("note", "not here")),
        (_misplaced, ("warning", "not where it should be")),
        (None, ("ok", "only its own loader can tell")),
    ],
    ids=["shipped", "both", "full", "neither", "misplaced", "a user's own"],
)
def test_data_sets_are_looked_for_and_not_read(look: Any, expected: tuple[str, str]) -> None:
    registry: Registry[Any] = Registry("dataset")
    registry.add("pets", ReferenceDataset("pets", lambda *_, **__: pytest.fail("read, should not be"), look))
    (found,) = datasets(registry)
    assert (found.level, found.found) == expected, f"{found}"
    assert found.todo or found.level == "ok", f"{found} should say what to do"


def stat(user: int, idle: int, steal: int) -> str:
    return f"cpu  {user} 0 0 {idle} 0 0 0 {steal} 0 0\ncpu0 1\n"


def test_load_and_steal_are_those_of_the_moment(tmp_path: Path) -> None:
    """Others are busy while the doctor sleeps, the host takes its share during the probe; before both all was quiet."""
    proc = tmp_path / "proc"
    (proc / "12").mkdir(parents=True)

    def write(clock: str, process: int) -> None:
        (proc / "stat").write_text(clock)
        (proc / "12" / "stat").write_text(f"12 (worker) R 1 1 1 0 -1 0 0 0 0 0 {process} 0 0 0")

    write(stat(100, 9000, 0), 50)
    slept: list[float] = []

    def pause(seconds: float) -> None:
        slept.append(seconds)
        write(stat(200, 9100, 0), 140)

    def probe() -> list[float]:
        write(stat(280, 9200, 20), 140)
        return [0.0, 0.01]

    found = {f.what: f for f in examine(tmp_path, Machine(proc, tmp_path / "sys"), pause=pause, probe=probe)}
    assert slept == [doctor.ASLEEP_SECONDS], f"slept {slept}"
    assert found["other processes"].found.startswith("50 %"), found["other processes"]
    assert found["other processes"].todo.endswith("worker (12)"), found["other processes"]
    assert found["steal time"].found.startswith("20.0 %"), found["steal time"]
    assert found["noise"].found.startswith("fit: "), found["noise"]


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    probed: list[int] = []

    def probe() -> list[float]:
        probed.append(1)
        return [0.0, -0.5]

    machine = Machine(tmp_path / "proc", tmp_path / "sys")
    found = {f.what: f for f in examine(tmp_path / "results", machine, pause=lambda _: None, probe=probe)}
    for what in ("other processes", "steal time", "memory"):
        assert (found[what].level, found[what].found) == ("note", "cannot be told here"), found[what]
    assert probed == [1], f"probed {len(probed)} times, should be once"
    assert found["noise"].level == "warning", found["noise"]
    for what in ("python", "torch", "torchvision", "runtime eager", "runtime onnxruntime", "data set fashion_mnist"):
        assert what in found, f"{what} should be among {sorted(found)}"


@pytest.mark.parametrize(
    "problem", [PluginError("entry point", "ImportError", "importable", "plug 1.0"), ImportError("no torch")]
)
def test_definitions_that_cannot_be_loaded(problem: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise problem

    monkeypatch.setattr(doctor, "discover", fail)
    (found,) = doctor.load_definitions()
    assert found.level == "warning", f"{found}"
    assert str(problem) in found.todo, f"{found} should say {problem}"


def test_results_that_are_a_file_are_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert cli.main(["doctor", "--results", str(tmp_path / "file")]) == 2
    error = capsys.readouterr().err
    assert "doctor: a file, should be a folder" in error, error
    assert len(error.strip().splitlines()) == 1, error
    with pytest.raises(PruningBenchError):
        examine(tmp_path / "file", probe=lambda: pytest.fail("probed, should refuse before"))


def test_the_command_ends_with_0_whatever_it_finds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--results", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(("fit to measure", "not fit to measure")), shown
    for what in ("processor", "threads", "governor", "steal time", "noise", "timer", "memory", "results folder"):
        assert what in shown, f"{what} should be in\n{shown}"
