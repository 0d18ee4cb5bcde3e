"""Rounding to 8-bit floats: its laws on invented tensors, and every code of both formats."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pruning_bench.conformance import float8_checks as checks
from pruning_bench.conformance.quantization_checks import check_idempotent, check_zero_exact
from pruning_bench.errors import LevelError, ModelError, PlanError
from pruning_bench.quantization.affine import (
    affine_of,
    choose_affine,
    choose_float8,
    dequantize,
    fake_quantize,
    quantize,
)
from pruning_bench.quantization.contract import FLOATS8, Float8
from pruning_bench.quantization.float8 import FakeFloat8

FEW = settings(max_examples=60, deadline=None)
FORMATS = st.sampled_from(list(FLOATS8))
VALUES = st.one_of(
    st.floats(-4, 4, width=32),
    st.floats(-(2.0**127), 2.0**127, width=32),
    st.floats(-(2.0**-100), 2.0**-100, width=32),
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0**-149, 3.4028234663852886e38]),
)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    rows, columns = draw(st.integers(1, 4), label="rows"), draw(st.integers(1, 6), label="columns")
    count = rows * columns
    return torch.tensor(draw(st.lists(VALUES, min_size=count, max_size=count), label="values")).view(rows, columns)


@st.composite
def codings(draw: st.DrawFn) -> tuple[Tensor, Float8]:
    """A tensor, and a coding chosen for another one of the same number of rows; ties included."""
    x, format = draw(tensors(), label="x"), draw(FORMATS, label="format")
    axis = draw(st.sampled_from([None, 0, 1]), label="axis")
    seen = x.clamp(-1e38, 1e38) * draw(st.sampled_from([1.0, 0.3, 2.0]), label="widening")
    others = [] if axis is None else [1 - axis]
    ends = (seen.amin(others), seen.amax(others)) if others else (seen.amin(), seen.amax())
    coding = choose_float8(*ends, format, axis=axis)
    if draw(st.booleans(), label="ties"):
        table = checks.codes_of(format)
        below = st.lists(st.integers(0, len(table) - 2), min_size=x.numel(), max_size=x.numel())
        index = torch.tensor(draw(below, label="codes below"))
        halfway = ((table[index] + table[index + 1]) / 2).float().view(x.shape)
        x = halfway * (coding.scale if axis is None else coding.scale.view([-1, 1] if axis == 0 else [1, -1]))
    return x, coding


@pytest.mark.parametrize("law", checks.LAWS, ids=lambda law: law.__name__)
@given(drawn=codings())
@FEW
def test_laws(law: Callable[..., None], drawn: tuple[Tensor, Float8]) -> None:
    law(fake_quantize, *drawn)


@given(codings())
@FEW
def test_codes_are_finite_bytes_and_the_rest_holds_too(drawn: tuple[Tensor, Float8]) -> None:
    x, coding = drawn
    checks.check_codes(quantize, x, coding)
    check_zero_exact(fake_quantize, coding)
    check_idempotent(fake_quantize, x, coding)
    whole = FakeFloat8(coding)(x) if coding.axis is None else dequantize(quantize(x, coding), coding)
    assert torch.equal(whole, fake_quantize(x, coding)), f"{whole}, should be {fake_quantize(x, coding)}"


@given(codings())
@FEW
def test_equal_to_the_cast_of_torch(drawn: tuple[Tensor, Float8]) -> None:
    x, coding = drawn
    scale = coding.scale.reshape([-1 if d == coding.axis else 1 for d in range(2)])
    cast = (x / scale).clamp(-coding.largest, coding.largest).to(FLOATS8[coding.format])
    expected, found = cast.float() * scale, fake_quantize(x, coding)
    assert torch.equal(found, expected), f"{found.tolist()}, should be {expected.tolist()}"


@given(tensors(), FORMATS)
@FEW
def test_scales_are_finite_and_end_where_the_range_does(x: Tensor, format: str) -> None:
    checks.check_scales(choose_float8, x.amin(), x.amax(), format)
    checks.check_scales(partial(choose_float8, axis=0), x.amin(1), x.amax(1), format)


@pytest.mark.parametrize("format", FLOATS8)
@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -3.5, 1e-45, -1e-38, 1e-20, 3.4e38, -3.4e38])
def test_constant_tensors(value: float, format: str) -> None:
    constant = torch.full((5,), value)
    checks.check_scales(choose_float8, constant.amin(), constant.amax(), format)
    coding = choose_float8(constant.amin(), constant.amax(), format)
    for law in checks.LAWS:
        law(fake_quantize, constant, coding)
    if 1e-15 < abs(value) < 1e37:
        found = fake_quantize(constant, coding)
        assert torch.allclose(found, constant, rtol=1e-6, atol=0), f"{value} becomes {found[0]}: it is the largest one"


@pytest.mark.parametrize("format", FLOATS8)
def test_every_code_is_kept_and_every_short_float_goes_to_the_nearest(format: str) -> None:
    coding = Float8(torch.tensor(1.0), format)
    table = checks.codes_of(format).float()
    assert torch.equal(fake_quantize(table, coding), table), "a code of the definition moves"
    assert torch.equal(quantize(table, coding).view(torch.uint8), torch.arange(len(table), dtype=torch.uint8)), "bits"
    short = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).float()
    halfway = ((table[1:].double() + table[:-1]) / 2).float()
    beside = [torch.nextafter(halfway, torch.tensor(end)) for end in (-math.inf, math.inf)]
    x = torch.cat([short[torch.isfinite(short)], halfway, *beside])
    for law in checks.LAWS:
        law(fake_quantize, x, coding)
    checks.check_codes(quantize, x, coding)


def test_integers_are_told_apart() -> None:
    affine = choose_affine(torch.tensor(-1.0), torch.tensor(1.0), 8, symmetric=True)
    assert affine_of(affine, "conv1") is affine
    with pytest.raises(PlanError, match=r"8-bit floats \(e5m2\), should be integers .* \[conv1\]"):
        affine_of(Float8(torch.tensor(1.0), "e5m2"), "conv1")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_range_that_is_not_finite_is_refused(bad: float) -> None:
    for ends in ((torch.tensor(bad), torch.tensor(1.0)), (torch.tensor(0.0), torch.tensor(bad))):
        with pytest.raises(ModelError, match="finite values") as caught:
            choose_float8(*ends, "e4m3")
        assert "\n" not in str(caught.value), f"{caught.value} should be one line"


def test_another_format_and_a_range_upside_down_are_refused() -> None:
    with pytest.raises(LevelError, match="format 'e3m4', should be e4m3 or e5m2"):
        choose_float8(torch.tensor(0.0), torch.tensor(1.0), "e3m4")
    with pytest.raises(ModelError, match=r"lowest 2\.0 > highest 1\.0"):
        choose_float8(torch.tensor(2.0), torch.tensor(1.0), "e4m3")
