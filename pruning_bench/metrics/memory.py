"""Peak memory of a call: how much more was in use at its worst moment than just before it, in bytes.

On Linux the kernel keeps the high-water mark of a process' resident memory and lets the process reset it, so nothing is
missed between samples; where it may not be reset, a thread samples the resident memory instead. On CUDA torch's own
allocator is asked.

Limits. The growth holds what the call allocated at once (activations, workspaces, packed weights), not the weights
that were there before it. What an allocator already held and hands out again is invisible: free memory is given back
to the system first where the C library can, but runtimes with arenas of their own keep theirs, and a first call shows
more than a second one, since kernels and thread stacks are made lazily. Other threads' allocations are charged to the
call. Resolution: one page. So the number is shown and never judged.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pruning_bench.metrics.latency import no_garbage_collection

PROC = Path("/proc/self")
SAMPLE_SECONDS = 0.001


@dataclass(frozen=True)
class Peak:
    """What a call needed.

    Args:
        bytes: growth over the memory in use before the call, >= 0; None when it cannot be told.
        how: "high-water mark", "sampled" (may miss short peaks) or "cuda allocator".
        reason: why `bytes` is None; empty otherwise.
    """

    bytes: int | None
    how: str
    reason: str = ""


def peak_memory(call: Callable[[], object], device: str = "cpu", proc: Path = PROC) -> Peak:
    """Runs `call` once and tells how much memory it needed.

    Args:
        call: takes no arguments; an exception passes through.
        device: "cpu" or "cuda".
        proc: the process' folder under /proc, for tests.
    """
    with no_garbage_collection():  # what lies about stays for the while: neither given back nor used again by the call
        if device.startswith("cuda"):
            return _cuda_peak(call, device)
        _give_back_free_memory()
        if _field(proc, "VmRSS") is None:
            call()
            return Peak(None, "", f"no resident memory in {proc}/status; only Linux tells it")
        return _high_water(call, proc) if _reset_high_water(proc) else _sampled(call, proc)


def _high_water(call: Callable[[], object], proc: Path) -> Peak:
    before = _field(proc, "VmRSS") or 0
    call()
    return Peak(max(0, (_field(proc, "VmHWM") or 0) - before), "high-water mark")


def _sampled(call: Callable[[], object], proc: Path) -> Peak:
    before = _field(proc, "VmRSS") or 0
    highest, done = before, threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(SAMPLE_SECONDS):
            highest = max(highest, _field(proc, "VmRSS") or 0)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        call()
    finally:
        done.set()
        watcher.join()
    return Peak(max(highest, _field(proc, "VmRSS") or 0) - before, "sampled")


def _cuda_peak(call: Callable[[], object], device: str) -> Peak:
    import torch

    if not torch.cuda.is_available():
        call()
        return Peak(None, "", "no CUDA device here")
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return Peak(torch.cuda.max_memory_allocated(device) - before, "cuda allocator")


def _reset_high_water(proc: Path) -> bool:
    """Sets VmHWM back to VmRSS (proc(5), clear_refs 5); False where that is not allowed."""
    try:
        (proc / "clear_refs").write_text("5")
    except OSError:
        return False
    return _field(proc, "VmHWM") is not None


def _field(proc: Path, name: str) -> int | None:
    """A memory field of /proc/self/status, in bytes."""
    try:
        lines = (proc / "status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)


def _give_back_free_memory() -> None:
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):
        return  # not glibc
