"""Peak memory: of a call that fills so much, and on machines that do not tell."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pruning_bench.metrics import memory
from pruning_bench.metrics.memory import Peak, peak_memory

MIB = 1 << 20
HERE = (memory.PROC / "status").is_file()
only_linux = pytest.mark.skipif(not HERE, reason="no /proc/self/status here")


def fill(size: int) -> Callable[[], object]:
    """Touches `size` bytes and lets go of them again."""
    return lambda: len(bytearray(b"x") * size)


def frozen_proc(folder: Path, resident: int) -> Path:
    """A /proc/self whose high-water mark cannot be reset, as in some containers."""
    (folder / "status").write_text(f"Name:\tpython\nVmHWM:\t{resident} kB\nVmRSS:\t{resident} kB\n")
    (folder / "clear_refs").mkdir()
    return folder


def check_growth(measure: Callable[[Callable[[], object]], Peak], size: int) -> None:
    """What a call of `size` bytes is charged: no less, and not a third more (other threads allocate too)."""
    peak = measure(fill(size))
    assert peak.bytes is not None, f"{peak} should tell"
    assert 0.95 * size <= peak.bytes <= 1.33 * size, f"{peak} of a call that fills {size}"


@only_linux
@pytest.mark.parametrize("size", [48 * MIB, 192 * MIB])
def test_a_call_is_charged_what_it_fills(size: int) -> None:
    check_growth(peak_memory, size)


def after_the_call(call: Callable[[], object]) -> Peak:
    """Mutant: looks at what is resident once the call has let go of it."""
    before = memory._field(memory.PROC, "VmRSS") or 0
    call()
    return Peak((memory._field(memory.PROC, "VmRSS") or 0) - before, "after")


def never_reset(call: Callable[[], object]) -> Peak:
    """Mutant: the high-water mark of the whole life of the process."""
    call()
    return Peak(memory._field(memory.PROC, "VmHWM"), "for ever")


@only_linux
@pytest.mark.parametrize("mutant", [after_the_call, never_reset])
def test_growth_rejects(mutant: Callable[[Callable[[], object]], Peak]) -> None:
    with pytest.raises(AssertionError):
        check_growth(mutant, 192 * MIB)  # more than anything else in the process takes or gives back meanwhile


@only_linux
def test_an_earlier_peak_is_not_charged_again() -> None:
    fill(192 * MIB)()
    check_growth(peak_memory, 48 * MIB)


@only_linux
def test_tensors_are_seen() -> None:
    peak = peak_memory(lambda: torch.ones(16 * MIB).sum())
    assert peak.bytes is not None, f"{peak} should tell"
    assert peak.bytes >= 60 * MIB, f"{peak} of a tensor of {64 * MIB}"


def test_sampling_where_the_mark_cannot_be_reset(tmp_path: Path) -> None:
    proc = frozen_proc(tmp_path, 1000)

    def grow() -> None:
        (proc / "status").write_text("VmRSS:\t5000 kB\n")

    peak = peak_memory(grow, proc=proc)
    assert peak == Peak(4000 * 1024, "sampled"), f"{peak}, should be the 4000 kB between the two readings"


def test_no_proc_is_said_and_the_call_runs_all_the_same(tmp_path: Path) -> None:
    ran = []
    peak = peak_memory(lambda: ran.append(1), proc=tmp_path / "nowhere")
    assert ran == [1], f"the call ran {len(ran)} times, should be once"
    assert peak.bytes is None, f"{peak} should not tell"
    assert "only Linux" in peak.reason, f"{peak} should say why"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_said_and_the_call_runs_all_the_same() -> None:
    ran = []
    peak = peak_memory(lambda: ran.append(1), "cuda")
    assert (ran, peak.bytes, peak.reason) == ([1], None, "no CUDA device here"), f"{ran}, {peak}"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_is_asked() -> None:
    kept = torch.ones(MIB, device="cuda")
    peak = peak_memory(lambda: (kept + 1).sum().item(), "cuda")
    assert peak.bytes is not None, f"{peak} should tell"
    assert 4 * MIB <= peak.bytes <= 6 * MIB, f"{peak} of a sum that needs {4 * MIB}"


@pytest.mark.parametrize("resettable", [True, False])
def test_errors_of_the_call_pass_through(resettable: bool, tmp_path: Path) -> None:
    def failing() -> None:
        raise RuntimeError("from the call")

    proc = frozen_proc(tmp_path, 1000)
    if resettable:
        shutil.rmtree(proc / "clear_refs")
    with pytest.raises(RuntimeError, match="from the call"):
        peak_memory(failing, proc=proc)
