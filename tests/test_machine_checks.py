"""What decides whether times can be believed, on invented machines; nothing here depends on the one that runs it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pruning_bench import machine_checks
from pruning_bench.environment import Machine, Ticks
from pruning_bench.judging.policy import Policy
from pruning_bench.machine_checks import (
    CLOCK_SECONDS,
    asked,
    governor,
    memory,
    noise,
    others,
    process_ticks,
    processor,
    steal,
    threads,
    timer,
)
from pruning_bench.metrics.latency import Samples
from pruning_bench.records import Environment
from pruning_bench.reporting.findings import Finding

POLICY = Policy()


def invent(folder: Path, files: dict[str, str]) -> Machine:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return Machine(folder / "proc", folder / "sys")


def facts(instructions: str = "avx2", cores: str = "2", **info: str) -> Environment:
    return Environment({"cpu": "Some CPU", "cores": cores, "instructions": instructions}, info)


def by_name(findings: Sequence[Finding]) -> dict[str, Finding]:
    return {finding.what: finding for finding in findings}


@pytest.mark.parametrize(
    ("instructions", "lacking"),
    [
        ("avx2 avx512_vnni amx_int8 amx_bf16", set()),
        ("asimd asimddp i8mm bf16 sve sme", set()),
        ("avx2 avx512_vnni", {"bf16 arithmetic", "matrix tiles"}),
        ("avx2 fma", {"int8 dot products", "bf16 arithmetic", "matrix tiles"}),
        ("none of note", {"vectors of 256 bits", "int8 dot products", "bf16 arithmetic", "matrix tiles"}),
    ],
)
def test_what_a_processor_lacks_is_told_and_what_it_means(instructions: str, lacking: set[str]) -> None:
    found = processor(facts(instructions))
    noted = {finding.what for finding in found if finding.level == "note"}
    assert noted == lacking, f"{noted}, should be {lacking}"
    assert all(finding.todo for finding in found if finding.level != "ok"), f"{found} should say what it means"


@pytest.mark.parametrize(
    ("cores", "level"), [("2", "ok"), ("1", "note"), ("2 (quota 1.5)", "warning"), ("2 (quota 4)", "ok"), ("?", "note")]
)
def test_cores_and_quotas(cores: str, level: str) -> None:
    found = by_name(processor(facts(cores=cores)))["cores"]
    assert found.level == level, f"{found}, should be {level}"


def test_a_virtual_machine_is_told() -> None:
    assert "virtual machine" in by_name(processor(facts(virtual="true"))), "should be told"
    assert "virtual machine" not in by_name(processor(facts(virtual="false"))), "should not be told"


@pytest.mark.parametrize(
    ("count", "info", "level"),
    [
        (2, {}, "ok"),
        (1, {"OMP_NUM_THREADS": "1"}, "ok"),
        (4, {"OMP_NUM_THREADS": "4"}, "warning"),
        (2, {"KMP_AFFINITY": "compact"}, "note"),
        (2, {"OMP_PROC_BIND": "true"}, "note"),
    ],
)
def test_threads(count: int, info: dict[str, str], level: str) -> None:
    found = threads(facts(**info), count, 2)
    assert found.level == level, f"{found}, should be {level}"
    assert all(f"{name}={value}" in found.found for name, value in info.items()), f"{found} should name {info}"


@pytest.mark.parametrize(
    ("info", "level"), [({"governor": "performance"}, "ok"), ({"governor": "powersave"}, "warning"), ({}, "note")]
)
def test_governor(info: dict[str, str], level: str) -> None:
    assert governor(facts(**info)).level == level, f"{governor(facts(**info))}, should be {level}"


def stat(name: str, user: int, system: int) -> str:
    return f"7 ({name}) S 1 7 7 0 -1 4194304 100 0 0 0 {user} {system} 0 0 20 0 1 0 5 6 7"


def test_the_time_of_processes_whatever_their_names(tmp_path: Path) -> None:
    files = {"proc/7/stat": stat("python", 30, 12), "proc/8/stat": stat("a) (b c", 1, 2), "proc/9/stat": "gone"}
    found = process_ticks(invent(tmp_path, files | {"proc/stat": "cpu 1", "proc/self/stat": stat("me", 9, 9)}))
    assert found == {"python (7)": 42, "a) (b c (8)": 3}, f"{found}"


@pytest.mark.parametrize(
    ("ticks", "level"),
    [
        (Ticks(total=200, idle=198, waiting=0, steal=0), "ok"),
        (Ticks(total=200, idle=100, waiting=100, steal=0), "ok"),
        (Ticks(total=200, idle=150, waiting=0, steal=50), "ok"),
        (Ticks(total=200, idle=100, waiting=0, steal=0), "warning"),
    ],
    ids=["quiet", "waits for a disk", "stolen", "busy"],
)
def test_other_processes(ticks: Ticks, level: str) -> None:
    found = others(ticks, {"a (1)": 30, "b (2)": 90, "c (3)": 20, "d (4)": 15, "e (5)": 9})
    assert found.level == level, f"{found}, should be {level}"
    if level == "warning":
        assert "50 %" in found.found, found
        assert found.todo.endswith("b (2), a (1), c (3)"), f"{found} should name the busiest three, busiest first"
        idle = others(ticks, {"a (1)": 9, "b (2)": 90, "c (3)": 0})
        assert idle.todo.endswith("for b (2)"), f"{idle} should name nobody who hardly ran"


@pytest.mark.parametrize(
    ("stolen", "level"), [(0, "ok"), (1, "ok"), (3, "note"), (5, "note"), (6, "warning"), (100, "warning")]
)
def test_steal_is_a_share_of_what_was_wanted(stolen: int, level: str) -> None:
    found = steal(Ticks(total=1000, idle=800, waiting=100, steal=stolen))
    assert found.level == level, f"{found}, should be {level}"
    assert found.found.startswith(f"{stolen}.0 %"), found


def test_nothing_wanted_is_nothing_stolen() -> None:
    assert steal(Ticks(10, 10, 0, 0)).level == "ok", f"{steal(Ticks(10, 10, 0, 0))}"


@pytest.mark.parametrize(
    ("changes", "fit"),
    [
        ([0.0], True),
        ([0.029, -0.028, 0.001], True),
        ([0.0, 0.0, 0.0, 0.035], False),
        ([0.0, 0.0, 0.0, -0.035], False),
    ],
    ids=["quiet", "within", "once slower", "once faster"],
)
def test_noise(changes: list[float], fit: bool) -> None:
    found = noise([math.log1p(change) for change in changes], POLICY)
    assert found.level == ("ok" if fit else "warning"), f"{found}"
    assert found.found.startswith("fit: " if fit else "noisy: "), f"{found} should say it plainly"
    assert f"{100 * max(changes):+.1f}] %" in found.found, f"{found} should hold the largest"


def test_the_probe_times_one_work_against_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = []

    def sampled(anchor: Callable[[], object], case: Callable[[], object], **options: int) -> Samples:
        assert anchor is case, "should be the same work"
        assert options["min_pairs"] == options["max_pairs"] == POLICY.min_pairs, f"{options}, should be as for a case"
        anchor()
        seeds.append(options["seed"])
        return Samples((1.0, 1.0), (1.1, 1.1), (), (), {}, (1, 1), True, "most", 1.0)

    monkeypatch.setattr(machine_checks, "sample", sampled)
    found = machine_checks.self_ratios()
    assert found == pytest.approx([math.log(1.1)] * machine_checks.PROBES), f"{found}"
    assert len(set(seeds)) == machine_checks.PROBES, f"{seeds}, should be in different orders"


class Clock:
    """Reading it takes `cost`; it shows only whole `step`s."""

    def __init__(self, cost: float, step: float = 0.0) -> None:
        self.now, self.cost, self.step = 0.0, cost, step

    def __call__(self) -> float:
        self.now += self.cost
        return math.floor(self.now / self.step) * self.step if self.step else self.now


@pytest.mark.parametrize(
    ("clock", "level"),
    [
        (Clock(5e-8), "ok"),
        (Clock(2 * CLOCK_SECONDS), "warning"),
        (Clock(1e-7, 1e-5), "warning"),
        (Clock(0.0), "warning"),
    ],
    ids=["fine", "slow to read", "coarse", "stands still"],
)
def test_timer(clock: Clock, level: str, tmp_path: Path) -> None:
    source = {"sys/devices/system/clocksource/clocksource0/current_clocksource": "hpet\n"}
    found = timer(invent(tmp_path, source), clock)
    assert found.level == level, f"{found}, should be {level}"
    assert clock.cost == 0 or "source hpet" in found.found, found


def meminfo(kilobytes: int) -> str:
    return f"MemTotal:       99999999 kB\nMemAvailable:   {kilobytes} kB\nHugePages_Total: 0\n"


def group(limit: str, taken: str) -> dict[str, str]:
    return {"sys/fs/cgroup/memory.max": limit, "sys/fs/cgroup/memory.current": taken}


@pytest.mark.parametrize(
    ("files", "shown", "level"),
    [
        ({"proc/meminfo": meminfo(8_000_000)}, "8.19 GB", "ok"),
        ({"proc/meminfo": meminfo(1_000_000)}, "1.02 GB", "warning"),
        (group("max\n", "9"), "8.19 GB", "ok"),
        (group("3000000000", "2000000000"), "1.00 GB", "warning"),
        (group("90000000000", "0"), "8.19 GB", "ok"),
    ],
    ids=["enough", "little", "no limit", "a small container", "a large container"],
)
def test_memory(files: dict[str, str], shown: str, level: str, tmp_path: Path) -> None:
    found = memory(invent(tmp_path, {"proc/meminfo": meminfo(8_000_000)} | files))
    assert (found.level, found.found) == (level, f"{shown} free"), f"{found}"


@pytest.mark.parametrize("broken", ["", "no colon", "MemTotal: 1 kB\n", "MemAvailable: many kB\n", "MemAvailable:\n"])
def test_what_cannot_be_told_is_a_note(broken: str, tmp_path: Path) -> None:
    found = asked("memory", lambda: memory(invent(tmp_path, {"proc/meminfo": broken})))
    assert (found.level, found.found) == ("note", "cannot be told here"), f"{found}"
    assert found.todo, "the reason should be there"


def test_a_defect_is_no_note() -> None:
    def defect() -> Finding:
        raise AttributeError("a slip of the pen")

    with pytest.raises(AttributeError):
        asked("memory", defect)
