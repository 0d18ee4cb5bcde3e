"""Codes of few bits come back exactly from the bytes that their bits need, and a damaged stream is one clear error."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pruning_bench.errors import CheckpointError
from pruning_bench.models.narrowing import narrow, widen

FILE = Path("some.safetensors")
Narrow = Callable[[dict[str, Tensor], dict[str, tuple[int, int]]], tuple[dict[str, Tensor], dict[str, Any]]]
RANGES = [(-(2 ** (bits - 1)) + 1, 2 ** (bits - 1) - 1) for bits in range(2, 9)] + [(0, 2**b - 1) for b in range(2, 9)]


def loses_nothing(codes: Tensor, low: int, high: int, narrowing: Narrow = narrow) -> None:
    stored, entries = narrowing({"w": codes}, {"w": (low, high)})
    back = widen(stored, {"narrow": entries}, FILE)["w"]
    same = (back.dtype, back.shape) == (codes.dtype, codes.shape) and torch.equal(back, codes)
    assert same, f"{codes} in {low}..{high} comes back as {back}"
    bits = {(-1, 1): 2, (0, 3): 2}.get((low, high)) or len(format(high - low, "b"))
    assert stored["w"].numel() == -(-codes.numel() * bits // 8), f"{stored['w'].numel()} bytes at {bits} bits"


@st.composite
def codes(draw: st.DrawFn) -> tuple[Tensor, int, int]:
    low, high = draw(st.sampled_from(RANGES), label="range")
    shape = draw(st.sampled_from([(), (0, 3), (1,), (5,), (3, 7), (2, 3, 3, 3)]), label="shape")
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999), label="seed"))
    values = torch.randint(low, high + 1, shape, generator=generator)
    return values.to(torch.int8 if low < 0 else torch.uint8), low, high


@settings(max_examples=80, deadline=None)
@given(codes())
def test_nothing_is_lost_and_no_bit_wasted(drawn: tuple[Tensor, int, int]) -> None:
    loses_nothing(*drawn)


CODES = torch.tensor([[-3, 3, 0], [1, -1, 2]], dtype=torch.int8)


def without_an_offset(tensors: dict[str, Tensor], ranges: dict[str, tuple[int, int]]) -> Any:
    stored, entries = narrow({"w": tensors["w"] - ranges["w"][0]}, {"w": (0, 6)})
    return stored, {"w": [0, 6, entries["w"][2]]}


def in_whole_bytes(tensors: dict[str, Tensor], ranges: dict[str, tuple[int, int]]) -> Any:
    return tensors, {}


def backwards(tensors: dict[str, Tensor], ranges: dict[str, tuple[int, int]]) -> Any:
    return narrow({"w": tensors["w"].flip(0)}, ranges)


@pytest.mark.parametrize("mutant", [without_an_offset, in_whole_bytes, backwards])
def test_the_law_rejects(mutant: Narrow) -> None:
    loses_nothing(CODES, -3, 3)
    with pytest.raises(AssertionError, match=r"comes back as|bytes at"):
        loses_nothing(CODES, -3, 3, mutant)


SPOILT: dict[str, Any] = {
    "no tensor": lambda stored, entries: stored.pop("w"),
    "a byte less": lambda stored, entries: stored.update(w=stored["w"][1:]),
    "in rows": lambda stored, entries: stored.update(w=stored["w"][None]),
    "floats": lambda stored, entries: stored.update(w=stored["w"].float()),
    "a bit behind the last": lambda stored, entries: stored["w"].bitwise_or_(torch.tensor([0, 0, 1])),
    "a code beyond the range": lambda stored, entries: stored["w"].bitwise_or_(torch.tensor([255, 255, 192])),
    "another shape": lambda stored, entries: entries.update(w=[-3, 3, [2, 5]]),
    "a shape of terabytes": lambda stored, entries: entries.update(w=[-3, 3, [1 << 40, 4]]),
    "a negative shape": lambda stored, entries: entries.update(w=[-3, 3, [-2, -3]]),
    "a text for a size": lambda stored, entries: entries.update(w=[-3, 3, ["2", 3]]),
    "a truth for a code": lambda stored, entries: entries.update(w=[False, 3, [2, 3]]),
    "a range upside down": lambda stored, entries: entries.update(w=[3, -3, [2, 3]]),
    "a range of bytes": lambda stored, entries: entries.update(w=[-127, 127, [2, 3]]),
    "a short entry": lambda stored, entries: entries.update(w=[-3]),
    "a number for an entry": lambda stored, entries: entries.update(w=3),
}


@pytest.mark.parametrize("spoilt", SPOILT)
def test_what_does_not_fit_together_is_one_clear_error(spoilt: str) -> None:
    stored, entries = narrow({"w": CODES}, {"w": (-3, 3)})
    SPOILT[spoilt](stored, entries)
    with pytest.raises(CheckpointError, match=r"damaged tensor of codes .*should be .*\[some.safetensors\]$"):
        widen(stored, {"narrow": entries}, FILE)


def test_a_card_whose_entry_is_no_mapping_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"narrow \[1\]"):
        widen({}, {"narrow": [1]}, FILE)
