"""The core: real numbers <-> codes, integers or 8-bit floats. Pure functions; the one place that rounds.

The arithmetic of integers is that of `torch.fake_quantize_per_tensor_affine` and `_per_channel_affine`, bit for bit:

    code = clamp(round(x * (1 / scale)) + zero_point, low, high)        round half to even, float32
    x'   = (code - zero_point) * scale

Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, CVPR 2018,
arXiv 1712.05877.

That of 8-bit floats, e4m3 and e5m2, divides and saturates; zero has one code, and no code is infinite or no number:

    code = float8(clamp(x / scale, -largest, largest))                  round half to even, float32 before
    x'   = code * scale                                                 float32

Micikevicius et al., FP8 Formats for Deep Learning, arXiv 2209.05433.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from pruning_bench.errors import LevelError, ModelError, PlanError
from pruning_bench.quantization.contract import FLOATS8, Affine, Coding, Float8

WHO = "quantize"
SMALLEST_SCALE = 2.0**-60  # the product of two scales and the reciprocal of one stay normal float32 numbers
LARGEST_VALUE = 2.0**126  # larger magnitudes saturate; every code times its scale stays finite


def code_range(bits: int, symmetric: bool) -> tuple[int, int]:
    """Lowest and highest code: unsigned when asymmetric; symmetric is signed and narrow, so that -x has a code.

    Args:
        bits: 2 to 8.
    Raises:
        LevelError: other bits.
    Example:
        >>> code_range(8, symmetric=False), code_range(8, symmetric=True)
        ((0, 255), (-127, 127))
    """
    if not 2 <= bits <= 8:
        raise LevelError(WHO, f"{bits} bits", "2 to 8 bits")
    highest = 2 ** (bits - 1) - 1
    return (-highest, highest) if symmetric else (0, 2**bits - 1)


def choose_affine(
    lowest: Tensor,
    highest: Tensor,
    bits: int,
    *,
    symmetric: bool,
    axis: int | None = None,
    group: int | None = None,
    who: str = WHO,
) -> Affine:
    """The affine that spans the observed range, widened to hold zero, which gets a code of its own.

    asymmetric: scale = (max - min) / (high - low), zero_point = low - round(min / scale)
    symmetric:  scale = max(|min|, |max|) / high,   zero_point = 0

    A range of zero gets the scale of the range [0, 1]; others never go below `SMALLEST_SCALE`.

    Args:
        lowest, highest: observed values; any float dtype, shape [], [channels] or [channels, groups].
        bits: 2 to 8.
        axis: the channel dimension when the shape is not [].
        group: columns that share a scale when the shape is [channels, groups].
        who: who to name in an error.
    Raises:
        ModelError: a bound is not finite, or lowest > highest.
    Example:
        >>> affine = choose_affine(torch.tensor(-1.0), torch.tensor(1.55), 8, symmetric=False)
        >>> round(float(affine.scale), 6), int(affine.zero_point)
        (0.01, 100)
    """
    _check_range(lowest, highest, who)
    low, high = code_range(bits, symmetric)
    least = lowest.double().clamp(-LARGEST_VALUE, 0.0)
    most = highest.double().clamp(0.0, LARGEST_VALUE)
    span, steps = (torch.maximum(-least, most), high) if symmetric else (most - least, high - low)
    span = torch.where(span == 0, 1.0, span)
    scale = (span / steps).clamp(min=SMALLEST_SCALE).float()
    zero_point = torch.zeros_like(scale) if symmetric else (low - torch.round(least / scale)).clamp(low, high)
    return Affine(scale, zero_point.to(torch.int32), low, high, axis, group)


def choose_float8(lowest: Tensor, highest: Tensor, format: str, *, axis: int | None = None, who: str = WHO) -> Float8:
    """The scale at which the largest magnitude observed becomes the largest finite number of the format.

    scale = max(|min|, |max|) / largest

    A range of zero gets the scale of the range [-1, 1]; others never go below `SMALLEST_SCALE`.

    Args:
        lowest, highest: observed values; any float dtype, shape [] or [channels].
        format: "e4m3" (448) or "e5m2" (57344).
        axis: the channel dimension when the shape is not [].
        who: who to name in an error.
    Raises:
        LevelError: another format.
        ModelError: a bound is not finite, or lowest > highest.
    Example:
        >>> choose_float8(torch.tensor(-896.0), torch.tensor(3.0), "e4m3").scale
        tensor(2.)
    """
    if format not in FLOATS8:
        raise LevelError(who, f"format {format!r}", " or ".join(FLOATS8))
    _check_range(lowest, highest, who)
    span = torch.maximum(lowest.double().abs(), highest.double().abs()).clamp(max=LARGEST_VALUE)
    span = torch.where(span == 0, 1.0, span)
    scale = (span / torch.finfo(FLOATS8[format]).max).clamp(min=SMALLEST_SCALE).float()
    return Float8(scale, format, axis)


def quantize(x: Tensor, coding: Coding) -> Tensor:
    """Codes of `x`, of the same shape; finite values outside the range saturate.

    Returns:
        Of an affine int32 in [low, high], of a `Float8` numbers of its type.
    Example:
        >>> affine = choose_affine(torch.tensor(0.0), torch.tensor(2.55), 8, symmetric=False)
        >>> quantize(torch.tensor([-1.0, 0.0, 1.0, 9.0]), affine)
        tensor([  0,   0, 100, 255], dtype=torch.int32)
        >>> quantize(torch.tensor([0.0, 1.06, 1.07, 999.0]), Float8(torch.tensor(1.0), "e4m3")).float()
        tensor([  0.0000,   1.0000,   1.1250, 448.0000])
    """
    if isinstance(coding, Float8):
        steps = (x.float() / _wide(coding.scale, coding.axis, x.shape)).clamp(-coding.largest, coding.largest)
        return steps.to(coding.dtype).float().add(0.0).to(coding.dtype)  # -0 + 0 = 0
    scale, zero_point = spread(coding, x.shape)
    return (torch.round(x * (1 / scale)) + zero_point).clamp(coding.low, coding.high).to(torch.int32)


def dequantize(codes: Tensor, coding: Coding) -> Tensor:
    """float32 values of codes: (code - zero_point) * scale of integers of any dtype, code * scale of 8-bit floats."""
    if isinstance(coding, Float8):
        return codes.float() * _wide(coding.scale, coding.axis, codes.shape)
    scale, zero_point = spread(coding, codes.shape)
    return (codes.to(torch.int32) - zero_point).float() * scale


def fake_quantize(x: Tensor, coding: Coding) -> Tensor:
    """`dequantize(quantize(x))`: float32, the value that stands for `x` in the quantized model."""
    return dequantize(quantize(x, coding), coding)


def affine_of(coding: Coding, where: str, who: str = WHO) -> Affine:
    """The coding of something that is to run on integers; raises `PlanError` for 8-bit floats.

    Args:
        where: the layer or point, for the error.
        who: who to name in it.
    """
    if isinstance(coding, Float8):
        found = f"8-bit floats ({coding.format})"
        raise PlanError(who, found, "integers (w8a8); floats can only be simulated, by the runtime eager", where)
    return coding


def spread(affine: Affine, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Scale and zero point shaped to broadcast against a tensor of `shape`.

    Example:
        >>> groups = choose_affine(torch.zeros(2, 2), torch.ones(2, 2), 4, symmetric=False, axis=0, group=3)
        >>> [tuple(part.shape) for part in spread(groups, (2, 5))]
        [(2, 5), (2, 5)]
    """
    if affine.axis is None:
        return affine.scale, affine.zero_point
    if affine.group is None:
        return _wide(affine.scale, affine.axis, shape), _wide(affine.zero_point, affine.axis, shape)
    columns = prod(shape[1:])
    scale, zero_point = (
        part.repeat_interleave(affine.group, 1)[:, :columns].reshape(tuple(shape))
        for part in (affine.scale, affine.zero_point)
    )
    return scale, zero_point


def _wide(part: Tensor, axis: int | None, shape: Sequence[int]) -> Tensor:
    """A part of a coding without groups, to broadcast against `shape`."""
    if axis is None:
        return part
    sizes = [1] * len(shape)
    sizes[axis] = -1
    return part.view(sizes)


def _check_range(lowest: Tensor, highest: Tensor, who: str) -> None:
    for name, bound in (("lowest", lowest), ("highest", highest)):
        if not torch.isfinite(bound).all():
            raise ModelError(who, f"{name} value {_first(bound, ~torch.isfinite(bound))}", "finite values")
    if (lowest > highest).any():
        wrong = lowest > highest
        raise ModelError(who, f"lowest {_first(lowest, wrong)} > highest {_first(highest, wrong)}", "lowest <= highest")


def _first(values: Tensor, where: Tensor) -> float:
    return float(values[where].flatten()[0])
