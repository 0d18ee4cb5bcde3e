"""Round to nearest: its plan, what runs of it on every runtime, and what stays exactly zero."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruning_bench import check_method, compress
from pruning_bench.conformance.quantization_checks import ExampleNet, example
from pruning_bench.errors import LevelError, ModelError, PlanError
from pruning_bench.measuring import kernel_detail
from pruning_bench.quantization.affine import fake_quantize
from pruning_bench.quantization.blocked import block_of, round_blocks
from pruning_bench.quantization.contract import QuantPlan
from pruning_bench.quantization.methods.rtn import Rtn
from pruning_bench.quantization.plans import choose_weight
from pruning_bench.quantization.simulation import simulate
from pruning_bench.registry import RUNTIMES


class Mixed(nn.Module):
    """A convolution, and linear layers whose columns are and are not whole blocks, on two and three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv1d(3, 64, 3, padding=1, bias=False), nn.BatchNorm1d(64)
        self.first, self.second = nn.Linear(64, 50), nn.Linear(50, 32, bias=False)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, places] -> [N, 5]."""
        x = self.norm(self.conv(x)).relu().transpose(1, 2)
        logits: Tensor = self.head(self.second(self.first(x).relu()).mean(1))
        return logits


X = torch.randn(40, 3, 6, generator=torch.Generator().manual_seed(1))


@functools.cache
def made(recipe: str) -> Any:
    return compress(Mixed().eval(), recipe, example_inputs=(X[:1],))


@pytest.mark.parametrize("level", ["w8", "w3", "w2"])
@pytest.mark.parametrize("group", [0, 2, 32])
def test_codes_are_rounded_by_the_largest_weight_of_their_group(level: str, group: int) -> None:
    model, _, context = example(Rtn())
    plan = Rtn(group=group).plan(model, level, context)
    assert plan.weights_only, f"{plan}"
    highest = 2 ** (int(level[1]) - 1) - 1
    weight = model.classifier.weight.detach()
    width = group or weight.shape[1]
    parts = [
        part / (part.abs().amax(1, keepdim=True) / highest)
        for part in (weight[:, start : start + width] for start in range(0, weight.shape[1], width))
    ]
    found = fake_quantize(weight, plan.weights["classifier.weight"])
    largest = torch.cat([part.abs().amax(1, keepdim=True).expand_as(part) for part in weight.split(width, 1)], 1)
    expected = torch.cat([part.round() for part in parts], 1) * largest / highest
    assert torch.allclose(found, expected, atol=1e-6), f"off by {(found - expected).abs().max()}"


def test_one_group_a_row_is_per_channel() -> None:
    model, level, context = example(Rtn())
    whole, groups = (Rtn(group=group).plan(model, level, context) for group in (0, 10_000))
    for name, affine in whole.weights.items():
        assert torch.equal(affine.scale, groups.weights[name].scale[:, 0]), f"{name}: {affine.scale}"


@pytest.mark.slow
@pytest.mark.parametrize("method", [Rtn(group=4), Rtn(symmetric=False)], ids=["per_group", "asymmetric"])
def test_it_holds_every_law(method: Rtn) -> None:
    check_method(method)


def check_runs(name: str, recipe: str, least: int, tolerance: float = 3e-4) -> None:
    """The session gives what the simulation by its rules gives, and so many linear layers read codes.

    On average: where inputs are rounded, a last bit of float32 now and then moves one of them to the next code.
    """
    compressed = made(recipe)
    runtime = RUNTIMES[name]
    if reason := runtime.available():
        pytest.skip(reason)
    session = runtime.build(compressed, (X[:1],))
    plan = compressed.quant_plan
    simulated = simulate(plan, compressed.float_model, (X[:1],), getattr(runtime, "rules", frozenset()))
    with torch.no_grad():
        expected, dense = simulated(X), compressed.float_model(X)
    size = float(dense.abs().mean())
    error, change = (float((a - b).abs().mean()) / size for a, b in ((session.run(X), expected), (expected, dense)))
    assert error < tolerance < change, f"{name} is off its simulation by {error}, which is off the model by {change}"
    detail = kernel_detail(session.kernels, plan)
    coded = detail["quantized_layers"] - len(detail["float_weights"])
    assert coded == least, f"{coded} layers read codes, should be {least}: {detail}"


@pytest.mark.parametrize(
    ("recipe", "coded"),
    [("rtn:w8", 3), ("rtn:w2", 3), ("rtn:w4,group=32", 2), ("rtn:w8,group=16", 2)],
)
def test_onnxruntime_reads_codes_in_linear_layers(recipe: str, coded: int) -> None:
    check_runs("onnxruntime", recipe, coded)


@pytest.mark.parametrize(("recipe", "coded"), [("rtn:w8", 3), ("rtn:w4", 3), ("rtn:w3,group=32", 2)])
def test_openvino_reads_codes_in_linear_layers(recipe: str, coded: int) -> None:
    check_runs("openvino", recipe, coded)


@pytest.mark.parametrize("recipe", [pytest.param("rtn:w3,group=7", marks=pytest.mark.slow), "rtn:w3,symmetric=false"])
def test_what_has_no_kernel_runs_in_float(recipe: str) -> None:
    check_runs("compiled", recipe, 0)
    check_runs("onnxruntime", recipe, 0)


def test_the_check_of_what_runs_bites(monkeypatch: pytest.MonkeyPatch) -> None:
    check_runs("onnxruntime", "rtn:w4", 3)
    monkeypatch.setattr("pruning_bench.quantization.blocked.round_blocks", lambda x, block: x)
    with pytest.raises(AssertionError, match="off its simulation"):
        check_runs("onnxruntime", "rtn:w4", 3)
    monkeypatch.undo()
    with pytest.raises(AssertionError, match="3 layers read codes"):
        check_runs("onnxruntime", "rtn:w4", 4)


def test_zero_points_make_few_bits_hold_more() -> None:
    weight = torch.rand(4, 30, generator=torch.Generator().manual_seed(0)) + 0.1  # of one sign: half of the codes idle
    errors = [
        float((fake_quantize(weight, choose_weight(weight, 3, "per_channel", symmetric=s)) - weight).abs().max())
        for s in (True, False)
    ]
    assert errors[1] < 0.5 * errors[0], f"largest errors {errors}, should be about 3 : 1.4"


def test_the_eager_runtime_only_simulates_it() -> None:
    session = RUNTIMES["eager"].build(made("rtn:w4"), (X[:1],))
    assert not session.timed, "its time is nobody's speed"


def test_weights_without_a_kernel_have_no_block() -> None:
    model, _, context = example(Rtn())
    plan = Rtn(group=16).plan(model, "w4", context)
    parameters = dict(model.named_parameters())
    assert block_of(parameters["classifier.weight"], plan.weights["classifier.weight"]) == 16
    assert block_of(parameters["hidden.weight"], plan.weights["hidden.weight"]) is None, "12 columns are no block of 16"
    assert block_of(parameters["conv1.weight"], plan.weights["conv1.weight"]) is None, "a convolution"


def test_blocks_are_rounded_by_their_own_range_and_zero_stays() -> None:
    x = torch.tensor([[1.0, -0.5, 0.0, 0.0, 254.0, 1.0, 3.0]])
    expected = [[1.0, -64 / 127, 0.0, 0.0, 254.0, 0.0, 3.0]]
    assert torch.allclose(round_blocks(x, 2), torch.tensor(expected)), f"{round_blocks(x, 2)}"


@pytest.mark.parametrize("level", ["w8a8", "w9", "w1", 0.5, None])
def test_bad_levels(level: Any) -> None:
    with pytest.raises(LevelError, match="rtn"):
        Rtn().plan(ExampleNet(), level, example(Rtn())[2])


def test_nothing_to_quantize() -> None:
    with pytest.raises(ModelError, match="no convolution or linear layer"):
        Rtn().plan(nn.ReLU(), "w8", example(Rtn())[2])


@pytest.mark.parametrize(
    ("method", "message"), [(Rtn(group=4), "groups of weights alone"), (Rtn(symmetric=False), "a symmetric weight")]
)
def test_what_only_weights_alone_can_have_is_refused_beside_activations(method: Rtn, message: str) -> None:
    plan = method.plan(*example(method))
    model, _, context = example(method)
    with pytest.raises(PlanError, match=message):
        simulate(QuantPlan(plan.weights, dynamic=True), model, context.example_inputs)
