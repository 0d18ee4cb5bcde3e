"""Packed tensors come back bit by bit, are never larger, and what does not fit together is one clear error."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor

from pruning_bench.errors import CheckpointError
from pruning_bench.models.packing import pack, unpack

FILE = Path("some.safetensors")
Pack = Callable[[dict[str, Tensor]], tuple[dict[str, Tensor], dict[str, list[int]]]]
TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int8)


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def loses_nothing(tensor: Tensor, packing: Pack = pack) -> None:
    stored, shapes = packing({"w": tensor})
    back = unpack(stored, {"sparse": shapes}, FILE)["w"]
    same = (back.dtype, back.shape, bits(back)) == (tensor.dtype, tensor.shape, bits(tensor))
    assert same, f"{tensor} comes back as {back}"
    size, dense = len(save(stored)), len(save({"w": tensor}))
    assert size <= dense, f"{size} bytes packed, {dense} as it is"
    small = (
        tensor.is_floating_point()
        and tensor.dim() > 1
        and tensor.numel() > 2000
        and int(tensor.count_nonzero()) < tensor.numel() / 2
    )
    assert bool(shapes) or not small, f"{tensor.numel() - int(tensor.count_nonzero())} zeros are stored one by one"


@st.composite
def sparse_tensors(draw: st.DrawFn) -> Tensor:
    shape = draw(st.sampled_from([(), (0,), (3,), (7, 9), (33, 65), (50, 10, 3, 3), (1, 4000)]))
    density, seed = draw(st.sampled_from([0.0, 0.1, 0.5, 0.97, 1.0])), draw(st.integers(0, 99))
    generator = torch.Generator().manual_seed(seed)
    values = 10 * torch.randn(shape, generator=generator)
    odd = torch.randint(0, 20, shape, generator=generator)
    values = values.masked_fill(odd == 0, -0.0).masked_fill(odd == 1, float("nan")).masked_fill(odd == 2, float("inf"))
    values = torch.where(torch.rand(shape, generator=generator) < density, values, torch.zeros(()))
    dtype = draw(st.sampled_from(TYPES))
    return values.to(dtype) if dtype.is_floating_point else values.nan_to_num(0, 1, 1).to(dtype)


@settings(max_examples=60, deadline=None)
@given(sparse_tensors())
def test_nothing_is_lost_and_no_file_grows(tensor: Tensor) -> None:
    loses_nothing(tensor)


def takes_minus_zero_for_zero(tensors: dict[str, Tensor]) -> Any:
    return pack({name: tensor + 0.0 for name, tensor in tensors.items()})


def never_packs(tensors: dict[str, Tensor]) -> Any:
    return tensors, {}


def in_another_order(tensors: dict[str, Tensor]) -> Any:
    stored, shapes = pack(tensors)
    return {name: t.flip(0) if name.endswith(":values") else t for name, t in stored.items()}, shapes


def always_packs(tensors: dict[str, Tensor]) -> Any:
    big = {name: torch.cat([tensor.reshape(-1), torch.zeros(4000)])[None] for name, tensor in tensors.items()}
    stored, _ = pack(big)
    count = tensors["w"].numel()
    return {"w:bits": stored["w:bits"][: -(-count // 8)].clone(), "w:values": stored["w:values"]}, {
        "w": list(tensors["w"].shape)
    }


SPARSE = torch.where(torch.arange(4000) % 10 == 0, torch.arange(4000.0), 0.0).view(40, 100)
SPARSE[0, 5] = -0.0


@pytest.mark.parametrize(
    ("mutant", "tensor"),
    [
        (takes_minus_zero_for_zero, SPARSE),
        (in_another_order, SPARSE),
        (never_packs, SPARSE),
        (always_packs, torch.ones(80, 10)),
    ],
)
def test_the_law_of_packing_rejects(mutant: Pack, tensor: Tensor) -> None:
    loses_nothing(tensor)
    with pytest.raises(AssertionError, match=r"comes back as|bytes packed|one by one"):
        loses_nothing(tensor, mutant)


SPOILT: dict[str, Any] = {
    "no bits": lambda stored, shapes: stored.pop("w:bits"),
    "no values": lambda stored, shapes: stored.pop("w:values"),
    "dense as well": lambda stored, shapes: stored.update(w=SPARSE),
    "one value less": lambda stored, shapes: stored.update({"w:values": stored["w:values"][1:]}),
    "values in rows": lambda stored, shapes: stored.update({"w:values": stored["w:values"][None]}),
    "a byte less": lambda stored, shapes: stored.update({"w:bits": stored["w:bits"][1:]}),
    "bits in rows": lambda stored, shapes: stored.update({"w:bits": stored["w:bits"][None]}),
    "bits as floats": lambda stored, shapes: stored.update({"w:bits": stored["w:bits"].float()}),
    "a flipped bit": lambda stored, shapes: stored["w:bits"].bitwise_xor_(1),
    "other shape": lambda stored, shapes: shapes.update(w=[40, 101]),
    "a shape of terabytes": lambda stored, shapes: shapes.update(w=[1 << 40, 4]),
    "a text for a size": lambda stored, shapes: shapes.update(w=["40", 100]),
    "a truth for a size": lambda stored, shapes: shapes.update(w=[True, 4000]),
    "no list": lambda stored, shapes: shapes.update(w=4000),
    "unknown name": lambda stored, shapes: shapes.update(v=[4]),
}


@pytest.mark.parametrize("spoilt", SPOILT)
def test_what_does_not_fit_together_is_one_clear_error(spoilt: str) -> None:
    stored, shapes = pack({"w": SPARSE})
    SPOILT[spoilt](stored, shapes)
    with pytest.raises(CheckpointError, match=r"damaged sparse tensor .*should be .*\[some.safetensors\]$"):
        unpack(stored, {"sparse": shapes}, FILE)


def test_a_card_that_lists_no_shapes_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"sparse \[1\]"):
        unpack({}, {"sparse": [1]}, FILE)


def test_a_name_that_packing_needs_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"^save: a tensor a:bits beside a, should be names that packing"):
        pack({"a": torch.zeros(40, 20), "a:bits": torch.ones(3)})


def test_codes_pack_their_zeros_where_that_pays_at_their_width() -> None:
    codes = (torch.arange(4000) % 4 == 0).to(torch.int8).view(40, 100)  # three of four are zero
    stored, shapes = pack({"w": codes}, {"w": 8})
    assert {name: len(value) for name, value in stored.items()} == {"w:bits": 500, "w:values": 1000}, f"{shapes}"
    assert torch.equal(unpack(stored, {"sparse": shapes}, FILE)["w"], codes), "other codes come back"
    assert pack({"w": codes}, {"w": 1})[1] == {}, "a bit for each costs as much as the codes themselves"
    assert pack({"w": codes})[1] == {}, "whole numbers that are no codes stay as they are"
