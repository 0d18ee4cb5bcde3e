"""The laws of the affine core, on invented tensors."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning_bench.conformance import quantization_checks as checks
from pruning_bench.errors import LevelError, ModelError
from pruning_bench.quantization.affine import choose_affine, code_range, dequantize, fake_quantize, quantize
from pruning_bench.quantization.contract import Affine

FEW = settings(max_examples=60, deadline=None)
BITS = st.integers(2, 8)
VALUES = st.one_of(
    st.floats(-4, 4, width=32),
    st.floats(-(2.0**120), 2.0**120, width=32),
    st.floats(-(2.0**-100), 2.0**-100, width=32),
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5]),
)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    rows, columns = draw(st.integers(1, 4), label="rows"), draw(st.integers(1, 6), label="columns")
    count = rows * columns
    return torch.tensor(draw(st.lists(VALUES, min_size=count, max_size=count), label="values")).view(rows, columns)


@st.composite
def affines(draw: st.DrawFn, symmetric: bool | None = None) -> tuple[torch.Tensor, Affine]:
    """A tensor, and an affine chosen for another one of the same number of rows; ties included."""
    x = draw(tensors(), label="x")
    symmetric = draw(st.booleans(), label="symmetric") if symmetric is None else symmetric
    axis = draw(st.sampled_from([None, 0]), label="axis")
    seen = x * draw(st.sampled_from([1.0, 0.3, 2.0]), label="widening")
    low, high = (seen.amin(), seen.amax()) if axis is None else (seen.amin(1), seen.amax(1))
    affine = choose_affine(low, high, draw(BITS, label="bits"), symmetric=symmetric, axis=axis)
    if draw(st.booleans(), label="ties"):
        scale = affine.scale if axis is None else affine.scale.view(-1, 1)
        halves = torch.arange(x.numel()).view(x.shape) - x.numel() // 2 + 0.5
        x = halves * scale
    return x, affine


@given(affines())
@FEW
def test_codes_in_range(drawn: tuple[torch.Tensor, Affine]) -> None:
    checks.check_codes_in_range(quantize, *drawn)


@given(affines())
@FEW
def test_round_trip_within_half_a_step(drawn: tuple[torch.Tensor, Affine]) -> None:
    checks.check_round_trip(fake_quantize, *drawn)


@given(affines())
@FEW
def test_zero_is_exact(drawn: tuple[torch.Tensor, Affine]) -> None:
    checks.check_zero_exact(fake_quantize, drawn[1])


@given(affines())
@FEW
def test_idempotent(drawn: tuple[torch.Tensor, Affine]) -> None:
    checks.check_idempotent(fake_quantize, *drawn)


@given(affines())
@FEW
def test_equal_to_torch(drawn: tuple[torch.Tensor, Affine]) -> None:
    checks.check_equals_torch(fake_quantize, *drawn)


@given(affines(symmetric=True))
@FEW
def test_odd_symmetry(drawn: tuple[torch.Tensor, Affine]) -> None:
    checks.check_odd_symmetry(quantize, *drawn)


@given(tensors(), BITS, st.booleans())
@FEW
def test_scales_finite_and_range_covered(x: torch.Tensor, bits: int, symmetric: bool) -> None:
    checks.check_scales_finite(choose_affine, x.amin(), x.amax(), bits, symmetric)
    checks.check_covers_range(choose_affine, x.amin(), x.amax(), bits, symmetric)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -3.5, 1e-45, -1e-38, 3.4e38, -3.4e38])
def test_constant_tensors_have_sound_scales(value: float, symmetric: bool) -> None:
    constant = torch.tensor(value)
    checks.check_scales_finite(choose_affine, constant, constant, 8, symmetric)
    wide = torch.tensor([-abs(value), abs(value)])
    checks.check_scales_finite(choose_affine, wide[0], wide[1], 8, symmetric)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("end", ["lowest", "highest"])
def test_a_range_that_is_not_finite_is_refused(bad: float, end: str) -> None:
    ends = {"lowest": torch.zeros(3), "highest": torch.ones(3)}
    ends[end] = torch.tensor([0.0, bad, 1.0])
    with pytest.raises(ModelError, match="finite values") as caught:
        choose_affine(ends["lowest"], ends["highest"], 8, symmetric=True, axis=0)
    assert "\n" not in str(caught.value), f"{caught.value} should be one line"


def test_a_range_upside_down_is_refused() -> None:
    with pytest.raises(ModelError, match=r"lowest 2\.0 > highest 1\.0"):
        choose_affine(torch.tensor(2.0), torch.tensor(1.0), 8, symmetric=False)


@pytest.mark.parametrize("bits", [1, 9])
def test_bits_outside_two_to_eight_are_refused(bits: int) -> None:
    with pytest.raises(LevelError, match="2 to 8 bits"):
        code_range(bits, symmetric=True)


@pytest.mark.parametrize(
    ("bits", "symmetric", "expected"),
    [(8, False, (0, 255)), (8, True, (-127, 127)), (2, True, (-1, 1)), (4, False, (0, 15))],
)
def test_code_ranges(bits: int, symmetric: bool, expected: tuple[int, int]) -> None:
    assert code_range(bits, symmetric) == expected, f"{code_range(bits, symmetric)}, should be {expected}"


def test_codes_round_half_to_even() -> None:
    affine = Affine(torch.tensor(1.0), torch.tensor(0, dtype=torch.int32), -127, 127)
    codes = quantize(torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5]), affine).tolist()
    assert codes == [0, 2, 2, 0, -2], f"{codes}, should round half to even"


def test_dequantize_takes_any_integer_type() -> None:
    affine = Affine(torch.tensor(0.5), torch.tensor(128, dtype=torch.int32), 0, 255)
    values = dequantize(torch.tensor([0, 255], dtype=torch.uint8), affine).tolist()
    assert values == [-64.0, 63.5], f"{values}, should be [-64.0, 63.5]"
