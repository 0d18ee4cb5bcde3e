"""What may be the strongest dense model on this machine: the dense model on every runtime, and casts of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

from torch import Tensor

from pruning_bench.cases import Case, rivals_of
from pruning_bench.errors import PruningBenchError
from pruning_bench.registry import RUNTIMES
from pruning_bench.runtimes.contract import Session
from pruning_bench.workbench import Workbench

Call: TypeAlias = "Callable[[], object]"
GLANCES = 5
PROMISING = 1.5  # times the fastest dense model at a glance: beyond it a cast cannot turn out to be the strongest


def name_of(case: Case) -> str:
    """Such as "onnxruntime/dense"."""
    return f"{case.runtime}/{case.recipe}"


def is_rival(bench: Workbench, case: Case) -> bool:
    """Whether the case is itself one of the dense models that others are compared with."""
    return case.seed == 0 and (case.runtime, case.recipe) in _pairs(bench)


def rival_calls(
    bench: Workbench, case: Case, inputs: tuple[Tensor, ...], anchor: Call, clock: Callable[[], float]
) -> dict[str, Call]:
    """What is to be timed along with a case and its anchor, by `name_of`.

    Those are the dense models on the other runtimes that are here, and the casts that are nearly as fast at a glance:
    one that this processor emulates is many times slower, cannot be the strongest, and would take all the time.

    Args:
        inputs: of one call.
        anchor: the dense model on the case's own runtime.
        clock: only runtimes with this clock are timed side by side.
    """
    rivals = [replace(case.dense, runtime=runtime, recipe=recipe) for runtime, recipe in _pairs(bench)]
    calls = {
        rival: session.bind(*inputs)
        for rival in rivals
        if rival not in (case, case.dense) and (session := _built(bench, rival)) and session.clock is clock
    }
    dense = {rival: call for rival, call in calls.items() if rival == rival.dense}
    if len(dense) < len(calls):
        limit = PROMISING * min(_glance(call, clock) for call in [anchor, *dense.values()])
        calls = {rival: call for rival, call in calls.items() if rival in dense or _glance(call, clock) < limit}
    return {name_of(rival): call for rival, call in calls.items()}


def _pairs(bench: Workbench) -> tuple[tuple[str, str], ...]:
    return bench.rivals or rivals_of(())


def _built(bench: Workbench, rival: Case) -> Session | None:
    """The session of a rival; None where its runtime is not here or cannot build the model, which costs no case."""
    if RUNTIMES[rival.runtime].available(rival.device) is not None:
        return None
    try:
        return bench.session(rival)
    except PruningBenchError:
        return None


def _glance(call: Call, clock: Callable[[], float]) -> float:
    """Seconds of the fastest of a few calls."""
    times = []
    for _ in range(GLANCES):
        start = clock()
        call()
        times.append(clock() - start)
    return min(times)
