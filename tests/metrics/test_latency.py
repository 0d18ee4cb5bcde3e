"""The sampling loop, on a clock that only invented workloads move; nothing here waits or depends on the machine."""

from __future__ import annotations

import gc
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning_bench.errors import PruningBenchError
from pruning_bench.metrics import latency
from pruning_bench.metrics.latency import Call, Clock, Samples, sample, slowed, time_block

US = 1e-6


@dataclass
class Machine:
    """A clock and the log of what ran; every workload's seconds are times `speed()`.

    Args:
        tick: what reading the clock costs.
        queued: work that was started and not waited for, as on a GPU.
    """

    now: float = 0.0
    tick: float = 0.0
    queued: float = 0.0
    speed: Callable[[], float] = lambda: 1.0
    log: list[str] = field(default_factory=list)

    def clock(self) -> float:
        self.now += self.tick
        return self.now

    def work(self, name: str, seconds: float | Iterator[float]) -> Callable[[], str]:
        """A callable of that duration, or of the next of those durations."""
        durations = itertools.repeat(seconds) if isinstance(seconds, float) else seconds

        def call() -> str:
            self.log.append(name)
            self.now += next(durations) * self.speed()
            return name

        return call

    def queue(self, name: str, seconds: float) -> Callable[[], None]:
        """A callable that returns at once and leaves its work to `synchronize`."""

        def call() -> None:
            self.log.append(name)
            self.queued += seconds

        return call

    def synchronize(self) -> None:
        self.log.append("synchronize")
        self.now += self.queued
        self.queued = 0.0


def take(machine: Machine, anchor: float = 100 * US, case: float = 50 * US, **options: Any) -> Samples:
    calls = machine.work("anchor", anchor), machine.work("case", case)
    return sample(*calls, **{"seed": 0, "clock": machine.clock, **options})


def blocks_of(log: list[str]) -> list[tuple[str, int]]:
    """(name, calls in a row)."""
    return [(name, len(list(group))) for name, group in itertools.groupby(log)]


@settings(max_examples=25, deadline=None)
@given(
    anchor=st.floats(2e-5, 1e-2),
    case=st.floats(2e-5, 1e-2),
    pairs=st.integers(1, 12).flatmap(lambda least: st.tuples(st.just(least), st.integers(least, 20))),
    every=st.integers(0, 4),
    seed=st.integers(0, 9),
)
def test_times_are_those_of_the_workloads(
    anchor: float, case: float, pairs: tuple[int, int], every: int, seed: int
) -> None:
    least, most = pairs
    machine = Machine()
    taken = take(machine, anchor, case, seed=seed, min_pairs=least, max_pairs=most, twin_every=every)
    assert len(taken.anchor) == len(taken.case) == most, f"{len(taken.anchor)} pairs, should be {most}"
    assert taken.anchor == pytest.approx([anchor] * most), f"anchor {taken.anchor}, should all be {anchor}"
    assert taken.case == pytest.approx([case] * most), f"case {taken.case}, should all be {case}"
    assert taken.twin == pytest.approx([anchor] * len(taken.twin)), f"twin {taken.twin}, should all be {anchor}"
    rounds = tuple(range(0, most, every)) if every else ()
    assert taken.twin_rounds == rounds, f"twins in rounds {taken.twin_rounds}, should be {rounds}"
    assert taken.pairs == tuple(zip(taken.anchor, taken.case, strict=True)), "pairs should be anchor and case"
    assert len(taken.twin_pairs) == len(rounds), f"{len(taken.twin_pairs)} twin pairs, should be {len(rounds)}"
    assert taken.settled, "constant times should settle"


def check_blocks_are_long_enough(counts: tuple[int, ...], seconds: tuple[float, ...], least: float) -> None:
    for count, each in zip(counts, seconds, strict=True):
        assert count * each >= least * (1 - 1e-9), f"{count} calls of {each} s last less than {least} s"
        assert count == 1 or (count - 1) * each <= 1.1 * least, (
            f"{count} calls of {each} s are many more than {least} s"
        )


@settings(max_examples=40, deadline=None)
@given(st.floats(1e-5, 1e-1), st.floats(1e-5, 1e-1), st.floats(1e-4, 2e-3))
def test_a_block_is_just_long_enough(anchor: float, case: float, least: float) -> None:
    taken = take(Machine(), anchor, case, block_seconds=least, min_pairs=1, max_pairs=1)
    check_blocks_are_long_enough(taken.calls, (anchor, case), least)


@pytest.mark.parametrize("count", [19, 40])
def test_block_length_rejects(count: int) -> None:
    check_blocks_are_long_enough((20,), (50 * US,), 1e-3)
    with pytest.raises(AssertionError):
        check_blocks_are_long_enough((count,), (50 * US,), 1e-3)


def test_a_slow_first_call_does_not_make_short_blocks() -> None:
    machine = Machine()
    lazily_built = itertools.chain([0.5], itertools.repeat(9 * US))
    calls = machine.work("anchor", lazily_built), machine.work("case", 9 * US)
    taken = sample(*calls, seed=0, min_pairs=1, max_pairs=1, clock=machine.clock)
    assert taken.calls == (112, 112), f"{taken.calls} calls a block, should be 112 of 9 us"


def test_what_gets_faster_while_warm_gets_longer_blocks() -> None:
    machine = Machine()
    cooling = itertools.chain(itertools.repeat(90 * US, 30), itertools.repeat(9 * US))
    calls = machine.work("anchor", cooling), machine.work("case", 2e-3)
    taken = sample(*calls, seed=0, min_pairs=1, max_pairs=1, clock=machine.clock)
    assert taken.calls[0] == 112, f"{taken.calls[0]} calls of 9 us, should last 1 ms"


def test_a_call_that_takes_no_time_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "MOST_CALLS", 1000)
    taken = take(Machine(tick=1e-7), 0.0, 0.0, min_pairs=1, max_pairs=1, warm_seconds=0.0)
    assert taken.calls == (1000, 1000), f"{taken.calls} calls a block, should be the most there may be"


def test_warm_up_goes_on_until_medians_agree() -> None:
    machine = Machine()
    falling = itertools.chain((4e-3 * 0.98**i for i in range(40)), itertools.repeat(4e-3 * 0.98**40))
    calls = machine.work("anchor", 2e-3), machine.work("case", falling)
    taken = sample(*calls, seed=0, min_pairs=1, max_pairs=1, twin_every=0, clock=machine.clock)
    warm = machine.log.count("case") - taken.calls[1]
    assert taken.settled, "times that become constant should settle"
    assert 40 <= warm <= 60, f"{warm} warm-up calls, should go on until the times stay the same, after 40"


def test_warm_up_is_capped_in_blocks() -> None:
    machine = Machine()
    restless = (2e-3 * 1.05**i for i in itertools.count())
    calls = machine.work("anchor", 2e-3), machine.work("case", restless)
    taken = sample(*calls, seed=0, min_pairs=1, max_pairs=1, twin_every=0, warm_seconds=1e9, clock=machine.clock)
    blocks = machine.log.count("anchor") - 1
    assert not taken.settled, "times that never agree should not count as settled"
    assert blocks <= latency.WARM_BLOCKS + 3, f"{blocks} warm-up blocks, at most {latency.WARM_BLOCKS} and calibration"


def test_warm_up_is_capped_in_time() -> None:
    machine = Machine()
    restless = (1.0 * 1.05**i for i in itertools.count())
    calls = machine.work("anchor", 1.0), machine.work("case", restless)
    taken = sample(*calls, seed=0, min_pairs=1, max_pairs=1, twin_every=0, warm_seconds=5.0, clock=machine.clock)
    blocks = machine.log.count("anchor") - 1
    assert not taken.settled, "an interrupted warm-up has not settled"
    assert blocks <= latency.WARM_WINDOW + 2, f"{blocks} warm-up blocks of a second, should stop after one window"


def rounds_of(machine: Machine, taken: Samples, with_twin: bool = False) -> list[list[str]]:
    """Names in the order they ran, round by round; for workloads of one call a block."""
    size = 2 + len(taken.others) + with_twin
    tail = machine.log[-size * len(taken.anchor) :]
    return [tail[i : i + size] for i in range(0, len(tail), size)]


def check_order(rounds: list[list[str]]) -> None:
    """Every round holds everything once, and each of the two comes first about equally often."""
    for names in rounds:
        assert sorted(names) == sorted(rounds[0]), f"a round of {names}, another of {rounds[0]}"
    first = sum(names.index("anchor") < names.index("case") for names in rounds)
    assert 0.3 <= first / len(rounds) <= 0.7, f"the anchor comes first in {first} of {len(rounds)} rounds"


def test_order_is_random_in_every_round() -> None:
    machine = Machine()
    taken = take(machine, 2e-3, 4e-3, others={"more": machine.work("more", 3e-3)}, twin_every=0)
    check_order(rounds_of(machine, taken))
    assert taken.others["more"] == pytest.approx([3e-3] * len(taken.anchor)), f"{taken.others['more'][:3]}"


@pytest.mark.parametrize(
    "rounds",
    [[["anchor", "case"]] * 100, [["case", "anchor"]] * 100, [["anchor", "case"], ["case", "case"]] * 50],
    ids=["anchor always first", "case always first", "a round without anchor"],
)
def test_order_rejects(rounds: list[list[str]]) -> None:
    with pytest.raises((AssertionError, ValueError)):
        check_order(rounds)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_seed_decides_the_order(seed: int) -> None:
    logs = []
    for used in (seed, seed, seed + 1):
        machine = Machine()
        take(machine, seed=used)
        logs.append(machine.log)
    assert logs[0] == logs[1], "the same seed should give the same order"
    assert logs[0] != logs[2], "another seed should give another order"


def check_drift_cancels(measure: Callable[[Machine], tuple[Sequence[float], Sequence[float]]]) -> None:
    """The ratio of two workloads on a machine that gets slower and slower."""
    machine = Machine(tick=1e-9)
    machine.speed = lambda: 1 + machine.now * 5
    anchor, case = measure(machine)
    drift = max(anchor) / min(anchor)
    assert drift > 1.5, f"the machine should have become slower by more than {drift}"
    ratio = sum(case) / sum(anchor)
    assert ratio == pytest.approx(0.5, rel=0.01), f"ratio {ratio}, should be 0.5 in spite of a drift of {drift}"


def interleaved(machine: Machine) -> tuple[Sequence[float], Sequence[float]]:
    taken = take(machine, min_pairs=100, max_pairs=100, twin_every=0)
    return taken.anchor, taken.case


def one_after_the_other(machine: Machine) -> tuple[Sequence[float], Sequence[float]]:
    """Mutant: all blocks of the anchor, then all of the case."""
    calls = machine.work("anchor", 100 * US), machine.work("case", 50 * US)
    anchor, case = ([time_block(call, 20, machine.clock) for _ in range(100)] for call in calls)
    return anchor, case


def test_interleaving_cancels_drift() -> None:
    check_drift_cancels(interleaved)


def test_drift_rejects_one_after_the_other() -> None:
    with pytest.raises(AssertionError, match="in spite of a drift"):
        check_drift_cancels(one_after_the_other)


def test_asks_at_the_least_and_every_ten_rounds() -> None:
    asked: list[int] = []

    def enough(pairs: latency.Pairs) -> bool:
        asked.append(len(pairs))
        assert pairs[0] == pytest.approx((100 * US, 50 * US)), f"{pairs[0]}, should be (anchor, case)"
        return len(pairs) >= 85

    taken = take(Machine(), enough=enough)
    assert asked == [60, 70, 80, 90], f"asked at {asked}, should be 60, 70, 80, 90"
    assert (taken.stopped, len(taken.pairs)) == ("enough", 90), f"{taken.stopped} at {len(taken.pairs)}"


def test_ends_at_the_most() -> None:
    taken = take(Machine())
    assert (taken.stopped, len(taken.pairs)) == ("most", 120), f"{taken.stopped} at {len(taken.pairs)}"


@pytest.mark.parametrize(
    ("budget", "stopped", "least", "most"),
    [(1e9, "most", 120, 120), (0.4, "budget", 61, 119), (0.1, "budget", 60, 60), (0.005, "cut", 1, 59)],
)
def test_the_budget_is_kept_down_to_the_least(budget: float, stopped: str, least: int, most: int) -> None:
    # 60 rounds of two blocks of 2 ms take 0.24 s, the warm-up before them 0.05 s.
    taken = take(Machine(), 2e-3, 2e-3, twin_every=0, budget_seconds=budget)
    assert taken.stopped == stopped, f"stopped by {taken.stopped} after {taken.seconds} s, should be {stopped}"
    assert least <= len(taken.pairs) <= most, f"{len(taken.pairs)} pairs, should be {least} to {most}"


@pytest.mark.parametrize(("least", "most"), [(0, 5), (6, 5), (-1, 5)])
def test_numbers_of_pairs_that_make_no_sense(least: int, most: int) -> None:
    with pytest.raises(PruningBenchError, match="1 <= min_pairs <= max_pairs"):
        take(Machine(), min_pairs=least, max_pairs=most)


def test_the_device_is_waited_for_around_blocks_only() -> None:
    machine = Machine(tick=1e-9)
    calls = machine.queue("anchor", 100 * US), machine.queue("case", 50 * US)
    taken = sample(*calls, seed=0, min_pairs=5, max_pairs=5, clock=machine.clock, synchronize=machine.synchronize)
    assert taken.anchor == pytest.approx([100 * US] * 5, rel=1e-3), f"{taken.anchor}, should be the queued 100 us"
    assert taken.case == pytest.approx([50 * US] * 5, rel=1e-3), f"{taken.case}, should be the queued 50 us"
    runs = [count for name, count in blocks_of(machine.log) if name != "synchronize"][-5:]
    assert min(runs) >= 10, f"blocks of {runs} calls, should not be waited for one by one"


def waits_only_after(call: Callable[[], object], count: int, clock: Clock, synchronize: Call) -> float:
    """Mutant: does not wait for what was queued before the block."""
    start = clock()
    for _ in range(count):
        call()
    synchronize()
    return (clock() - start) / count


def waits_only_before(call: Callable[[], object], count: int, clock: Clock, synchronize: Call) -> float:
    """Mutant: stops the clock while the device still works."""
    synchronize()
    return time_block(call, count, clock)


def check_own_work_only(block: Callable[..., float]) -> None:
    machine = Machine(queued=1.0)
    seconds = block(machine.queue("one", 2e-3), 5, machine.clock, machine.synchronize)
    assert seconds == pytest.approx(2e-3), f"{seconds} s a call, should be the block's own 2 ms"


def test_a_block_is_charged_its_own_work() -> None:
    check_own_work_only(time_block)


@pytest.mark.parametrize("mutant", [waits_only_after, waits_only_before])
def test_own_work_rejects(mutant: Callable[..., float]) -> None:
    with pytest.raises(AssertionError):
        check_own_work_only(mutant)


def test_time_block_divides_by_the_calls() -> None:
    machine = Machine()
    seconds = time_block(machine.work("one", 2e-3), 7, machine.clock)
    assert seconds == pytest.approx(2e-3), f"{seconds} s a call, should be 2 ms"
    assert machine.log == ["one"] * 7, f"{machine.log}, should be 7 calls"


@pytest.mark.parametrize("was_on", [True, False])
def test_garbage_collection_is_off_inside_and_as_before_after(was_on: bool) -> None:
    machine, seen = Machine(), set()
    work = machine.work("anchor", 1e-3)

    def watching() -> object:
        seen.add(gc.isenabled())
        return work()

    before = gc.isenabled()
    (gc.enable if was_on else gc.disable)()
    try:
        sample(watching, work, seed=0, min_pairs=1, max_pairs=1, clock=machine.clock)
        after = gc.isenabled()
    finally:
        (gc.enable if before else gc.disable)()
    assert seen == {False}, f"the collector was on in some calls: {seen}"
    assert after == was_on, f"the collector is {after} afterwards, should be {was_on}"


def test_garbage_collection_comes_back_after_an_error() -> None:
    def failing() -> None:
        raise RuntimeError("from the case")

    with pytest.raises(RuntimeError, match="from the case"):
        sample(failing, failing, seed=0)
    assert gc.isenabled(), "the collector should be on again"


@settings(max_examples=25, deadline=None)
@given(st.floats(1e-5, 1e-2), st.floats(0, 2), st.integers(0, 9))
def test_a_slow_down_is_the_share_it_says(seconds: float, share: float, seed: int) -> None:
    machine = Machine(tick=seconds * 1e-4)
    noise = random.Random(seed)
    machine.speed = lambda: noise.uniform(1, 3)
    inner: list[float] = []
    work = machine.work("case", seconds)

    def timed() -> str:
        start = machine.now
        result = work()
        inner.append(machine.now - start)
        return result

    call = slowed(timed, share, machine.clock)
    start = machine.now
    results = [call() for _ in range(5)]
    ratio = (machine.now - start) / sum(inner)
    assert results == ["case"] * 5, f"{results}, should be what the call returns"
    assert ratio == pytest.approx(1 + share, rel=2e-3), f"{ratio} times as long, should be {1 + share}"


def test_a_slow_down_of_queued_work_waits_for_it() -> None:
    machine = Machine(tick=1e-9)
    call = slowed(machine.queue("case", 1e-3), 0.5, machine.clock, machine.synchronize)
    call()
    assert machine.now == pytest.approx(1.5e-3, rel=1e-3), f"{machine.now} s, should be 1.5 ms"


def test_sampling_finds_the_slow_down() -> None:
    machine = Machine(tick=2e-8)
    anchor = machine.work("anchor", 100 * US)
    taken = sample(anchor, slowed(anchor, 0.15, machine.clock), seed=0, clock=machine.clock)
    ratio = sum(taken.case) / sum(taken.anchor)
    assert ratio == pytest.approx(1.15, rel=1e-3), f"{ratio}, should be 1.15"
