"""What of the machine decides whether times can be believed: each check makes a finding of facts that it is given.

No check raises for a machine that nobody here has seen: run through `asked`, what cannot be told is a finding too.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from pruning_bench.environment import UNKNOWN, Machine, Ticks
from pruning_bench.errors import describe
from pruning_bench.judging.policy import Policy
from pruning_bench.judging.statistics import q10_log_ratio
from pruning_bench.metrics.latency import Call, Clock, sample
from pruning_bench.records import Environment
from pruning_bench.reporting import text
from pruning_bench.reporting.findings import Finding

PROBES = 8  # of a quarter of a second
BUSY = 0.05  # share of all cores that others may use without a warning
STEAL_NOTED, STEAL_BAD = 0.01, 0.05  # shares of the processor time wanted
CLOCK_SECONDS = 1e-6  # a thousandth of the shortest block that is timed
LEAST_MEMORY = 2e9  # bytes
_TIMER = "off by over a thousandth of a block; on Linux boot with clocksource=tsc"
BOUND = ("OMP_PROC_BIND", "KMP_AFFINITY")
# What is looked for, under its names on x86 and ARM, and what is different where none of them is there.
INSTRUCTIONS = (
    ("vectors of 256 bits", ("avx2", "sve"), "float kernels are slow here; ratios on newer processors are others"),
    (
        "int8 dot products",
        ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"),
        "int8 gains less over float than on newer processors; see what the runtimes say of w8a8",
    ),
    ("bf16 arithmetic", ("avx512_bf16", "amx_bf16", "bf16"), "bf16 is computed in float32: smaller, and no faster"),
    ("matrix tiles", ("amx_int8", "amx_bf16", "sme"), "processors with AMX or SME run int8 and bf16 faster than this"),
)


def asked(what: str, check: Callable[[], Finding]) -> Finding:
    """What a check finds; a note where this machine does not tell."""
    try:
        return check()
    except (OSError, ValueError, LookupError, ArithmeticError, ImportError) as problem:
        return Finding("note", what, "cannot be told here", describe(problem))


def processor(facts: Environment) -> list[Finding]:
    """Model, cores and the instructions that decide which kernels run."""
    there = set(facts.must_match["instructions"].split())
    found = [Finding("ok", "processor", facts.must_match["cpu"]), asked("cores", lambda: _cores(facts))]
    if facts.info.get("virtual") == "true":
        todo = "its host may give the processors to others at any time: see steal time and noise"
        found.append(Finding("note", "virtual machine", "yes", todo))
    for what, names, lack in INSTRUCTIONS:
        have = " ".join(name for name in names if name in there)
        found.append(Finding("ok", what, have) if have else Finding("note", what, "none", lack))
    return found


def _cores(facts: Environment) -> Finding:
    found = facts.must_match["cores"]
    count, _, quota = found.rstrip(")").partition(" (quota ")
    if quota and float(quota) < int(count):
        todo = "a quota stops a process in the middle of a call; give the container whole cores (cpuset) instead"
        return Finding("warning", "cores", found, todo)
    if int(count) == 1:
        return Finding("note", "cores", found, "whatever else runs takes the only core away; two are better")
    return Finding("ok", "cores", found)


def threads(facts: Environment, count: int, available: int) -> Finding:
    """How many threads torch takes where a case does not say, and what binds them.

    Args:
        count: torch's own choice.
        available: cores that this process may use.
    """
    names = [name for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", *BOUND) if name in facts.info]
    variables = [f"{name}={facts.info[name]}" for name in names]
    found = ", ".join([f"torch takes {count}, {available} cores may be used", *variables])
    if count > available:
        return Finding("warning", "threads", found, "threads wait for each other; set OMP_NUM_THREADS to the cores")
    if any(name in BOUND for name in names):
        return Finding("note", "threads", found, "bound processes share cores while others idle; unset it if unsure")
    return Finding("ok", "threads", found)


def governor(facts: Environment) -> Finding:
    """Who decides on the processor's frequency."""
    found = facts.info.get("governor")
    if found is None:
        todo = "the frequency is up to the firmware or the host: trust ratios, which are interleaved, not times"
        return Finding("note", "governor", "cannot be read", todo)
    if found == "performance":
        return Finding("ok", "governor", found)
    todo = "the frequency follows the load; sudo cpupower frequency-set -g performance"
    return Finding("warning", "governor", found, todo)


def process_ticks(machine: Machine) -> dict[str, int]:
    """`name (pid)` -> the processor time it has used, in ticks (proc(5)); of those that can be read."""
    found = {}
    for file in machine.proc.glob("[0-9]*/stat"):
        try:
            # The name stands in parentheses and may hold spaces and parentheses itself.
            name, _, rest = file.read_text(errors="replace").partition("(")[2].rpartition(")")
            fields = rest.split()
            found[f"{name} ({file.parent.name})"] = int(fields[11]) + int(fields[12])
        except (OSError, ValueError, IndexError):
            continue  # it has ended meanwhile
    return found


def others(ticks: Ticks, used: Mapping[str, int]) -> Finding:
    """What others used of the processors while this process slept.

    Args:
        ticks: that went by.
        used: those of each process.
    """
    busy = (ticks.total - ticks.idle - ticks.waiting - ticks.steal) / ticks.total
    found = f"{text.percent(busy, 0)} of all cores busy while this process slept"
    if busy <= BUSY:
        return Finding("ok", "other processes", found)
    most = max(used.values(), default=0)
    names = [name for name, own in sorted(used.items(), key=lambda item: -item[1]) if 10 * own > most]
    todo = f"stop or wait for {', '.join(names[:3]) or 'what runs beside this'}"
    return Finding("warning", "other processes", found, todo)


def steal(ticks: Ticks) -> Finding:
    """What the host took of the processor time that was wanted meanwhile."""
    wanted = ticks.total - ticks.idle - ticks.waiting
    share = ticks.steal / wanted if wanted else 0.0
    found = f"{text.percent(share)} of the time wanted"
    if share <= STEAL_NOTED:
        return Finding("ok", "steal time", found)
    todo = "other machines of the same host are busy: measure at another time, or on a host of your own"
    return Finding("warning" if share > STEAL_BAD else "note", "steal time", found, todo)


def self_ratios() -> list[float]:
    """Log ratios of one fixed piece of work to itself, each measured as a case is beside its anchor; two seconds."""
    work, pairs = _work(), Policy().min_pairs
    runs = (sample(work, work, seed=n, min_pairs=pairs, max_pairs=pairs, twin_every=0) for n in range(PROBES))
    return [q10_log_ratio(taken.case, taken.anchor) for taken in runs]


def _work() -> Call:
    """Like a small layer: a product that stays in the core's own cache, then a pass over a megabyte."""
    square, large = np.ones((48, 48), np.float32), np.ones(1 << 18, np.float32)
    product, passed = np.empty_like(square), np.empty_like(large)

    def work() -> None:
        np.matmul(square, square, out=product)
        np.multiply(large, 0.5, out=passed)

    return work


def noise(ratios: Sequence[float], policy: Policy) -> Finding:
    """Whether the same work, measured against itself, comes out the same.

    Args:
        ratios: log ratios, all of them 0 on a machine without noise.
        policy: beyond its `speed_floor` a difference may count as a regression.
    """
    low, high = math.expm1(min(ratios)), math.expm1(max(ratios))
    bounds = text.interval((low, high), lambda value: text.percent(value, sign=True))
    found = f"the same work against itself, {len(ratios)} times: {bounds}"
    floor = text.percent(policy.speed_floor, 0)
    if max(-low, high) <= policy.speed_floor:
        return Finding("ok", "noise", f"fit: {found}, within {floor}")
    todo = f"beyond the {floor} from which on slower may be REGRESSED: expect INCONCLUSIVE, or try again later"
    return Finding("warning", "noise", f"noisy: {found}", todo)


def timer(machine: Machine, clock: Clock = time.perf_counter, reads: int = 1000) -> Finding:
    """Steps and cost of the clock that times are read from."""
    times = [clock() for _ in range(reads)]
    cost = (times[-1] - times[0]) / (reads - 1)
    steps = [b - a for a, b in itertools.pairwise(times) if b > a]
    if not steps:
        return Finding("warning", "timer", f"does not move in {reads} readings", _TIMER)
    step = min(steps)
    found = f"steps of {text.seconds(step)}, {text.seconds(cost)} a reading, source {_clock_source(machine)}"
    if max(step, cost) <= CLOCK_SECONDS:
        return Finding("ok", "timer", found)
    return Finding("warning", "timer", found, _TIMER)


def _clock_source(machine: Machine) -> str:
    try:
        return machine.text("sys/devices/system/clocksource/clocksource0/current_clocksource").strip()
    except OSError:
        return UNKNOWN


def memory(machine: Machine) -> Finding:
    """What is left of the machine's memory, or of the container's."""
    fields = dict(line.split(":", 1) for line in machine.text("proc/meminfo").splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    limit, taken = _of_group(machine, "memory.max"), _of_group(machine, "memory.current")
    if limit is not None and taken is not None:
        free = min(free, limit - taken)
    found = f"{text.amount(free, 'B')} free"
    if free >= LEAST_MEMORY:
        return Finding("ok", "memory", found)
    return Finding("warning", "memory", found, "where memory is swapped times mean nothing; close something")


def _of_group(machine: Machine, name: str) -> int | None:
    try:
        return int(machine.text(f"sys/fs/cgroup/{name}"))
    except (OSError, ValueError):  # no such group, or "max"
        return None
