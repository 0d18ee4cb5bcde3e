"""Where a run is made: what must be equal for times to be comparable, and what else is worth keeping; no torch at load.

Best effort: nothing about the machine raises. What cannot be read is "unknown" in `must_match` and left out of `info`.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from pruning_bench.records import Environment
from pruning_bench.registry import Registry

UNKNOWN = "unknown"
TIMED_DISTRIBUTIONS = ("torch", "torchvision", "onnxruntime")
NOTED_DISTRIBUTIONS = ("numpy", "onnx", "pytest-benchmark")
# What decides which kernels run; a virtual machine's model name ("AMD EPYC") does not tell it.
INSTRUCTIONS = (
    *("avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16", "amx_fp16", "asimd", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"),
)
NOTED_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_PROC_BIND", "KMP_AFFINITY", "ONEDNN_MAX_CPU_ISA", "CI")
COMMAND_SECONDS = 10


@dataclass(frozen=True)
class Machine:
    """Where the facts are read from; another folder in tests."""

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")

    def text(self, path: str) -> str:
        """A file under /proc or /sys; raises `OSError`."""
        root, _, rest = path.partition("/")
        return ({"proc": self.proc, "sys": self.sys}[root] / rest).read_text(encoding="utf-8", errors="replace")


def current(
    threads: int | None = None,
    device: str = "cpu",
    versions: Mapping[str, str] | None = None,
    root: Path | None = None,
    machine: Machine | None = None,
) -> Environment:
    """The environment of this process.

    Args:
        threads: part of what must match when it is the same for the whole run; cases name theirs in their ids.
        device: "cpu", or "cuda" to add the GPU and its driver.
        versions: of further runtimes that times depend on.
        root: the folder whose git revision is noted; the working directory otherwise.

    Example:
        >>> sorted(current().must_match)[:3]
        ['arch', 'cores', 'cpu']
    """
    machine = machine or Machine()
    facts: dict[str, Callable[[], str | None]] = {
        "arch": platform.machine,
        "os": platform.system,
        "cores": lambda: _cores(machine),
        "cpu": lambda: _cpu_model(machine),
        "instructions": lambda: _instructions(machine),
        "python": lambda: ".".join(platform.python_version_tuple()[:2]),
    }
    must_match = {name: _try(fact) or UNKNOWN for name, fact in facts.items()}
    must_match |= {name: version for name in TIMED_DISTRIBUTIONS if (version := _version(name))}
    if build := _try(_torch_build):
        must_match["torch"] = build
    must_match |= dict(versions or {})
    if threads is not None:
        must_match["threads"] = str(threads)
    if device.startswith("cuda"):
        must_match["gpu"] = _try(lambda: _gpu(device)) or UNKNOWN
        must_match["gpu_driver"] = _try(_gpu_driver) or UNKNOWN
    return Environment(must_match=must_match, info=_info(root or Path.cwd(), machine))


def _info(root: Path, machine: Machine) -> dict[str, str]:
    facts: dict[str, Callable[[], str | None]] = {
        "date": lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "revision": lambda: _command("git", "-C", str(root), "rev-parse", "HEAD"),
        "dirty": lambda: str(bool(_command("git", "-C", str(root), "status", "--porcelain", "-uno"))).lower(),
        "kernel": platform.release,
        "python": lambda: f"{platform.python_implementation()} {platform.python_version()}",
        "governor": lambda: machine.text("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip(),
        "load": lambda: " ".join(machine.text("proc/loadavg").split()[:3]),
        "steal": lambda: _steal(machine),
        "virtual": lambda: str("hypervisor" in _cpuinfo(machine).get("flags", "").split()).lower(),
        "microcode": lambda: _cpuinfo(machine).get("microcode"),
    }
    info = {name: value for name, fact in facts.items() if (value := _try(fact))}
    if "revision" not in info:
        info.pop("dirty", None)
    info |= {name: version for name in NOTED_DISTRIBUTIONS if (version := _version(name))}
    return info | {name: os.environ[name] for name in NOTED_VARIABLES if os.environ.get(name)}


def _try(fact: Callable[[], str | None]) -> str | None:
    # Facts come from files, tools and drivers of machines nobody here has seen; none may cost a run its records.
    with contextlib.suppress(Exception):
        return fact() or None
    return None


def _version(distribution: str) -> str | None:
    return _try(lambda: importlib.metadata.version(distribution))


def _torch_build() -> str | None:
    """torch's own version, whose end (+cpu, +cu130) a wheel's metadata may not have; read without importing torch."""
    spec = importlib.util.find_spec("torch")
    for folder in spec.submodule_search_locations or () if spec else ():
        found = re.search(r"__version__\s*=\s*'([^']+)'", (Path(folder) / "version.py").read_text())
        return found[1] if found else None
    return None


def _cpuinfo(machine: Machine) -> dict[str, str]:
    """The first processor's fields of /proc/cpuinfo."""
    first = machine.text("proc/cpuinfo").split("\n\n")[0]
    fields = (line.partition(":") for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, _, value in fields}


def _cpu_model(machine: Machine) -> str:
    try:
        fields = _cpuinfo(machine)
    except OSError:
        return platform.processor() or platform.machine()
    if "model name" in fields:
        numbers = (f"{key} {fields[key]}" for key in ("cpu family", "model", "stepping") if key in fields)
        return " ".join([fields["model name"], *numbers])
    numbers = (f"{key} {fields[key]}" for key in ("CPU implementer", "CPU part", "CPU revision") if key in fields)
    return " ".join(numbers) or platform.processor() or platform.machine()


def _instructions(machine: Machine) -> str:
    fields = _cpuinfo(machine)
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    return " ".join(name for name in INSTRUCTIONS if name in flags) or "none of note"


def cores() -> int:
    """How many logical cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cores(machine: Machine) -> str:
    """The cores of this process, and the share of them that a container is given."""
    try:
        quota, period = machine.text("sys/fs/cgroup/cpu.max").split()
        return f"{cores()} (quota {int(quota) / int(period):g})"
    except (OSError, ValueError):  # no cgroup, or "max"
        return str(cores())


class Ticks(NamedTuple):
    """Time of all processors together, in the kernel's ticks; differences of two readings are what is of use.

    Args:
        total: all of it.
        idle: with nothing to run.
        waiting: idle too, while something waits for a disk.
        steal: with something to run, and given to others by the host of a virtual machine.
    """

    total: int
    idle: int
    waiting: int
    steal: int

    def since(self, earlier: Ticks) -> Ticks:
        """What went by between two readings."""
        return Ticks(*(now - then for now, then in zip(self, earlier, strict=True)))


def processor_ticks(machine: Machine) -> Ticks:
    """Since boot, from the first line of /proc/stat (proc(5)); raises `OSError`, `ValueError` or `IndexError`."""
    ticks = [int(word) for word in machine.text("proc/stat").splitlines()[0].split()[1:9]]
    return Ticks(sum(ticks), ticks[3], ticks[4], ticks[7])


def _steal(machine: Machine) -> str:
    """Share of the processors' time since boot that the host gave to others, and the share they idled."""
    ticks = processor_ticks(machine)
    return f"{ticks.steal / ticks.total:.4f} (idle {ticks.idle / ticks.total:.4f})"


def _gpu(device: str) -> str:
    import torch

    return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"


def _gpu_driver() -> str | None:
    listing = _command("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return listing.splitlines()[0].strip()


def _command(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=True)
    return done.stdout.strip()


def of_suite(runtimes: Registry[Any], device: str = "cpu", names: Iterable[str] | None = None) -> Environment:
    """The environment of a run of the suite: with the versions of its runtimes that are here.

    Args:
        runtimes: the registry of runtimes.
        names: those of the run; None for all. Times do not depend on what else is installed.
    Raises:
        PluginError: a runtime that raises, or answers what it should not; names its distribution.
    """
    chosen = list(runtimes) if names is None else sorted(set(names))
    here = [name for name in chosen if _reason(runtimes, name, device) is None]
    return current(device=device, versions={f"runtime {name}": _runtime_version(runtimes, name) for name in here})


def _reason(runtimes: Registry[Any], name: str, device: str) -> str | None:
    reason = runtimes.ask(name, "available", device)
    if reason is not None and not (isinstance(reason, str) and reason):
        raise runtimes.blame(name, f"available() returns {reason!r}", "None, or the reason why it is not here")
    return reason


def _runtime_version(runtimes: Registry[Any], name: str) -> str:
    version = runtimes.ask(name, "version")
    if not isinstance(version, str):
        raise runtimes.blame(name, f"version() returns {version!r}", "text")
    return version
