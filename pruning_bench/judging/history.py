"""The runs in a folder: one file each, `<id>.jsonl`, whose names sort by time."""

from __future__ import annotations

from pathlib import Path

from pruning_bench.errors import RecordError, closest


def run_files(folder: Path) -> list[Path]:
    """Files of runs, oldest first; none when the folder is not there."""
    return sorted(folder.glob("*.jsonl"), key=lambda path: path.name)


def run_path(folder: Path, run_id: str) -> Path:
    """Where a run of this id is kept."""
    return folder / f"{run_id}.jsonl"


def find_run(folder: Path, name: str) -> Path:
    """The run file that `name` means: a path, "latest", or the beginning of an id.

    Raises:
        RecordError: none, or more than one.
    """
    if (path := Path(name)).suffix == ".jsonl" and path.exists():
        return path
    files = run_files(folder)
    if name == "latest" and files:
        return files[-1]
    exact = [path for path in files if path.stem == name]
    found = exact or [path for path in files if path.stem.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise RecordError("run", f"{name!r} begins {len(found)} ids", closest(name, (p.stem for p in found)))
    raise RecordError("run", repr(name), closest(name, (p.stem for p in files)), str(folder))
