"""What is fit to measure here, what is missing, and what to do about it: `pruning-bench doctor`.

Facts are read where the arguments say, so that tests invent them.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pruning_bench import machine_checks as checks
from pruning_bench.discover import discover
from pruning_bench.environment import UNKNOWN, Machine, cores, current, processor_ticks
from pruning_bench.errors import PruningBenchError, one_line
from pruning_bench.judging.policy import Policy
from pruning_bench.machine_checks import asked
from pruning_bench.records import Environment
from pruning_bench.registry import DATASETS, RUNTIMES, Registry
from pruning_bench.reporting import text
from pruning_bench.reporting.findings import Finding

ASLEEP_SECONDS = 1.0
LEAST_DISK = 5e8  # bytes


def examine(
    results: Path,
    machine: Machine | None = None,
    *,
    pause: Callable[[float], None] = time.sleep,
    probe: Callable[[], Sequence[float]] = checks.self_ratios,
) -> list[Finding]:
    """Looks at everything; takes a second asleep, to see what others do, and two at the noise probe.

    Args:
        results: the folder that runs are written to; need not exist.
        machine: where facts about it are read.
        pause: sleeps for so many seconds.
        probe: log ratios of a piece of work to itself.
    Raises:
        PruningBenchError: `results` is a file.
    """
    if results.exists() and not results.is_dir():
        raise PruningBenchError("doctor", "a file", "a folder", str(results))
    machine = machine or Machine()
    facts, unloaded = current(machine=machine), load_definitions()
    return [
        *software(facts),
        *unloaded,
        *runtimes(RUNTIMES),
        *checks.processor(facts),
        asked("threads", lambda: checks.threads(facts, _torch_threads(), cores())),
        checks.governor(facts),
        asked("other processes", lambda: _others(machine, pause)),
        *_steal_and_noise(machine, probe),
        asked("timer", lambda: checks.timer(machine)),
        asked("memory", lambda: checks.memory(machine)),
        asked("results folder", lambda: disk(results)),
        *datasets(DATASETS),
    ]


def load_definitions() -> list[Finding]:
    """Loads everything that is registered; a finding if that fails, since what follows is then not all."""
    try:
        discover()
    except (PruningBenchError, ImportError) as problem:
        todo = f"install or remove what is broken: {one_line(problem)}"
        return [Finding("warning", "definitions", "not all could be loaded", todo)]
    return []


def _torch_threads() -> int:
    import torch

    return torch.get_num_threads()


def _others(machine: Machine, pause: Callable[[float], None]) -> Finding:
    earlier, before = checks.process_ticks(machine), processor_ticks(machine)
    pause(ASLEEP_SECONDS)
    gone, now = processor_ticks(machine).since(before), checks.process_ticks(machine)
    return checks.others(gone, {name: ticks - earlier.get(name, 0) for name, ticks in now.items()})


def _steal_and_noise(machine: Machine, probe: Callable[[], Sequence[float]]) -> list[Finding]:
    ratios: list[float] = []

    def stolen() -> Finding:
        before = processor_ticks(machine)
        ratios.extend(probe())
        return checks.steal(processor_ticks(machine).since(before))

    return [asked("steal time", stolen), asked("noise", lambda: checks.noise(ratios or probe(), Policy()))]


def software(facts: Environment) -> list[Finding]:
    """Python and torch."""
    found = [Finding("ok", "python", facts.info.get("python", UNKNOWN))]
    for name in ("torch", "torchvision"):
        if version := facts.must_match.get(name):
            found.append(Finding("ok", name, version))
        else:
            found.append(Finding("warning", name, "not installed", f"python -m pip install {name}"))
    return found


def runtimes(registry: Registry[Any]) -> list[Finding]:
    """A finding for each: version, devices and what it says of this machine; or the reason why it is not here."""
    return [_runtime(name, registry) for name in registry]


def _runtime(name: str, registry: Registry[Any]) -> Finding:
    what = f"runtime {name}"
    try:
        reasons = {device: registry.ask(name, "available", device) for device in ("cpu", "cuda")}
        devices = " and ".join(device for device, reason in reasons.items() if reason is None)
        if not devices:
            return Finding("note", what, "not here", str(reasons["cpu"]))
        remarks = registry.ask(name, "remarks") if hasattr(registry[name], "remarks") else ()
        version = registry.ask(name, "version")
    except PruningBenchError as problem:
        return Finding("warning", what, "broken", str(problem))
    return Finding("note" if remarks else "ok", what, f"{version} on {devices}", "; ".join(remarks))


def disk(results: Path, free: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free) -> Finding:
    """Room where runs are written.

    Args:
        results: the folder; where it does not exist, the one that it would be made in is looked at.
        free: bytes left in a folder.
    """
    whole = results.absolute()
    folder = next(place for place in (whole, *whole.parents) if place.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        return Finding("warning", "results folder", f"{folder} cannot be written", "choose another by --pb-results")
    found = f"{text.amount(free(folder), 'B')} free in {folder}"
    if free(folder) < LEAST_DISK:
        return Finding("warning", "results folder", found, "make room: a run that cannot be written is lost")
    return Finding("ok", "results folder", found)


def datasets(registry: Registry[Any]) -> list[Finding]:
    """A finding for each: what of it ships, and where the full data lies; nothing is read or downloaded."""
    return [_dataset(f"data set {name}", registry[name]) for name in registry]


def _dataset(what: str, entry: Any) -> Finding:
    if entry.look is None:
        return Finding("ok", what, "only its own loader can tell")
    try:
        shipped, full = entry.look()
    except PruningBenchError as problem:
        return Finding("warning", what, "not where it should be", str(problem))
    parts = [*(["shipped part"] if shipped else []), *([f"full data in {full}"] if full else [])]
    if not parts:
        todo = "it is downloaded when it is first asked for, or name its folder by PRUNING_BENCH_DATA"
        return Finding("note", what, "not here", todo)
    return Finding("ok", what, ", ".join(parts))
