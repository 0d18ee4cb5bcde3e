"""Storage of a weight's codes: which 8-bit type, and that it never changes a value."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pruning_bench.quantization.contract import Affine
from pruning_bench.quantization.qdq import Constant, Layer

PAIR_LIMIT = 2**15 - 1


def affine(scale: float, low: int = -128, high: int = 127) -> Affine:
    return Affine(torch.tensor([scale]), torch.tensor([0]), low, high, 0)


def stored(weight: Tensor, grid: Affine, saturating: bool) -> Constant:
    return Layer(torch.nn.functional.linear, weight, grid, None, (), None, saturating).weight


def value(constant: Constant) -> Tensor:
    return (constant.codes.int() - constant.zero_point.int()) * constant.scale


@given(
    codes=st.lists(st.integers(-128, 127), min_size=1, max_size=8),
    scale=st.floats(2**-20, 2**10, width=32),
    saturating=st.booleans(),
)
def test_storage_changes_no_value(codes: list[int], scale: float, saturating: bool) -> None:
    weight = torch.tensor([codes]) * torch.tensor(scale)
    made = stored(weight, affine(scale), saturating)
    assert torch.equal(value(made), torch.tensor([codes]) * torch.tensor(scale)), f"{made.codes} reads {value(made)}"


@given(codes=st.lists(st.integers(-128, 127), min_size=2, max_size=8))
def test_no_sum_of_two_products_overflows(codes: list[int]) -> None:
    made = stored(torch.tensor([codes]).float(), affine(1.0), saturating=True)
    if made.codes.dtype == torch.int8:
        assert int(made.codes.int().abs().sort(descending=True).values[0, :2].sum()) * 255 <= PAIR_LIMIT


@pytest.mark.parametrize(("largest", "dtype"), [(64, torch.int8), (65, torch.uint8), (127, torch.uint8)])
def test_only_weights_that_could_overflow_are_shifted(largest: int, dtype: torch.dtype) -> None:
    made = stored(torch.tensor([[float(largest), -1.0]]), affine(1.0), saturating=True)
    assert made.codes.dtype == dtype, f"largest code {largest} is stored as {made.codes.dtype}, should be {dtype}"
    assert stored(torch.tensor([[float(largest)]]), affine(1.0), saturating=False).codes.dtype == torch.int8
