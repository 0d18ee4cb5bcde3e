"""The runs in a folder: one file each, `<id>.jsonl`, whose names sort by time."""

from __future__ import annotations

from pathlib import Path

from pruning_bench.errors import RecordError, closest
from pruning_bench.records import read_head


def run_files(folder: Path) -> list[Path]:
    """Files of runs, oldest first; none when the folder is not there."""
    return sorted(folder.glob("*.jsonl"), key=lambda path: path.name)


def run_path(folder: Path, run_id: str) -> Path:
    """Where a run of this id is kept."""
    return folder / f"{run_id}.jsonl"


def find_run(folder: Path, name: str) -> Path:
    """The run file that `name` means: a path, "latest", the beginning of an id, or `torch=2.11`.

    The last is the latest run whose environment has that version, or a longer one that begins with it; any name of the
    environment will do.

    Raises:
        RecordError: none, or more than one.
    """
    if ("/" in name or name.endswith(".jsonl")) and (path := Path(name)).exists():
        return path
    files = run_files(folder)
    if name == "latest" and files:
        return files[-1]
    what, equals, version = name.partition("=")
    if equals:
        return _latest_with(files, what, version, folder)
    exact = [path for path in files if path.stem == name]
    found = exact or [path for path in files if path.stem.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise RecordError("run", f"{name!r} begins {len(found)} ids", f"longer, the last is {found[-1].stem}")
    there = f"one of {len(files)} ids or latest, which is {files[-1].stem}" if files else "an id, but no run is there"
    raise RecordError("run", repr(name), there, str(folder))


def _latest_with(files: list[Path], what: str, version: str, folder: Path) -> Path:
    seen: dict[str, None] = {}
    damaged: RecordError | None = None
    for path in reversed(files):
        try:
            found = str(read_head(path).environment.must_match.get(what, "none"))
        except RecordError as problem:  # of another run than the one that is wanted, if there is that
            damaged = damaged or problem
            continue
        if found == version or found.startswith((f"{version}.", f"{version}+")):
            return path
        seen[found] = None
    if damaged:
        raise damaged
    raise RecordError("run", f"no run with {what} {version}", closest(version, seen), str(folder))
