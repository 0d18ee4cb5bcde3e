"""The checks of 8-bit floats bite: each passes what is right, and rejects a named mutant."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruning_bench.conformance import float8_checks as checks
from pruning_bench.conformance import quantization_checks, quantization_sweeps
from pruning_bench.conformance.runner import check_method, checks_for
from pruning_bench.conformance.traces import differences
from pruning_bench.quantization.affine import choose_float8, fake_quantize, quantize
from pruning_bench.quantization.contract import Float8, QuantizationTags, QuantPlan
from pruning_bench.quantization.methods.fp8 import Fp8

CODING = Float8(torch.tensor(0.5), "e4m3")
X = torch.tensor([-999.0, -3.3, -1e-4, 0.0, 0.53125, 0.59375, 1.1, 200.0, 300.0])  # two ties among them
ZERO, ONE = torch.tensor(0.0), torch.tensor(1.0)


def towards_zero(x: Tensor, coding: Float8) -> Tensor:
    table, steps = checks.codes_of(coding.format), x / coding.scale
    below = (torch.searchsorted(table, steps.abs().double(), right=True) - 1).clamp(min=0)
    return (table[below] * steps.sign()).float() * coding.scale


def ties_upwards(x: Tensor, coding: Float8) -> Tensor:
    return fake_quantize(torch.nextafter(x, ONE * 1e9), coding)


def of_the_other_format(x: Tensor, coding: Float8) -> Tensor:
    return fake_quantize(x, replace(coding, format="e5m2"))


def without_clamp(x: Tensor, coding: Float8) -> Tensor:
    return unclamped_codes(x, coding).float() * coding.scale


def wrapping(x: Tensor, coding: Float8) -> Tensor:
    return fake_quantize(x, coding).where(x.abs() <= coding.largest * coding.scale, 0.0)


def in_whole_bytes(x: Tensor, coding: Float8) -> Tensor:
    return quantize(x, coding).view(torch.uint8)


def unclamped_codes(x: Tensor, coding: Float8) -> Tensor:
    """As casts of torch gave them once; newer ones saturate."""
    return (x / coding.scale).masked_fill(x.abs() > coding.largest * coding.scale, torch.nan).to(coding.dtype)


def with_two_zeros(x: Tensor, coding: Float8) -> Tensor:
    return (x / coding.scale).clamp(-coding.largest, coding.largest).to(coding.dtype)


def for_powers_of_two(lowest: Tensor, highest: Tensor, format: str) -> Float8:
    coding = choose_float8(lowest, highest, format)
    return replace(coding, scale=torch.exp2(torch.log2(coding.scale).ceil()))


def up_to_the_highest(lowest: Tensor, highest: Tensor, format: str) -> Float8:
    return choose_float8(highest.clamp(max=0.0), highest, format)


def without_limits(lowest: Tensor, highest: Tensor, format: str) -> Float8:
    largest = float(checks.codes_of(format)[-1])
    return Float8(torch.maximum(lowest.abs(), highest.abs()) / largest, format)


LAWS = [
    ("towards zero", checks.check_nearest, fake_quantize, towards_zero, "e4m3 of 0.59375: 0.5625, should be 0.625"),
    ("ties upwards", checks.check_nearest, fake_quantize, ties_upwards, "e4m3 of 0.53125: 0.5625, should be 0.5"),
    ("the other format", checks.check_relative_error, fake_quantize, of_the_other_format, "should be about"),
    ("wraps", checks.check_monotone, fake_quantize, wrapping, "should be at least"),
    ("no clamp", checks.check_saturates, fake_quantize, without_clamp, "nan, should be within"),
    ("bytes", checks.check_codes, quantize, in_whole_bytes, "dtype torch.uint8"),
    ("unclamped codes", checks.check_codes, quantize, unclamped_codes, "codes are infinite or no number"),
    ("two zeros", checks.check_codes, quantize, with_two_zeros, "1 codes are -0"),
]
SCALES = [
    ("powers of two", for_powers_of_two, (-ONE, ONE, "e4m3"), "should end at"),
    ("one end", up_to_the_highest, (-ONE * 2, ONE, "e4m3"), "should reach"),
    ("no scale for zero", without_limits, (ZERO, ZERO, "e4m3"), "should be positive and finite"),
    ("no smallest scale", without_limits, (ZERO, ONE * 1e-40, "e5m2"), "should be positive and finite"),
]


@pytest.mark.parametrize(("name", "check", "right", "mutant", "message"), LAWS, ids=[case[0] for case in LAWS])
def test_laws_reject_their_mutants(
    name: str, check: Callable[..., None], right: Any, mutant: Any, message: str
) -> None:
    check(right, X, CODING)
    with pytest.raises(AssertionError, match=message):
        check(mutant, X, CODING)


@pytest.mark.parametrize(("name", "mutant", "args", "message"), SCALES, ids=[case[0] for case in SCALES])
def test_scales_reject_their_mutants(name: str, mutant: Any, args: tuple[Any, ...], message: str) -> None:
    checks.check_scales(choose_float8, *args)
    with pytest.raises(AssertionError, match=message):
        checks.check_scales(mutant, *args)


def test_scales_of_channels_are_checked_by_channel() -> None:
    coding = Float8(torch.tensor([0.5, 8.0]), "e4m3", axis=1)
    x = torch.stack([X, X * 16], dim=1)
    swapped = replace(coding, scale=coding.scale.flip(0))
    for law in checks.LAWS:
        law(fake_quantize, x, coding)
    with pytest.raises(AssertionError, match="should be"):
        checks.check_nearest(lambda x, _: fake_quantize(x, swapped), x, coding)


def test_every_check_has_a_mutant() -> None:
    every = {value for name, value in vars(checks).items() if name.startswith("check_")}
    assert every == {case[1] for case in LAWS} | {checks.check_scales}, f"{every}"
    assert {*checks.LAWS} == every - {checks.check_codes, checks.check_scales}, f"{checks.LAWS}"


class ZeroScale(Fp8):
    def plan(self, model: nn.Module, level: Any, context: Any) -> QuantPlan:
        plan = super().plan(model, level, context)
        return replace(plan, weights={k: replace(v, scale=v.scale * 0) for k, v in plan.weights.items()})


class Coarse(Fp8):
    """Weights lie outside what their scales reach; the tags promise more than that."""

    tags = QuantizationTags(bits=(8,), sqnr_db=Fp8.tags.sqnr_db)

    def plan(self, model: nn.Module, level: Any, context: Any) -> QuantPlan:
        plan = super().plan(model, level, context)
        return replace(plan, weights={k: replace(v, scale=v.scale / 4) for k, v in plan.weights.items()})


class NotAsExpected(Fp8):
    tags = QuantizationTags(bits=(8,), expected_failures={"plan_affines": "it has none"})


def test_the_checks_of_methods_look_at_8_bit_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    quantization_checks.check_plan_affines(Fp8())
    with pytest.raises(AssertionError, match="finite and > 0"):
        quantization_checks.check_plan_affines(ZeroScale())
    with pytest.raises(AssertionError, match=r"should be at least 15\.0 dB"):
        quantization_sweeps.check_sqnr_bars(Coarse())
    with pytest.raises(AssertionError, match="passes plan_affines"):
        check_method(NotAsExpected())
    monkeypatch.setattr(quantization_checks, "fake_quantize", of_the_other_format)
    with pytest.raises(AssertionError, match="e4m3 of"):
        quantization_checks.check_plan_affines(Fp8())


def test_two_plans_differ_by_scale_format_and_kind() -> None:
    plan = Fp8().plan(*quantization_checks.example(Fp8()))
    name = next(iter(plan.weights))
    coding = plan.weights[name]
    assert isinstance(coding, Float8)
    assert not differences(plan, plan), "a plan differs from itself"
    for field, value in {"scale": coding.scale * 2, "format": "e5m2", "axis": None}.items():
        changed = replace(plan, weights={**plan.weights, name: replace(coding, **{field: value})})
        assert [*differences(plan, changed)] == [f"weights {name} {field}"], f"{value} passes for {coding}"


def test_a_method_is_swept_over_the_bits_that_it_has() -> None:
    names = [name for name, _ in checks_for(Fp8())]
    assert "monotone_in_bits" not in names, f"{names}: it has 8 bits alone"
    assert {"pruned_stay_zero", "sqnr_bars", "bad_calibration"} < {*names}, f"{names}"
