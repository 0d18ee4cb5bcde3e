"""Fake quantization that trains: the values of the affine core, the gradients of the paper."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pruning_bench.conformance.quantization_checks import example, example_images
from pruning_bench.quantization.affine import choose_affine, fake_quantize
from pruning_bench.quantization.contract import Affine, QuantPlan
from pruning_bench.quantization.learned import Quantizer, StraightThrough, point_means, trainable, weight_means
from pruning_bench.quantization.methods.static import Static
from pruning_bench.quantization.plans import prepare
from pruning_bench.quantization.simulation import simulate

Gradients = Callable[[Tensor, Tensor, int, int, float], tuple[Tensor, Tensor]]


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 8), st.booleans(), st.integers(0, 10**6), st.floats(-6, 6))
def test_values_are_those_of_the_affine_core(bits: int, symmetric: bool, seed: int, size: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5, 7, generator=generator) * 10**size
    affine = choose_affine(x.amin() / 2, x.amax() / 2, bits, symmetric=symmetric)
    found = Quantizer(affine, batched=True)(x)
    assert torch.equal(found, fake_quantize(x, affine)), f"off by {(found - fake_quantize(x, affine)).abs().max()}"


@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
def test_values_of_weights_too(granularity: str) -> None:
    x = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))
    ends = (x.amin((1, 2)), x.amax((1, 2))) if granularity == "per_channel" else (x.amin(), x.amax())
    affine = choose_affine(*ends, 3, symmetric=True, axis=0 if granularity == "per_channel" else None)
    assert torch.equal(Quantizer(affine, batched=False)(x), fake_quantize(x, affine)), granularity


def gradients(x: Tensor, scale: Tensor, least: int, most: int, factor: float) -> tuple[Tensor, Tensor]:
    """Of the sum of the values, for each x, and for the scale at each x."""
    made = []
    for value in x:
        leaf, step = value.clone().requires_grad_(), scale.clone().requires_grad_()
        StraightThrough.apply(leaf, step, least, most, torch.tensor(factor)).backward()
        made.append((leaf.grad, step.grad))
    return torch.stack([a for a, _ in made]), torch.stack([b for _, b in made])


def check_gradients(gradients: Gradients, x: Tensor, scale: float, least: int, most: int, factor: float) -> None:
    """Finite differences of clamp(x / s + r) * s, r = round(x0 / s0) - x0 / s0: rounding with a slope of one.

    Only where it is defined: away from the ends.
    """
    x = x[((x / scale - least).abs() > 0.6) & ((x / scale - most).abs() > 0.6)]
    rest = (x / scale).round() - x / scale

    def straight(x: Tensor, scale: float) -> Tensor:
        return (x / scale + rest).clamp(least, most) * scale

    h = 1e-6
    of_x = (straight(x + h, scale) - straight(x - h, scale)) / (2 * h)
    of_scale = factor * (straight(x, scale + h) - straight(x, scale - h)) / (2 * h)
    found = gradients(x, torch.tensor(scale, dtype=torch.float64), least, most, factor)
    for name, one, other in zip("xs", found, (of_x, of_scale), strict=True):
        worst = float((one - other).abs().max())
        assert worst < 1e-4, f"d/d{name} off by {worst}: {one.tolist()}, should be {other.tolist()}"


X = torch.linspace(-9.03, 9.01, 41, dtype=torch.float64)


@pytest.mark.parametrize(("least", "most"), [(-7, 7), (0, 15), (-4, 11), (-1, 1)])
@pytest.mark.parametrize("scale", [0.37, 1.9])
def test_gradients_are_those_of_the_paper(least: int, most: int, scale: float) -> None:
    check_gradients(gradients, X, scale, least, most, 0.25)


def passing_everything(x: Tensor, scale: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return torch.ones_like(x), gradients(x, scale, *rest)[1]


def slope_of_the_codes(x: Tensor, scale: Tensor, least: int, most: int, factor: float) -> tuple[Tensor, Tensor]:
    """The true derivative of codes * s, without the slope of the rounding."""
    of_x = gradients(x, scale, least, most, factor)[0]
    return of_x, (x / scale).round().clamp(least, most) * factor


def without_the_factor(x: Tensor, scale: Tensor, least: int, most: int, factor: float) -> tuple[Tensor, Tensor]:
    return gradients(x, scale, least, most, 1.0)


@pytest.mark.parametrize("mutant", [passing_everything, slope_of_the_codes, without_the_factor])
def test_wrong_gradients_are_rejected(mutant: Gradients) -> None:
    with pytest.raises(AssertionError, match="off by"):
        check_gradients(mutant, X, 0.37, -7, 7, 0.25)


def test_the_factor_counts_what_shares_a_scale_without_the_batch() -> None:
    affine = Affine(torch.tensor(0.1), torch.tensor(0, dtype=torch.int32), 0, 15)
    values = float(Quantizer(affine, torch.tensor(0.01), batched=True).factor(torch.zeros(32, 4, 6)))
    assert values == pytest.approx((24 * 15) ** -0.5), f"{values} for 24 features"
    rows = Affine(torch.ones(4), torch.zeros(4, dtype=torch.int32), -7, 7, axis=0)
    weights = Quantizer(rows, torch.full((4,), 0.1), batched=False).factor(torch.zeros(4, 6)).tolist()
    assert weights == pytest.approx([(6 * 7) ** -0.5] * 4), f"{weights} for 6 weights a scale"


def test_learning_finds_a_scale_that_loses_less() -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    wide = Affine(torch.tensor(2.0), torch.tensor(0, dtype=torch.int32), -7, 7)
    quantizer = Quantizer(wide, torch.tensor(10.0), batched=False)
    optimizer = torch.optim.SGD([quantizer.scale], lr=20.0)
    losses = []
    for _ in range(400):
        loss = (quantizer(x) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[1] < losses[0], f"the first step went from {losses[0]} to {losses[1]}"
    assert losses[-1] < losses[0] / 10, f"from {losses[0]} to {losses[-1]}, should fall by far"


def test_a_step_too_far_does_not_take_a_scale_below_its_leash() -> None:
    wide = Affine(torch.tensor([1.6, 1.6]), torch.zeros(2, dtype=torch.int32), -7, 7, axis=0)
    quantizer = Quantizer(wide, torch.full((2,), 100.0), batched=False)
    with torch.no_grad():
        quantizer.scale.copy_(torch.tensor([-3.0, 0.4]))
    quantizer.hold()
    assert quantizer.scale.tolist() == pytest.approx([0.1, 0.4]), f"{quantizer.scale.tolist()}"


def test_scales_begin_where_the_paper_says_but_reach_no_further_than_the_values() -> None:
    spanning = choose_affine(torch.tensor(0.0), torch.tensor(3.0), 4, symmetric=False)
    for mean, scale, gain in ((0.3, 0.6 / 15**0.5, 1.0), (2.0, 0.2, 0.2 / (4 / 15**0.5)), (0.0, 0.2, 1.0)):
        found = Quantizer(spanning, torch.tensor(mean), batched=True)
        assert float(found.scale.detach()) == pytest.approx(scale), f"mean {mean}: {found.scale}, should be {scale}"
        assert float(found.gain) == pytest.approx(gain), f"mean {mean}: {found.gain}, should be {gain}"
    assert Quantizer(spanning, torch.tensor(1.0), batched=True).scale.requires_grad, "should learn"
    assert not Quantizer(spanning, batched=True).scale.requires_grad, "should stay"


def test_means_leave_out_the_weights_that_were_pruned() -> None:
    weight = torch.tensor([[1.0, 0.0, -3.0], [0.0, 0.0, 0.0]])
    rows = Affine(torch.ones(2), torch.zeros(2, dtype=torch.int32), -7, 7, axis=0)
    whole = Affine(torch.tensor(1.0), torch.tensor(0, dtype=torch.int32), -7, 7)
    found = weight_means({"a": weight, "b": weight}, {"a": rows, "b": whole})
    assert found["a"].tolist() == [2.0, 0.0], f"{found}"
    assert float(found["b"]) == 2.0, f"{found}"


def test_the_trainable_graph_computes_the_bare_plan_bit_for_bit() -> None:
    model, _, context = example(Static())
    plan, prepared = Static().plan(model, "w4a4", context), prepare(model, context, "test")
    x = example_images(16, torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = simulate(plan, model, context.example_inputs, frozenset())(x)
        found = trainable(prepared, plan.weights, plan.activations, {})(x)
        assert torch.equal(found, expected), f"off by {(found - expected).abs().max()}"
        for missing in ("conv2.weight", "add"):  # a quantizer less must show
            fewer = QuantPlan(
                {name: a for name, a in plan.weights.items() if name != missing},
                {name: a for name, a in plan.activations.items() if name != missing},
            )
            other = trainable(prepared, fewer.weights, fewer.activations, {})(x)
            assert not torch.equal(other, expected), f"without {missing} it computes the same"


def test_means_are_those_of_the_values() -> None:
    model, _, context = example(Static())
    batches = [(example_images(4, torch.Generator().manual_seed(1)),), (torch.zeros(4, 3, 8, 8),)]
    found = point_means(prepare(model, replace(context, calibration=batches), "test"), ["input"], batches)
    assert float(found["input"]) == pytest.approx(float(batches[0][0].abs().mean()) / 2), f"{found}"
