"""Scales, codes and values equal those of other implementations: torchao's primitives and onnxruntime's nodes."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pruning_bench.quantization.affine import choose_affine, dequantize, quantize
from pruning_bench.quantization.contract import Affine
from pruning_bench.quantization.observers import weight_range

FEW = settings(max_examples=40, deadline=None)
VALUES = st.one_of(st.floats(-4, 4, width=32), st.floats(-1e6, 1e6, width=32), st.sampled_from([0.0, 1.0, -0.5]))


@st.composite
def weights(draw: st.DrawFn) -> tuple[Tensor, int, Affine]:
    """A weight, a number of columns that divides its own, and the symmetric affine of these groups."""
    rows, group, parts = (
        draw(st.integers(low, low + 2), label=name) for name, low in (("r", 1), ("g", 2), ("parts", 1))
    )
    count = rows * group * parts
    x = torch.tensor(draw(st.lists(VALUES, min_size=count, max_size=count), label="values")).view(rows, group * parts)
    bits = draw(st.integers(2, 8), label="bits")
    ends = weight_range(x, "per_group", group)
    return x, group, choose_affine(*ends, bits, symmetric=True, axis=0, group=group)


def check_equals_torchao(x: Tensor, group: int, affine: Affine, codes: Callable[..., Tensor] = quantize) -> None:
    """Scales to the last bit but one, codes and values exactly, those of torchao's primitives on blocks [1, group]."""
    torchao = pytest.importorskip("torchao.quantization.quant_primitives")
    block, kind, ends = (1, group), torch.int8, (affine.low, affine.high)
    scale, zero = torchao.choose_qparams_affine(
        x, torchao.MappingType.SYMMETRIC, block, kind, *ends, eps=2.0**-60, keepdim=True
    )
    empty = affine.scale == 1 / affine.high  # of groups of zeros: any scale does
    off = ((affine.scale - scale).abs() / affine.scale)[~empty]
    assert not off.numel() or float(off.max()) < 2.0**-22, f"scales {affine.scale}, should be {scale}"
    assert not zero.any(), f"zero points {zero}"
    own = codes(x, affine)
    other = torchao.quantize_affine(x, block, affine.scale, affine.zero_point, kind, *ends)
    assert torch.equal(own, other.int()), f"codes {own}, should be {other}"
    values = torchao.dequantize_affine(other, block, affine.scale, affine.zero_point, kind, *ends)
    assert torch.equal(dequantize(own, affine), values), f"values {dequantize(own, affine)}, should be {values}"


@given(weights())
@FEW
def test_groups_are_torchaos(drawn: tuple[Tensor, int, Affine]) -> None:
    check_equals_torchao(*drawn)


@functools.cache
def onnx_session(operator: str, signed: bool, axis: int | None, block: int | None) -> Any:
    """A session of one QuantizeLinear or DequantizeLinear of a matrix."""
    ort, onnx = pytest.importorskip("onnxruntime"), pytest.importorskip("onnx")
    helper, kinds = onnx.helper, onnx.TensorProto
    whole = kinds.INT8 if signed else kinds.UINT8
    gives = whole if operator == "QuantizeLinear" else kinds.FLOAT
    takes = kinds.FLOAT if operator == "QuantizeLinear" else whole
    rank = 0 if axis is None else 2 if block else 1
    inputs = [
        helper.make_tensor_value_info(name, kind, [None] * size)
        for name, kind, size in (("x", takes, 2), ("scale", kinds.FLOAT, rank), ("zero", whole, rank))
    ]
    attributes = {**({} if axis is None else {"axis": axis}), **({"block_size": block} if block else {})}
    node = helper.make_node(operator, ["x", "scale", "zero"], ["y"], **attributes)
    graph = helper.make_graph([node], "one", inputs, [helper.make_tensor_value_info("y", gives, [None, None])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def run(operator: str, x: Tensor, affine: Affine) -> Tensor:
    axis = None if affine.axis is None else 1 if affine.group else 0
    session = onnx_session(operator, affine.low < 0, axis, affine.group)
    kind = np.int8 if affine.low < 0 else np.uint8
    feed = x.numpy() if operator == "QuantizeLinear" else x.numpy().astype(kind)
    out = session.run(None, {"x": feed, "scale": affine.scale.numpy(), "zero": affine.zero_point.numpy().astype(kind)})
    return torch.from_numpy(out[0])


@st.composite
def matrices(draw: st.DrawFn) -> tuple[Tensor, Affine]:
    """A matrix and an affine of 8 bits, per tensor, row or block, for what a node's type holds."""
    x, group, _ = draw(weights())
    kind, signed = (
        draw(st.sampled_from(["per_tensor", "per_channel", "per_group"])),
        draw(st.booleans(), label="signed"),
    )
    options = {"axis": None if kind == "per_tensor" else 0, "group": group if kind == "per_group" else None}
    return x, choose_affine(*weight_range(x, kind, group), 8, symmetric=signed, **options)  # type: ignore[arg-type]


def check_equals_onnx(x: Tensor, affine: Affine, values: Callable[..., Tensor] = dequantize) -> None:
    """Codes equal QuantizeLinear's, next to a tie to one step, as it divides; values DequantizeLinear's, exactly."""
    own = quantize(x, affine)
    off = (own - run("QuantizeLinear", x, affine).int().clamp(affine.low, affine.high)).abs()
    scale, _ = (part.double() for part in (affine.scale, affine.zero_point))
    if affine.axis is not None:
        scale = scale.repeat_interleave(affine.group, 1)[:, : x.shape[1]] if affine.group else scale.view(-1, 1)
    steps = x.double() / scale
    at_a_tie = (steps - steps.floor() - 0.5).abs() < 2.0**-14
    assert int(off.max()) <= 1, f"codes are off by {off.max()}"
    assert not off[~at_a_tie].any(), f"codes of {x[(off > 0) & ~at_a_tie]} differ"
    found, expected = values(own, affine), run("DequantizeLinear", own, affine)
    assert torch.equal(found, expected), f"values {found}, should be {expected}"


@given(matrices())
@FEW
def test_codes_and_values_are_onnxs(drawn: tuple[Tensor, Affine]) -> None:
    check_equals_onnx(*drawn)


def test_the_references_reject_mutants() -> None:
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    affine = choose_affine(*weight_range(x, "per_group", 4), 4, symmetric=True, axis=0, group=4)
    rounded_down = lambda x, affine: torch.floor(x / affine.scale.repeat_interleave(4, 1)).int()  # noqa: E731
    check_equals_torchao(x, 4, affine)
    with pytest.raises(AssertionError, match="codes"):
        check_equals_torchao(x, 4, affine, rounded_down)
    wide = choose_affine(*weight_range(x, "per_group", 4), 8, symmetric=False, axis=0, group=4)
    check_equals_onnx(x, wide)
    in_halves = lambda codes, affine: dequantize(codes, affine) / 2  # noqa: E731
    with pytest.raises(AssertionError, match="values"):
        check_equals_onnx(x, wide, in_halves)
