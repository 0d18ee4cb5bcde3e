"""What every runtime does alike."""

from dataclasses import replace

import pytest
import torch

from pruning_bench.discover import discover
from pruning_bench.engine import compress
from pruning_bench.errors import UnavailableError
from pruning_bench.quantization.contract import QuantPlan
from pruning_bench.registry import RUNTIMES
from pruning_bench.runtimes import compiled, inductor

discover()


def check_dynamic_is_refused(runtime: str) -> None:
    made = compress(torch.nn.Linear(2, 2), "dense", example_inputs=(torch.zeros(1, 2),))
    dynamic = replace(made, quant_plan=QuantPlan({}, dynamic=True))
    with pytest.raises(UnavailableError, match=f"{runtime}: no lowering of inputs quantized at run time"):
        RUNTIMES[runtime].build(dynamic, made.example_inputs)


@pytest.mark.parametrize("runtime", ["compiled", "openvino"])
def test_dynamic_int8_is_refused_where_it_has_no_lowering(runtime: str) -> None:
    if reason := RUNTIMES[runtime].available():
        pytest.skip(reason)
    check_dynamic_is_refused(runtime)


def test_the_check_rejects_a_runtime_that_runs_it_in_float(monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := RUNTIMES["compiled"].available() or inductor.reason_without_int8("cpu"):
        pytest.skip(reason)
    monkeypatch.setattr(compiled, "refuse_dynamic", lambda *_: None)
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):  # all in float, and nobody is told
        check_dynamic_is_refused("compiled")
