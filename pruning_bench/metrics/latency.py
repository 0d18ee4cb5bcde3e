"""Times of an anchor and a case, taken next to each other; no statistics here.

Blocks of calls, each lasting at least `block_seconds`, of anchor, case, the other callables and now and then a twin
(the anchor once more, under another name) run in rounds, in random order inside a round. What disturbs the machine
disturbs them alike, so their ratio stays put where the times themselves do not.
"""

from __future__ import annotations

import gc
import itertools
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Literal, TypeAlias

from pruning_bench.errors import PruningBenchError

Call: TypeAlias = Callable[[], object]
Clock: TypeAlias = Callable[[], float]
Pairs: TypeAlias = Sequence[tuple[float, float]]

WARM_WINDOW = 5  # blocks a median is taken over
WARM_TOLERANCE = 0.02  # medians of two windows in a row that agree so well count as settled
WARM_BLOCKS = 100  # and no more blocks than this
CHECK_EVERY = 10  # rounds between two questions whether it is enough
MOST_CALLS = 1 << 20  # of a block: a call that takes no time at all must not end in an endless block
FAR_OVER = 10  # times over the budget, and fewer pairs than the least are accepted


@dataclass(frozen=True)
class Samples:
    """Seconds per call, one number a block.

    Args:
        anchor, case: of the same length; index i comes from round i.
        twin: the anchor under another name, measured in some of the rounds.
        twin_rounds: which rounds those were; as long as `twin`.
        others: name -> times of the further callables, each as long as `anchor`.
        calls: calls a block of anchor, case and each of the others, in that order.
        settled: the last warm-up medians agreed; False when warm-up ran into its cap.
        stopped: why sampling ended: "enough", "most" (pairs), "budget", or "cut" (far over the budget, before the least
            number of pairs).
        seconds: how long it all took, warm-up included.
    """

    anchor: tuple[float, ...]
    case: tuple[float, ...]
    twin: tuple[float, ...]
    twin_rounds: tuple[int, ...]
    others: Mapping[str, tuple[float, ...]]
    calls: tuple[int, ...]
    settled: bool
    stopped: Literal["enough", "most", "budget", "cut"]
    seconds: float

    @property
    def pairs(self) -> tuple[tuple[float, float], ...]:
        """(anchor, case) of every round."""
        return tuple(zip(self.anchor, self.case, strict=True))

    @property
    def twin_pairs(self) -> tuple[tuple[float, float], ...]:
        """(anchor, twin) of the rounds that had a twin: the same code, so their ratio must not differ from 1."""
        return tuple(zip((self.anchor[i] for i in self.twin_rounds), self.twin, strict=True))


def never(pairs: Pairs) -> bool:
    """The stopping rule that goes on to the most pairs."""
    return False


def sample(
    anchor: Call,
    case: Call,
    *,
    others: Mapping[str, Call] | None = None,
    seed: int,
    enough: Callable[[Pairs], bool] = never,
    min_pairs: int = 60,
    max_pairs: int = 120,
    twin_every: int = 3,
    block_seconds: float = 1e-3,
    warm_seconds: float = 2.0,
    budget_seconds: float = math.inf,
    clock: Clock = time.perf_counter,
    synchronize: Call | None = None,
) -> Samples:
    """Times `anchor` and `case` in interleaved blocks until the stopping rule is content.

    Args:
        anchor, case: take no arguments; on a GPU they may return before the work is done.
        others: further callables by name, measured in every round.
        seed: of the order inside the rounds.
        enough: asked at `min_pairs` and every ten rounds after, with the (anchor, case) seconds so far.
        min_pairs, max_pairs: how many rounds; 60 is the least for which a 98 % bootstrap interval covers what it says.
        twin_every: a twin in every so many rounds; 0 for none.
        block_seconds: how long the fastest block of the warm-up must last; 1e-3 on a CPU, 2e-3 on a GPU.
        warm_seconds: cap of the warm-up, besides 100 blocks each.
        budget_seconds: of everything; once used up sampling ends at `min_pairs`, and ten times over at once.
        clock: seconds, monotonic.
        synchronize: waits for the device; called before and after a block, never inside.

    The garbage collector is off while blocks run.
    """
    if not 1 <= min_pairs <= max_pairs:
        raise PruningBenchError("sample", f"{min_pairs} to {max_pairs} pairs", "1 <= min_pairs <= max_pairs")
    start = clock()
    named = dict(others or {})
    calls = (anchor, case, *named.values())
    timer = _Timer(clock, synchronize, random.Random(seed))
    rows: list[list[float]] = []
    twin: dict[int, float] = {}
    with no_garbage_collection():
        counts, settled = _warm(timer, calls, block_seconds, warm_seconds)
        while True:
            used = (clock() - start) / budget_seconds
            if stopped := _stop([(row[0], row[1]) for row in rows], enough, min_pairs, max_pairs, used):
                break
            number = len(rows)
            if twin_every > 0 and number % twin_every == 0:
                *times, twin[number] = timer.round((*calls, anchor), (*counts, counts[0]))
            else:
                times = timer.round(calls, counts)
            rows.append(times)
    columns = list(zip(*rows, strict=True))
    return Samples(
        anchor=columns[0],
        case=columns[1],
        twin=tuple(twin.values()),
        twin_rounds=tuple(twin),
        others=dict(zip(named, columns[2:], strict=True)),
        calls=counts,
        settled=settled,
        stopped=stopped,
        seconds=clock() - start,
    )


def _stop(
    pairs: Pairs, enough: Callable[[Pairs], bool], least: int, most: int, share_used: float
) -> Literal["enough", "most", "budget", "cut"] | None:
    if len(pairs) < least:
        return "cut" if pairs and share_used > FAR_OVER else None
    if (len(pairs) - least) % CHECK_EVERY == 0 and enough(pairs):
        return "enough"
    if len(pairs) >= most:
        return "most"
    return "budget" if share_used > 1 else None


@dataclass(frozen=True)
class _Timer:
    clock: Clock
    synchronize: Call | None
    order: random.Random

    def block(self, call: Call, count: int) -> float:
        return time_block(call, count, self.clock, self.synchronize)

    def round(self, calls: Sequence[Call], counts: Sequence[int]) -> list[float]:
        """One block of each, in random order; the times in the order of `calls`."""
        times = [0.0] * len(calls)
        for index in self.order.sample(range(len(calls)), len(calls)):
            times[index] = self.block(calls[index], counts[index])
        return times


def _warm(
    timer: _Timer, calls: Sequence[Call], block_seconds: float, warm_seconds: float
) -> tuple[tuple[int, ...], bool]:
    """Calls per block, and whether the times settled before the cap."""
    start = timer.clock()
    counts = [_calibrate(timer, call, block_seconds) for call in calls]
    last: list[float] = []
    settled = False
    for _ in range(WARM_BLOCKS // WARM_WINDOW):
        columns = list(zip(*(timer.round(calls, counts) for _ in range(WARM_WINDOW)), strict=True))
        # Warmer is faster: what filled a block at first may not any more.
        counts = [max(n, _calls_for(block_seconds, min(column))) for n, column in zip(counts, columns, strict=True)]
        medians = [median(column) for column in columns]
        settled = bool(last) and all(map(_agree, medians, last))
        if settled or timer.clock() - start > warm_seconds:
            break
        last = medians
    return tuple(counts), settled


def _calibrate(timer: _Timer, call: Call, block_seconds: float) -> int:
    """Calls that fill a block; the first call, which may build and load things, is not looked at."""
    timer.block(call, 1)
    count = 1
    while (seconds := timer.block(call, count)) * count < block_seconds and count < MOST_CALLS:
        # At most tenfold, since a short block tells little about a long one.
        count = max(count + 1, min(10 * count, _calls_for(block_seconds, seconds)))
    return count


def _calls_for(block_seconds: float, seconds_a_call: float) -> int:
    if seconds_a_call * MOST_CALLS <= block_seconds:
        return MOST_CALLS
    return math.ceil(block_seconds / seconds_a_call)


def time_block(call: Call, count: int, clock: Clock = time.perf_counter, synchronize: Call | None = None) -> float:
    """Seconds per call of one block of `count` calls."""
    if synchronize:
        synchronize()
    start = clock()
    for _ in itertools.repeat(None, count):
        call()
    if synchronize:
        synchronize()
    return (clock() - start) / count


def slowed(call: Call, share: float, clock: Clock = time.perf_counter, synchronize: Call | None = None) -> Call:
    """`call` followed by a wait of `share` of its own time: a slow-down that a judge must find.

    Args:
        share: >= 0; 0.15 makes it 15 % slower (and some hundred nanoseconds, for reading the clock).
        synchronize: needed where `call` returns before its work is done.

    The wait is busy, since sleeping would give the core away and change its speed.
    """

    def slow() -> object:
        start = clock()
        result = call()
        if synchronize:
            synchronize()
        now = clock()
        end = now + share * (now - start)
        while now < end:
            now = clock()
        return result

    return slow


def _agree(a: float, b: float) -> bool:
    return abs(a - b) <= WARM_TOLERANCE * min(a, b)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Keeps the collector from running inside a `with` block, where it would be charged to what is measured."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
