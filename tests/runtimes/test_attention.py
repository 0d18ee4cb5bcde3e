"""The projections of torch's own attention are named, whether they run on codes or fell back, on every runtime."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from pruning_bench import compress
from pruning_bench.engine import Compressed
from pruning_bench.errors import UnavailableError
from pruning_bench.measuring import kernel_detail
from pruning_bench.registry import RUNTIMES
from pruning_bench.runtimes.contract import Kernel
from pruning_bench.runtimes.kernels import multiplies

PROJECTIONS = {"attention.in_proj_weight", "attention.out_proj"}


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(32, 2, batch_first=True), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        head: Tensor = self.head(torch.tanh(self.attention(x, x, x, need_weights=False)[0]))
        return head


@pytest.fixture(scope="module")
def quantized() -> Compressed:
    torch.manual_seed(0)
    x = torch.randn(8, 5, 32)
    return compress(Attends().eval(), "static:w8a8", example_inputs=(x[:1],), calibration=[(x,)])


def kernels(runtime: str, compressed: Compressed) -> tuple[Kernel, ...]:
    if reason := RUNTIMES[runtime].available():
        pytest.skip(reason)
    try:
        return RUNTIMES[runtime].build(compressed, compressed.example_inputs).kernels
    except UnavailableError as problem:  # the runtime is here, what it needs for int8 is not
        pytest.skip(str(problem))


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "compiled"])
def test_projections_go_by_their_weights(runtime: str, quantized: Compressed) -> None:
    found = kernels(runtime, quantized)
    ran = {kernel.layer for kernel in found if multiplies(kernel.operator) and kernel.dtype == "int8"}
    assert ran == PROJECTIONS | {"head"}, f"{sorted(ran)}"
    detail = kernel_detail(found, quantized.quant_plan)
    assert (detail["quantized_layers"], detail["float_fallbacks"]) == (3, []), f"{detail}"


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "compiled"])
def test_what_runs_in_float_is_named_too(runtime: str, quantized: Compressed) -> None:
    """The plan names three weights, and only the head reads codes."""
    plan = quantized.quant_plan
    assert plan is not None
    before_head = {name: coding for name, coding in plan.activations.items() if name == "tanh"}
    assert before_head, f"{list(plan.activations)}"
    floats = replace(quantized, quant_plan=replace(plan, activations=before_head))
    detail = kernel_detail(kernels(runtime, floats), floats.quant_plan)
    named = {text.split(" ")[0] for text in detail["float_fallbacks"]}
    assert named == PROJECTIONS, f"{sorted(named)}"


class Keyed(nn.Module):
    """Weights under a name with a sign that stands between the parts of a node's name."""

    def __init__(self, sign: str) -> None:
        super().__init__()
        self.key, self.head = f"a{sign}b", nn.Linear(32, 32)
        self.held = nn.ParameterDict({self.key: nn.Parameter(torch.randn(32, 32))})

    def forward(self, x: Tensor) -> Tensor:
        head: Tensor = self.head(torch.tanh(nn.functional.linear(x, self.held[self.key])))
        return head


@pytest.mark.parametrize("sign", "|,_")
def test_a_fallback_whose_name_cannot_be_read_back_counts_all_the_same(sign: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 5, 32)
    made = compress(Keyed(sign).eval(), "static:w8a8", example_inputs=(x[:1],), calibration=[(x,)])
    assert made.quant_plan is not None
    before_head = {name: coding for name, coding in made.quant_plan.activations.items() if name == "tanh"}
    floats = replace(made, quant_plan=replace(made.quant_plan, activations=before_head))
    detail = kernel_detail(kernels("onnxruntime", floats), floats.quant_plan)
    name = f"held.a{sign}b" if sign == "_" else "?"
    assert [text.split(" ")[0] for text in detail["float_fallbacks"]] == [name], f"{detail}"
