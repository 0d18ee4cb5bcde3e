"""Latency in fresh processes: the process is the unit, since memory layout and thread placement differ between them."""

from __future__ import annotations

import importlib.util
import inspect
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

from pruning_bench.artifacts import save
from pruning_bench.cases import Case, parse_id
from pruning_bench.engine import Progress
from pruning_bench.errors import PruningBenchError
from pruning_bench.own import CONFTEST
from pruning_bench.records import Measurement, read_measurement
from pruning_bench.registry import DATASETS, MODELS, RUNTIMES, STEPS
from pruning_bench.workbench import Workbench

START_SECONDS = 600.0  # to import, read models and data; far more than it takes, so that only what hangs is ended
CASE_SECONDS = 300.0  # further ones for every case
# Modules are looked for where this process looks: neither `-c` nor `-m` may put the working directory in front.
_CODE = "import sys; sys.path[:] = sys.argv[2:]; from pruning_bench.worker import main; main(sys.argv[1])"


def measure_afresh(
    bench: Workbench, case_ids: Iterable[str], processes: int, *, seed: int = 0, progress: Progress | None = None
) -> list[list[Measurement]]:
    """Latency measurements of the cases, one list a process.

    Args:
        bench: makes the models, once; the processes read them from files.
        processes: how many fresh processes, one after the other.
        seed: of the order of cases and blocks; each process adds its number.
    Raises:
        PruningBenchError: a process failed or hangs; ends with its last line.
    """
    cases = [parse_id(case_id) for case_id in case_ids]
    with tempfile.TemporaryDirectory(prefix="pruning_bench-") as folder:
        request = {
            "cases": [str(case) for case in cases],
            "artifacts": _save_models(bench, cases, Path(folder)),
            **user_definitions(),
            "folder": str(bench.folder) if bench.folder else None,
            "full": bench.full,
            "checkpoints": str(bench.checkpoints),
            "rivals": bench.rivals,
        }
        results = []
        for number in range(processes):
            if progress:
                progress("fresh processes", number, processes)
            results.append(_run({**request, "seed": seed + number}, Path(folder), number))
        return results


def _save_models(bench: Workbench, cases: Sequence[Case], folder: Path) -> dict[str, str]:
    """Writes every model that the cases need, and names the files by the first case that needs them."""
    files: dict[str, str] = {}
    seen = set()
    for case in [*cases, *(case.dense for case in cases)]:
        key = (case.model, case.dataset, case.recipe, case.seed)
        if key not in seen:
            seen.add(key)
            file = folder / f"{len(files)}.safetensors"
            card = bench.card(case)
            save(bench.compressed(case), file, model=card["model"], dataset=case.dataset, options=card["options"])
            files[str(case)] = str(file)
    return files


def user_definitions() -> dict[str, list[str]]:
    """What registered something outside the package, by how a fresh process gets at it.

    Returns:
        "settings": pyproject.toml files that name definitions; "modules": modules that can be imported by name;
        "files": all others, above all a conftest.py, whose name means another file in every folder.
    """
    definitions: list[Any] = [RUNTIMES[name] for name in RUNTIMES] + [STEPS[name] for name in STEPS]
    declared = {registry[name].declared for registry in (MODELS, DATASETS) for name in registry}
    definitions += [MODELS[name].build for name in MODELS if not MODELS[name].declared]
    definitions += [DATASETS[name].load for name in DATASETS if not DATASETS[name].declared]
    modules, files = set(), set()
    for definition in definitions:
        module, file = _origin(definition)
        if Path(__file__).parent in file.parents:
            continue
        if _importable(module, file):
            modules.add(module)
        else:
            files.add(str(file))
    return {
        "settings": sorted(str(file) for file in declared if file),
        "modules": sorted(modules),
        "files": sorted(files),
    }


def _origin(definition: Any) -> tuple[str, Path]:
    """The module and the file of a class, a function, or the class of an instance."""
    definition = inspect.unwrap(definition) if callable(definition) else definition
    if not (inspect.isclass(definition) or inspect.isfunction(definition)):
        definition = type(definition)
    return definition.__module__, _file_of(definition).resolve()


def _importable(module: str, file: Path) -> bool:
    """Whether the name of a module leads to this file in any process with the same path."""
    if file.name == CONFTEST or module == "__main__":
        return False
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # a parent that is not there; a module that was made up
        return False
    return spec is not None and spec.origin is not None and Path(spec.origin).resolve() == file


def _file_of(definition: Any) -> Path:
    """Where a function or a class was written: by its code, for two modules may share a name (`conftest`)."""
    parts = vars(definition).values() if isinstance(definition, type) else [definition]
    functions = (inspect.unwrap(part) for part in parts if inspect.isfunction(part))
    files = (function.__code__.co_filename for function in functions)
    return Path(next((file for file in files if not file.startswith("<")), None) or inspect.getfile(definition))


def _run(request: dict[str, Any], folder: Path, number: int) -> list[Measurement]:
    asked, answer = folder / f"request-{number}.json", folder / f"answer-{number}.jsonl"
    asked.write_text(json.dumps({**request, "output": str(answer)}), encoding="utf-8")
    status, last = _start(asked, START_SECONDS + CASE_SECONDS * len(request["cases"]))
    if status != 0 or not answer.is_file():
        raise PruningBenchError("fresh process", f"exit status {status} ({last})", "0 and its measurements")
    lines = answer.read_text(encoding="utf-8").splitlines()
    return [read_measurement(json.loads(line), f"{answer.name}:{row}") for row, line in enumerate(lines, 1)]


def _start(request: Path, limit: float) -> tuple[int, str]:
    """Exit status and last line of a worker; raises `PruningBenchError` when it is not done within `limit` seconds."""
    command = [sys.executable, "-c", _CODE, str(request), *sys.path]
    with tempfile.TemporaryFile() as errors:
        try:
            status = subprocess.run(
                command, stdout=subprocess.DEVNULL, stderr=errors, timeout=limit, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            found = f"not done after {limit:.0f} s ({_last_line(errors)})"
            raise PruningBenchError("fresh process", found, "done by then") from None
        return status, _last_line(errors)


def _last_line(file: IO[bytes]) -> str:
    file.seek(0)
    return (file.read().decode(errors="replace").strip().splitlines() or ["no message"])[-1]
