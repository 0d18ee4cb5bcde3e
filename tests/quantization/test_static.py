"""The method `static`: plans and its errors."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from pruning_bench.conformance.quantization_checks import ExampleNet, check_simulation_close, example
from pruning_bench.contracts import Context
from pruning_bench.errors import LevelError, ModelError
from pruning_bench.quantization.integer import BIAS_LIMIT, bias_affine, bias_codes
from pruning_bench.quantization.methods.static import Static
from pruning_bench.quantization.plans import LARGEST_BIAS_CODE
from pruning_bench.quantization.simulation import simulate

METHOD = Static()


def context_of(*batches: torch.Tensor) -> Context:
    return replace(example(METHOD)[2], calibration=[(batch,) for batch in batches])


def test_per_channel_has_one_scale_for_each_output() -> None:
    plan = METHOD.plan(*example(METHOD))
    shapes = {name: list(affine.scale.shape) for name, affine in plan.weights.items()}
    assert shapes["conv1.weight"] == [8], f"{shapes}"
    assert shapes["classifier.weight"] == [5], f"{shapes}"
    assert {affine.axis for affine in plan.weights.values()} == {0}, "weights should be per output channel"


def test_per_tensor_is_close_too() -> None:
    method = Static(granularity="per_tensor")
    plan = method.plan(*example(method))
    assert {affine.axis for affine in plan.weights.values()} == {None}, "weights should be per tensor"
    check_simulation_close(method)


@pytest.mark.parametrize("level", ["w4a8", "w8a4", "w2a2", "w8a8"])
def test_ranges_follow_the_bits(level: str) -> None:
    model, _, context = example(METHOD)
    plan = METHOD.plan(model, level, context)
    weight, activation = int(level[1]), int(level[3])
    for name, affine in plan.weights.items():
        expected = (1 - 2 ** (weight - 1), 2 ** (weight - 1) - 1)
        assert (affine.low, affine.high) == expected, f"{name} in {affine.low}..{affine.high}, should be in {expected}"
    for name, affine in plan.activations.items():
        assert (affine.low, affine.high) == (0, 2**activation - 1), f"{name} in {affine.low}..{affine.high}"
    output = simulate(plan, model, context.example_inputs)(context.example_inputs[0])
    assert torch.isfinite(output).all(), f"{level}: the simulation gives {output}"


def test_after_a_relu_zero_is_the_lowest_code() -> None:
    plan = METHOD.plan(*example(METHOD))
    zeros = {name: int(affine.zero_point) for name, affine in plan.activations.items()}
    assert zeros["conv1.conv2d"] == zeros["add"] == 0, f"{zeros}, should be 0 after a ReLU"
    assert zeros["input"] > 0, f"{zeros}, should be above 0 at a signed input"


def test_a_bias_beside_dead_weights_keeps_its_value() -> None:
    model, level, context = example(METHOD)
    with torch.no_grad():
        model.hidden.weight[0] = 1e-20
        model.hidden.bias[0] = 3.0
    plan = METHOD.plan(model, level, context)
    affine, x = plan.weights["hidden.weight"], plan.activations["mean.adaptive_avg_pool2d"]
    codes = bias_codes(model.hidden.bias.detach(), bias_affine(x, affine)).double()
    assert float(codes.abs().max()) <= LARGEST_BIAS_CODE * 1.001 < BIAS_LIMIT, (
        f"codes {codes.tolist()} do not fit int32"
    )
    value = float(codes[0] * bias_affine(x, affine).scale[0].double())
    assert math.isclose(value, 3.0, rel_tol=1e-6), f"the bias 3.0 becomes {value}"


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "no calibration data"),
        ([torch.zeros(0, 3, 8, 8)], "empty batch"),
        ([torch.full((2, 3, 8, 8), math.nan)], "384 non-finite values"),
        ([torch.zeros(2, 3, 8, 8), torch.full((1, 3, 8, 8), math.inf)], "192 non-finite values"),
        ([torch.zeros(2, 4, 8, 8)], "does not run"),
    ],
    ids=["none", "empty", "nan", "inf", "shape"],
)
def test_bad_calibration_is_one_line(batches: list[torch.Tensor], message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        METHOD.plan(ExampleNet(), "w8a8", context_of(*batches))
    assert "\n" not in str(caught.value), f"{caught.value} should be one line"


@pytest.mark.parametrize("level", ["w8", "w9a8", "w1a8", 0.5, None])
def test_bad_levels(level: Any) -> None:
    with pytest.raises(LevelError, match="static"):
        METHOD.plan(ExampleNet(), level, example(METHOD)[2])


def test_nothing_to_quantize() -> None:
    with pytest.raises(ModelError, match="no convolution or linear layer"):
        METHOD.plan(nn.ReLU(), "w8a8", example(METHOD)[2])
