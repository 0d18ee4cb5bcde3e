"""Fresh processes: they import what their parent would, and none is waited for forever."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import time
from pathlib import Path

import pytest

from pruning_bench import processes
from pruning_bench.errors import PruningBenchError
from pruning_bench.workbench import Workbench


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory whose own modules bear the names of some that a worker imports."""
    for name in ("json", "random", "pruning_bench", "torch"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the working directory')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(Path(processes.__file__).parents[1]), *filter(None, sys.path)])
    return tmp_path


def test_the_working_directory_shadows_nothing(folder: Path) -> None:
    status, last = processes._start(folder / "no-request.json", 300)
    assert status == 1, f"status {status} ({last}), should be 1: there is no request"
    assert "No such file or directory" in last, f"{last!r}, should say that there is no request"


def worker(folder: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that does something else."""
    (folder / "pruning_bench").mkdir()
    (folder / "pruning_bench" / "__init__.py").touch()
    (folder / "pruning_bench" / "worker.py").write_text(f"import sys, time\ndef main(request):\n    {code}\n")
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])


def test_a_module_that_the_parent_finds_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker(tmp_path, "import beside; sys.exit(beside.STATUS)", monkeypatch)
    (tmp_path / "beside.py").write_text("STATUS = 7")
    status, last = processes._start(tmp_path / "request.json", 60)
    assert status == 7, f"status {status} ({last}), should be that of the module beside"


def test_one_that_hangs_is_ended_and_its_last_line_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs = "print('first', 'waiting for the device', sep='\\n', file=sys.stderr, flush=True); time.sleep(99)"
    worker(tmp_path, hangs, monkeypatch)
    before = time.monotonic()
    with pytest.raises(PruningBenchError, match=r"not done after 5 s \(waiting for the device\)") as caught:
        processes._start(tmp_path / "request.json", 5)
    assert "\n" not in str(caught.value), f"{caught.value}, should be one line"
    assert time.monotonic() - before < 60, "waited longer than the limit"


def test_one_that_fails_ends_with_its_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker(tmp_path, "raise ValueError('no such model')", monkeypatch)
    with pytest.raises(PruningBenchError, match=r"exit status 1 \(ValueError: no such model\)"):
        processes._run({"cases": []}, tmp_path, 0)


def test_the_limit_grows_with_the_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = []

    def note(request: Path, limit: float) -> tuple[int, str]:
        limits.append(limit)
        return 1, "noted"

    monkeypatch.setattr(processes, "_start", note)
    for cases in ([], ["a"] * 3):
        with pytest.raises(PruningBenchError, match="noted"):
            processes._run({"cases": cases}, tmp_path, 0)
    expected = [processes.START_SECONDS, processes.START_SECONDS + 3 * processes.CASE_SECONDS]
    assert limits == expected, f"limits {limits}, should be {expected}"


DEFINITION = """
from dataclasses import dataclass

@dataclass(frozen=True)
class {name}:
    def plan(self, model, level, context):
        return None
"""


def check_files_of_modules_with_one_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Definitions of two files are found in both, even where the second took the name of the first as a module."""
    files = {}
    for name in ("First", "Second"):
        (folder / name).mkdir()
        file = folder / name / "conftest.py"
        file.write_text(DEFINITION.format(name=name))
        spec = importlib.util.spec_from_file_location("conftest", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "conftest", module)
        spec.loader.exec_module(module)
        files[getattr(module, name)] = file
    for definition, file in files.items():
        assert processes._file_of(definition) == file, f"{definition} is said to be in another file than {file}"


def test_files_are_told_apart_where_modules_share_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_files_of_modules_with_one_name(tmp_path, monkeypatch)


def test_the_check_rejects_asking_the_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_file_of", lambda definition: Path(inspect.getfile(definition)))
    with pytest.raises(AssertionError, match="another file"):
        check_files_of_modules_with_one_name(tmp_path, monkeypatch)


def test_as_many_processes_as_asked_each_with_its_own_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutants: one process fewer; the same order of blocks in all of them."""
    started = []
    monkeypatch.setattr(processes, "_run", lambda request, folder, number: started.append((number, request["seed"])))
    parts = processes.measure_afresh(Workbench(), [], 3, seed=40)
    assert started == [(0, 40), (1, 41), (2, 42)], f"{started}: (number, seed) of each process"
    assert len(parts) == 3, f"{len(parts)} lists of measurements, should be one a process"
