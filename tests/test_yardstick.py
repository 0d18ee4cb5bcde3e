"""The fixed piece of work beside every anchor, and when it is timed."""

from dataclasses import replace

import pytest
import torch

from pruning_bench.cases import parse_id
from pruning_bench.measuring import measure_latency
from pruning_bench.workbench import Workbench
from pruning_bench.yardstick import yardstick


def test_every_call_does_the_same_work() -> None:
    one, other = yardstick(), yardstick()
    first = one()
    assert isinstance(first, torch.Tensor)
    assert first.isfinite().all()
    assert first.all()
    for call in (one, other):
        assert torch.equal(call(), first)  # type: ignore[arg-type]


@pytest.mark.parametrize("machine", [True, False], ids=["the machine's clock", "another clock"])
def test_it_is_timed_by_the_clock_of_the_machine_alone(machine: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    case, bench = parse_id("lenet5-fashion_mnist/dense/eager"), Workbench(cache=None, rivals=(("eager", "dense"),))
    if not machine:
        session, ticks = bench.session(case), iter(range(10**9))

        def clock() -> float:
            return next(ticks) * 1e-3

        monkeypatch.setattr(Workbench, "session", lambda *_: replace(session, clock=clock))
    found = {m.metric: m for m in measure_latency(bench, case)}
    assert ("yardstick" in found) == machine, f"{found.keys()}"
    if machine:
        assert found["yardstick"].rule == "machine"
        assert 1e-5 < found["yardstick"].value < 1, f"{found['yardstick'].value} s a call"
