"""The simulation: where it rounds, that it is exact on codes, and which plans it refuses."""

import copy
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example as pinned
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pruning_bench.conformance.quantization_checks import example
from pruning_bench.errors import PlanError
from pruning_bench.quantization import integer, lower, places, points
from pruning_bench.quantization.affine import choose_affine, dequantize, fake_quantize, quantize
from pruning_bench.quantization.contract import Affine, QuantPlan
from pruning_bench.quantization.fold import fold_batch_norms
from pruning_bench.quantization.integer import IntegerAdd, IntegerLayer, IntegerMean, Rounding, bias_affine, bias_codes
from pruning_bench.quantization.lower import INTEGER, Rule
from pruning_bench.quantization.methods.static import Static
from pruning_bench.quantization.qdq import Qdq
from pruning_bench.quantization.simulation import Simulation, simulate

METHOD = Static()
ONE = np.float32(1)
CONV, LINEAR = torch.ops.aten.conv2d.default, torch.ops.aten.linear.default


@pytest.fixture(scope="module")
def planned() -> tuple[nn.Module, QuantPlan, tuple[Tensor, ...], Tensor]:
    model, level, context = example(METHOD)
    plan = METHOD.plan(model, level, context)
    return model, plan, context.example_inputs, torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(2))


def test_an_empty_plan_is_the_float_model(planned: tuple[nn.Module, QuantPlan, tuple[Tensor, ...], Tensor]) -> None:
    model, _, inputs, x = planned
    with torch.no_grad():
        error = float((simulate(QuantPlan({}), model, inputs)(x) - model(x)).abs().max())
    assert error < 1e-5, f"off by {error}, should be the float model"


def test_it_is_a_plain_module(planned: tuple[nn.Module, QuantPlan, tuple[Tensor, ...], Tensor]) -> None:
    model, plan, inputs, x = planned
    simulated = simulate(plan, model, inputs)
    with torch.no_grad():
        whole = simulated(x)
        copied = copy.deepcopy(simulated)(x)
        single = torch.cat([simulated(row) for row in x.split(1)])
    assert torch.equal(whole, copied), "a deep copy computes something else"
    assert torch.equal(whole, single), f"batches of one differ by {float((whole - single).abs().max())}"
    with torch.inference_mode():
        assert torch.equal(simulated(x), whole), "inference mode computes something else"
    again = simulate(plan, model, inputs)
    again.load_state_dict(simulated.state_dict())


def test_planning_from_a_folded_model_is_the_same(
    planned: tuple[nn.Module, QuantPlan, tuple[Tensor, ...], Tensor],
) -> None:
    model, plan, inputs, x = planned
    folded = fold_batch_norms(model, inputs)
    assert torch.equal(simulate(plan, folded, inputs)(x), simulate(plan, model, inputs)(x)), "folding twice changes it"


def test_weights_on_their_grid_simulate_the_same(
    planned: tuple[nn.Module, QuantPlan, tuple[Tensor, ...], Tensor],
) -> None:
    model, plan, inputs, x = planned
    rounded = fold_batch_norms(model, inputs)
    with torch.no_grad():
        for name, affine in plan.weights.items():
            parameter = rounded.get_parameter(name)
            parameter.copy_(dequantize(quantize(parameter, affine), affine))
    assert torch.equal(simulate(plan, rounded, inputs)(x), simulate(plan, model, inputs)(x)), "stored codes differ"


def test_writes_replace_parameters(planned: tuple[nn.Module, QuantPlan, tuple[Tensor, ...], Tensor]) -> None:
    model, plan, inputs, x = planned
    written = replace(plan, writes={"classifier.bias": torch.full((5,), 100.0)})
    shift = simulate(written, model, inputs)(x) - simulate(plan, model, inputs)(x)
    expected = 100 - model.get_parameter("classifier.bias").detach()
    assert torch.allclose(shift, expected.expand_as(shift), atol=0.1), f"{shift[0]}, should be {expected}"
    assert float(model.get_parameter("classifier.bias").detach().abs().max()) < 10, "the float model was changed"


def test_the_bare_plan_is_fake_quantize_around_float_operators() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    x = torch.randn(4, 2, 4, 4)
    context = replace(example(METHOD)[2], example_inputs=(x[:1],), calibration=[(x,)])
    plan = METHOD.plan(model, "w8a8", context)
    first = nn.functional.conv2d(
        fake_quantize(x, plan.activations["input"]),
        fake_quantize(model[0].weight, plan.weights["0.weight"]),
        model[0].bias,
    )
    hidden = fake_quantize(torch.relu(first), plan.activations["0.conv2d"]).flatten(1)
    expected = nn.functional.linear(hidden, fake_quantize(model[3].weight, plan.weights["3.weight"]), model[3].bias)
    found = simulate(plan, model, (x[:1],), frozenset())(x)
    assert torch.equal(found, expected), f"off by {float((found - expected).abs().max())}"


@pytest.mark.parametrize(
    "rules", [{Rule.INTEGER_SUMS}, {Rule.INTEGER_SUMS, Rule.RELU_IS_CLAMP}, {Rule.DIVIDE}, set(Rule)]
)
def test_rules_change_the_last_bits_only(
    rules: set[Rule], planned: tuple[nn.Module, QuantPlan, tuple[Tensor, ...], Tensor]
) -> None:
    model, plan, inputs, x = planned
    bare, ruled = simulate(plan, model, inputs, frozenset())(x), simulate(plan, model, inputs, frozenset(rules))(x)
    error = float((bare - ruled).abs().max() / bare.abs().max())
    assert error < 0.02, f"{sorted(rule.name for rule in rules)}: off by {error:.4f} of the largest output"


def grid(seed: int, symmetric: bool, shape: tuple[int, ...], axis: int | None = None) -> tuple[Tensor, Affine]:
    """Values and their affine."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + (0 if symmetric else 0.4)
    ends = (x.amin(), x.amax()) if axis is None else (x.flatten(1).amin(1), x.flatten(1).amax(1))
    return x, choose_affine(*ends, 8, symmetric=symmetric, axis=axis)


def check_layer(seed: int, channels: int, bias: bool, relu: bool) -> None:
    """Against int64 loops over codes, not against another float computation."""
    x, x_affine = grid(seed, False, (2, channels, 5, 5))
    weight, w_affine = grid(seed + 1, True, (4, channels, 3, 3), axis=0)
    _, y_affine = grid(seed + 2, False, (9,))
    offset = torch.randn(4, generator=torch.Generator().manual_seed(seed)) if bias else None
    layer = IntegerLayer(CONV, weight, w_affine, offset, ([2, 2], [1, 1]), x_affine, y_affine, relu)
    found = layer(fake_quantize(x, x_affine))
    codes = nn.functional.pad(quantize(x, x_affine).long() - x_affine.zero_point, (1, 1, 1, 1))
    patches = codes.unfold(2, 3, 2).unfold(3, 3, 2)
    total = torch.einsum("nchwij,ocij->nohw", patches, quantize(weight, w_affine).long())
    if offset is not None:
        total += bias_codes(offset, bias_affine(x_affine, w_affine)).long().view(-1, 1, 1)
    multiplier = (x_affine.scale * w_affine.scale / y_affine.scale).view(-1, 1, 1)
    steps = torch.round(total.to(torch.int32).float() * multiplier) + y_affine.zero_point
    low = max(y_affine.low, int(y_affine.zero_point)) if relu else y_affine.low
    expected = dequantize(steps.clamp(low, y_affine.high).to(torch.int32), y_affine)
    assert torch.equal(found, expected), f"off by {float((found - expected).abs().max() / y_affine.scale)} steps"


@given(st.integers(0, 10_000), st.sampled_from([1, 3, 8]), st.booleans(), st.booleans())
@settings(max_examples=30, deadline=None)
def test_layers_equal_integer_arithmetic(seed: int, channels: int, bias: bool, relu: bool) -> None:
    check_layer(seed, channels, bias, relu)


def test_mutant_layers_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integer, "bias_codes", lambda bias, affine: torch.zeros_like(bias))
    with pytest.raises(AssertionError, match="steps"):
        check_layer(1, 8, bias=True, relu=False)
    monkeypatch.undo()
    monkeypatch.setattr(integer.Grid, "centered", lambda self, x: (x / self.scale).floor())
    with pytest.raises(AssertionError, match="steps"):
        check_layer(1, 8, bias=False, relu=False)


WORDS = {  # of numpy's float32, which rounds every operation
    Rounding.RECIPROCAL: lambda x, s, z, low, high: np.rint(x * (ONE / s)),
    Rounding.DIVISION: lambda x, s, z, low, high: np.rint(x / s),
    Rounding.SHIFTED: lambda x, s, z, low, high: np.rint(x * (ONE / s) + z) - z,
    Rounding.ENDS: lambda x, s, z, low, high: (
        np.rint(
            x * ((high - low) / ((high - z) * s - (low - z) * s))
            - (low - z) * s * ((high - low) / ((high - z) * s - (low - z) * s))
        )
        - (z - low)
    ),
}


@given(st.integers(0, 10_000), st.sampled_from(list(Rounding)), st.booleans())
@pinned(618, Rounding.ENDS, True)  # a factor that a division by a reciprocal rounds twice
@settings(max_examples=60, deadline=None)
def test_roundings_are_what_they_say(seed: int, rounding: Rounding, whole_bias: bool) -> None:
    x, x_affine = grid(seed, False, (400, 24))
    weight, w_affine = grid(seed + 1, True, (16, 24), axis=0)
    bias = torch.randn(16, generator=torch.Generator().manual_seed(seed))
    _, y_affine = grid(seed + 2, False, (9,))
    layer = IntegerLayer(LINEAR, weight, w_affine, bias, (), x_affine, y_affine, False, rounding, whole_bias)
    found = quantize(layer(fake_quantize(x, x_affine)), y_affine)
    total = (quantize(x, x_affine).long() - x_affine.zero_point) @ quantize(weight, w_affine).long().T
    sums, s_x, s_w = total.numpy().astype(np.float32), x_affine.scale.numpy(), w_affine.scale.numpy()
    if whole_bias:
        codes = bias_codes(bias, bias_affine(x_affine, w_affine)).numpy().astype(np.float32)
        value = sums * (s_x * s_w) + codes * (s_x * s_w)
    else:
        value = sums * s_x * s_w + bias.numpy()
    low, high, z = np.float32(y_affine.low), np.float32(y_affine.high), np.float32(y_affine.zero_point)
    steps = WORDS[rounding](value, y_affine.scale.numpy(), z, low, high) + z
    assert value.dtype == steps.dtype == np.float32, f"{value.dtype}, {steps.dtype}: not what is claimed"
    expected = torch.from_numpy(steps).clamp(y_affine.low, y_affine.high).to(torch.int32)
    assert torch.equal(found, expected), f"{int((found != expected).sum())} codes of {expected.numel()} differ"


def test_roundings_differ_near_ties() -> None:
    """Else the test above could not tell one from another."""
    seen: set[tuple[Rounding, Rounding]] = set()
    for end in (1.7, 1.71, 2.3, 0.9):
        affine = choose_affine(torch.tensor(-1.3), torch.tensor(end), 8, symmetric=False)
        x = (torch.arange(-120, 120) + 0.5).repeat(400) * affine.scale
        x = x * (1 + torch.linspace(-3e-7, 3e-7, len(x)))
        steps = {rounding: integer.Grid(affine).steps(x, rounding) for rounding in Rounding}
        pairs = itertools.combinations(Rounding, 2)
        seen |= {(one, two) for one, two in pairs if not torch.equal(steps[one], steps[two])}
    assert len(seen) == 6, f"of the six pairs only {seen} differ"


def test_wide_sums_are_exact_in_float64() -> None:
    weight = torch.full((2, 4000), 127.0)
    affine = Affine(torch.ones(2), torch.zeros(2, dtype=torch.int32), -127, 127, 0)
    x_affine = Affine(torch.tensor(1.0), torch.tensor(0, dtype=torch.int32), 0, 255)
    layer = IntegerLayer(LINEAR, weight, affine, torch.tensor([1.0, 0.0]), (), x_affine, None, False)
    assert layer.codes.dtype == torch.float64, f"codes in {layer.codes.dtype}, sums to 2^27 need float64"
    total = layer(torch.full((1, 4000), 255.0))
    exact = 4000 * 127 * 255
    assert total.tolist() == [[float(torch.tensor(exact + 1.0).float()), float(exact)]], f"{total.tolist()}"


@given(st.integers(0, 10_000), st.booleans())
@settings(max_examples=30, deadline=None)
def test_additions_and_means_round_to_the_nearest_step(seed: int, relu: bool) -> None:
    (a, first), (b, second) = grid(seed, False, (3, 4, 2, 2)), grid(seed + 1, False, (3, 4, 2, 2))
    a, b = fake_quantize(a, first), fake_quantize(b, second)
    _, out = grid(seed + 2, False, (9,))
    exact = torch.relu(a.double() + b.double()) if relu else a.double() + b.double()
    cases = [("add", IntegerAdd(first, second, out, relu)(a, b), exact)]
    cases.append(("mean", IntegerMean(first, out, 2)(a), a.double().mean((2, 3), keepdim=True)))
    for name, found, wanted in cases:
        ends = ((out.low - out.zero_point) * out.scale, (out.high - out.zero_point) * out.scale)
        steps = float((found.double() - wanted.clamp(*map(float, ends))).abs().max() / out.scale)
        assert steps <= 0.5001, f"{name}: off by {steps} steps, should be at most half of one"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: replace(p, weights={**p.weights, "conv9.weight": p.weights["conv1.weight"]}), "conv9.weight"),
        (lambda p: replace(p, weights={"conv1.weight": p.weights["conv3.weight"]}), "12 scales, should be 8"),
        (lambda p: replace(p, activations={"inputs": p.activations["input"]}), "'inputs', should be 'input'"),
        (lambda p: replace(p, activations={"input": p.weights["conv1.weight"]}), "8 scales, should be one"),
        (lambda p: replace(p, writes={"nothing": torch.zeros(1)}), "'nothing'"),
        (lambda p: replace(p, writes={"classifier.bias": torch.zeros(9)}), r"shape \[9\]"),
    ],
    ids=[
        "unknown weight",
        "wrong scales",
        "unknown point",
        "per channel activation",
        "unknown write",
        "write of other shape",
    ],
)
def test_plans_that_do_not_fit_are_refused(change, message, planned) -> None:  # type: ignore[no-untyped-def]
    model, plan, inputs, _ = planned
    with pytest.raises(PlanError, match=message):
        simulate(change(plan), model, inputs)


class Sixes(nn.Module):
    """A convolution, and an addition, with a ReLU6 behind each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second, self.last = nn.Conv2d(2, 3, 3), nn.Conv2d(3, 3, 1), nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu6(self.first(x), inplace=True)
        x = nn.functional.relu6(self.second(x) + x)
        y: Tensor = self.last(x.flatten(1))
        return y


def up_to(span: float) -> Affine:
    """A grid of 8 bits from 0."""
    return choose_affine(torch.tensor(0.0), torch.tensor(span), 8, symmetric=False)


def sixes(grid: Affine) -> tuple[nn.Module, QuantPlan, Tensor]:
    """A model, and its plan with this grid behind the clamps."""
    model, x = Sixes(), 8 * torch.randn(6, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    plan = METHOD.plan(model, "w8a8", replace(example(METHOD)[2], example_inputs=(x[:1],), calibration=[(x,)]))
    return model, replace(plan, activations={**plan.activations, "first.conv2d": grid, "add": grid}), x


def clamped_and_rounded(model: nn.Module, plan: QuantPlan, x: Tensor) -> Tensor:
    """What the bare plan says, spelt out."""

    def layer(x: Tensor, name: str) -> Tensor:
        made = model.get_submodule(name)
        weight = fake_quantize(made.weight, plan.weights[f"{name}.weight"])
        function = nn.functional.linear if made.weight.dim() == 2 else nn.functional.conv2d
        return function(x, weight, made.bias)

    first = layer(fake_quantize(x, plan.activations["input"]), "first")
    assert float(first.detach().max()) > 8, "nothing is clamped"
    first = fake_quantize(first.clamp(0, 6), plan.activations["first.conv2d"])
    second = fake_quantize(layer(first, "second"), plan.activations["second.conv2d"])
    return layer(fake_quantize((second + first).clamp(0, 6), plan.activations["add"]).flatten(1), "last")


def check_clamps(grid: Affine) -> None:
    model, plan, x = sixes(grid)
    with torch.no_grad():
        expected = clamped_and_rounded(model, plan, x)
        bare, whole = (simulate(plan, model, (x[:1],), rules)(x) for rules in (frozenset(), INTEGER))
    assert torch.equal(bare, expected), f"the bare plan is off by {float((bare - expected).abs().max())}"
    error = float((whole - expected).abs().max() / expected.abs().max())
    assert error < 0.01, f"on integers it is off by {error:.4f} of the largest output"


SIGNED = Affine(torch.tensor(9.1 / 255), torch.tensor(-128, dtype=torch.int32), -128, 127)  # from 0 to 9.1, other codes
SYMMETRIC = choose_affine(torch.tensor(-5.0), torch.tensor(5.0), 8, symmetric=True)


@pytest.mark.parametrize("grid", [*map(up_to, (3.0, 6.0, 6.01, 6.015, 9.0)), SIGNED, SYMMETRIC])
def test_clamps_from_zero_are_those_of_the_model_whatever_the_grid(grid: Affine) -> None:
    check_clamps(grid)


@pytest.mark.parametrize("grid", [up_to(6.0), up_to(9.1), SIGNED, SYMMETRIC])
def test_an_output_behind_a_clamp_lies_on_its_grid(grid: Affine) -> None:
    """Six does not, where the grid goes on behind it."""
    model, x = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU6()), 8 * torch.randn(2, 2, 6, 6)
    plan = METHOD.plan(model, "w8a8", replace(example(METHOD)[2], example_inputs=(x[:1],), calibration=[(x,)]))
    plan = replace(plan, activations={**plan.activations, "0.conv2d": grid})
    for rules in (frozenset(), INTEGER):
        made = simulate(plan, model, (x[:1],), rules)(x)
        assert float(made.min()) == 0, f"{float(made.min())}, should be the clamp's lower end"
        assert torch.allclose(made, fake_quantize(made, grid), atol=1e-6), "values between two codes"
        assert float(made.max()) == pytest.approx(
            min(6.0, float(grid.scale) * (grid.high - int(grid.zero_point))), abs=0.03
        )


def test_mutants_that_leave_clamps_out_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lower, "_implies", lambda coding, top: coding is not None)
    with pytest.raises(AssertionError, match="off by"):
        check_clamps(up_to(9.0))


@pytest.mark.parametrize(("span", "left"), [(3.0, 0), (6.0, 0), (9.0, 2)])
def test_only_clamps_that_the_grid_does_not_imply_are_left(span: float, left: int) -> None:
    model, plan, x = sixes(up_to(span))
    for form in (Simulation(frozenset()), Simulation(INTEGER), Qdq(False)):
        graph = lower.lower(plan, model, (x[:1],), form).graph
        clamps = [node for node in graph.nodes if points.top_of(node) is not None]
        assert len(clamps) == left, f"{form}: {len(clamps)} clamps in the graph, should be {left}"
    rounded = [node for node in graph.nodes if str(node.target).startswith(places.POINTS)]
    behind = [str(clamp.all_input_nodes[0].target).startswith(places.POINTS) for clamp in clamps]
    assert all(behind), f"{behind}: a clamp that is left reads what is not rounded, so no integer kernel is found"
    assert len(rounded) == 5 + left, f"{len(rounded)} q/dq pairs, should be {5 + left}"
