"""The environment record: read from invented machines; never raises, and only what matters for times must match."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pruning_bench import environment
from pruning_bench.environment import Machine, Ticks, current, processor_ticks
from pruning_bench.errors import PluginError
from pruning_bench.records import Environment
from pruning_bench.registry import Registry

INTEL = """processor\t: 0
model name\t: Intel(R) Xeon(R) Processor
cpu family\t: 6
model\t\t: 143
stepping\t: 8
microcode\t: 0x1
flags\t\t: fpu sse2 avx avx2 fma avx512f avx512_vnni amx_tile amx_int8 hypervisor

processor\t: 1
model name\t: another
"""
ARM = (
    "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\nCPU revision\t: 1\n"
)


def invent(folder: Path, files: dict[str, str]) -> Machine:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return Machine(folder / "proc", folder / "sys")


def test_the_processor_is_told_by_what_it_can_do(tmp_path: Path) -> None:
    found = current(machine=invent(tmp_path, {"proc/cpuinfo": INTEL}))
    cpu, instructions = found.must_match["cpu"], found.must_match["instructions"]
    assert cpu == "Intel(R) Xeon(R) Processor cpu family 6 model 143 stepping 8", cpu
    assert instructions == "avx avx2 fma avx512f avx512_vnni amx_tile amx_int8", instructions
    assert found.info["virtual"] == "true", f"{found.info} should say that it is a virtual machine"
    assert found.info["microcode"] == "0x1", f"{found.info} should hold the microcode"


def test_two_processors_of_one_name_are_told_apart(tmp_path: Path) -> None:
    keys = {
        current(machine=invent(tmp_path / name, {"proc/cpuinfo": text})).key
        for name, text in (
            ("a", INTEL),
            ("no amx", INTEL.replace("amx_int8", "")),
            ("model", INTEL.replace("143", "207")),
        )
    }
    assert len(keys) == 3, f"{len(keys)} keys, should be 3"


def test_arm(tmp_path: Path) -> None:
    found = current(machine=invent(tmp_path, {"proc/cpuinfo": ARM})).must_match
    assert found["cpu"] == "CPU implementer 0x41 CPU part 0xd0c CPU revision 1", found["cpu"]
    assert found["instructions"] == "asimd asimddp i8mm", found["instructions"]


def test_cores_are_those_this_process_may_use(tmp_path: Path) -> None:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    for name, quota, expected in (
        ("none", None, f"{count}"),
        ("most", "max 100000\n", f"{count}"),
        ("some", "150000 100000\n", f"{count} (quota 1.5)"),
    ):
        files = {} if quota is None else {"sys/fs/cgroup/cpu.max": quota}
        found = current(machine=invent(tmp_path / name, files)).must_match["cores"]
        assert found == expected, f"{found!r} for {quota!r}, should be {expected!r}"


def test_load_steal_and_governor_are_noted_and_do_not_matter(tmp_path: Path) -> None:
    quiet = {"proc/loadavg": "0.00 0.10 0.20 1/2 3\n", "proc/stat": "cpu  10 0 10 70 0 0 0 10 0 0\ncpu0 1\n"}
    busy = {"proc/loadavg": "9.00 9.10 9.20 1/2 3\n", "proc/stat": "cpu  70 0 10 10 0 0 0 10 0 0\n"}
    governor = {"sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n"}
    a = current(machine=invent(tmp_path / "a", quiet))
    b = current(machine=invent(tmp_path / "b", busy | governor))
    assert a.info["load"] == "0.00 0.10 0.20", a.info
    assert a.info["steal"] == "0.1000 (idle 0.7000)", a.info
    assert b.info["governor"] == "powersave", b.info
    assert a.key == b.key, f"{a.must_match} and {b.must_match} should be one environment"


def test_ticks_are_those_of_proc_stat_and_can_be_subtracted(tmp_path: Path) -> None:
    before = processor_ticks(invent(tmp_path / "a", {"proc/stat": "cpu  1 2 3 40 5 6 7 8 9 9\ncpu0 1\n"}))
    after = processor_ticks(invent(tmp_path / "b", {"proc/stat": "cpu  2 2 3 50 7 6 7 11 9 9\ncpu0 1\n"}))
    assert before == Ticks(total=72, idle=40, waiting=5, steal=8), f"{before}; time of guests is in user already"
    assert after.since(before) == Ticks(total=16, idle=10, waiting=2, steal=3), f"{after.since(before)}"


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"proc/cpuinfo": "", "proc/stat": "", "proc/loadavg": ""},
        {"proc/cpuinfo": "\0\xff no colon", "proc/stat": "cpu x", "sys/fs/cgroup/cpu.max": "1"},
        {"proc/stat": "cpu 0 0 0 0 0 0 0 0", "sys/fs/cgroup/cpu.max": "1 0\n"},
    ],
    ids=["nothing", "empty", "foreign", "zeros"],
)
def test_nothing_that_is_broken_raises(broken: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    found = current(device="cuda", root=tmp_path / "nowhere", machine=invent(tmp_path, broken))
    for name in ("arch", "os", "cores", "cpu", "instructions", "python", "gpu", "gpu_driver"):
        assert found.must_match[name], f"{name} should be there in {found.must_match}"
    assert "revision" not in found.info, f"{found.info} should hold no revision"
    assert "dirty" not in found.info, f"{found.info} should not speak of changes"


def test_versions_are_those_installed() -> None:
    import torch

    found = current(versions={"runtime openvino": "9"}, threads=3).must_match
    assert found["torch"] == torch.__version__, f"{found['torch']}, should be {torch.__version__}"
    assert found["runtime openvino"] == "9", f"{found} should hold the given versions"
    assert found["threads"] == "3", f"{found} should hold the threads"
    assert found["python"] == ".".join(platform.python_version_tuple()[:2]), f"{found['python']}"
    assert "threads" not in current().must_match, "threads belong to the cases unless given"
    assert "gpu" not in current().must_match, "a GPU matters when it is used"


def git(folder: Path, *words: str) -> str:
    options = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", "-C", str(folder), *options, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_revision_and_whether_files_changed(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "file").write_text("one")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-q", "-m", "one")
    clean = current(root=tmp_path).info
    (tmp_path / "file").write_text("two")
    changed = current(root=tmp_path).info
    assert clean["revision"] == git(tmp_path, "rev-parse", "HEAD"), f"{clean['revision']} should be the last commit"
    assert (clean["dirty"], changed["dirty"]) == ("false", "true"), f"{clean['dirty']} and then {changed['dirty']}"


def test_all_values_are_text() -> None:
    found = current()
    wrong = {k: v for part in (found.must_match, found.info) for k, v in part.items() if not isinstance(v, str)}
    assert not wrong, f"{wrong} should be text, for JSON and for comparing"


def test_torch_is_not_loaded() -> None:
    code = "import sys; from pruning_bench import environment; environment.current(); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"environment.current() loads torch: {done}"


def test_a_command_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*words: object, **options: object) -> None:
        assert options.get("timeout") == environment.COMMAND_SECONDS, f"{options} should have a time limit"
        raise subprocess.TimeoutExpired("git", environment.COMMAND_SECONDS)

    monkeypatch.setattr(environment.subprocess, "run", hang)
    assert "revision" not in current().info, "a revision that cannot be told should be left out"


class Working:
    """A runtime as it should be."""

    def available(self, device: str = "cpu") -> str | None:
        return None if device == "cpu" else f"runs on the CPU, not on {device}"

    def version(self) -> str:
        return "7"


class CannotTell(Working):
    def available(self, device: str = "cpu") -> str | None:
        raise ImportError("libfast.so: cannot open\nsecond line")


class NoVersion(Working):
    def version(self) -> str:
        raise AttributeError("module 'fast' has no attribute '__version__'")


class TupleVersion(Working):
    def version(self) -> str:
        return (7, 1)  # type: ignore[return-value]


class YesOrNo(Working):
    def available(self, device: str = "cpu") -> str | None:
        return True  # type: ignore[return-value]


def suite_with(runtime: object, device: str = "cpu") -> Environment:
    runtimes: Registry[Any] = Registry("runtime")
    runtimes.add("fast", runtime)
    return environment.of_suite(runtimes, device)


def test_the_runtimes_that_are_here_are_part_of_what_must_match() -> None:
    found = suite_with(Working()).must_match
    assert found["runtime fast"] == "7", f"{found} should hold the version of the runtime"
    found = suite_with(Working(), "cuda").must_match
    assert "runtime fast" not in found, f"{found} should not hold a runtime that cannot run on the device"


@pytest.mark.parametrize(
    ("runtime", "says"),
    [
        (CannotTell(), "available() raises ImportError: libfast.so: cannot open second line"),
        (NoVersion(), "version() raises AttributeError: module 'fast' has no attribute '__version__'"),
        (TupleVersion(), "version() returns (7, 1), should be text"),
        (YesOrNo(), "available() returns True, should be None, or the reason"),
    ],
    ids=["cannot tell", "no version", "a tuple", "yes or no"],
)
def test_a_runtime_that_answers_wrongly_is_named(runtime: Working, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: {__name__.split(".")[0]: ["fast-bench"]})
    with pytest.raises(PluginError) as caught:
        suite_with(runtime)
    text = str(caught.value)
    assert text.startswith("runtime fast: "), f"{text!r} should name the runtime"
    assert says in text, f"{text!r} should say {says!r}"
    assert text.endswith(f"{type(runtime).__name__} of fast-bench]"), f"{text!r} should name class and distribution"
    assert "\n" not in text, f"{text!r} should be one line"
