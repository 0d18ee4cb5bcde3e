"""What every rounding to 8-bit floats must hold; the numbers of a format come from its definition, not from a cast.

A check takes what it tests as an argument, raises `AssertionError` with the values when it does not hold, and returns
nothing.

    code = (-1)^sign * 2^(max(E, 1) - bias) * ([E > 0] + fraction / 2^m)

Micikevicius et al., FP8 Formats for Deep Learning, arXiv 2209.05433.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from pruning_bench.quantization.affine import LARGEST_VALUE, SMALLEST_SCALE
from pruning_bench.quantization.contract import Float8

Quantize: TypeAlias = Callable[[Tensor, Float8], Tensor]
Choose: TypeAlias = Callable[[Tensor, Tensor, str], Float8]

FRACTION_BITS: Mapping[str, int] = {"e4m3": 3, "e5m2": 2}
BIAS: Mapping[str, int] = {"e4m3": 7, "e5m2": 15}
FINITE: Mapping[str, int] = {"e4m3": 127, "e5m2": 124}  # how many finite codes there are without a sign
NOISE = 2.0**-20  # of a value: float32 rounding of x / scale and code * scale, with room


def codes_of(format: str) -> Tensor:
    """The finite codes without a sign, ascending; float64, the index is the code's bits.

    Example:
        >>> codes_of("e4m3")[[0, 1, 8, -1]].tolist(), codes_of("e5m2")[[1, 4, -1]].tolist()
        ([0.0, 0.001953125, 0.015625, 448.0], [1.52587890625e-05, 6.103515625e-05, 57344.0])
    """
    bits, fractions = torch.arange(FINITE[format]), 2 ** FRACTION_BITS[format]
    exponent, fraction = bits // fractions, bits % fractions
    sizes = torch.exp2(exponent.clamp(min=1).double() - BIAS[format])
    table: Tensor = sizes * ((exponent > 0) + fraction.double() / fractions)
    return table


def check_nearest(fake_quantize: Quantize, x: Tensor, coding: Float8) -> None:
    """The value of the code that is nearest to x / scale (float32), of two the even one; bit for bit."""
    table, scale = codes_of(coding.format), _spread(coding, x)
    steps = (x.float() / scale).double()
    borders = (table[1:] + table[:-1]) / 2
    index = torch.searchsorted(borders, steps.abs().contiguous())
    tie = (borders[index.clamp(max=len(borders) - 1)] == steps.abs()) & (index % 2 == 1)
    expected = (table[index + tie.long()] * steps.sign()).float() * scale
    found = fake_quantize(x, coding)
    _require(found == expected, f"{coding.format} of", x, found, expected)


def check_relative_error(fake_quantize: Quantize, x: Tensor, coding: Float8) -> None:
    """|x' - x| <= 2^-(m+1) |x| with m bits of fraction, half of the smallest code near zero; x' ends where codes do."""
    table, scale = codes_of(coding.format), _spread(coding, x).double()
    fractions, limit = 2 ** FRACTION_BITS[coding.format], float(table[-1]) * scale
    inside = x.double().clamp(-limit, limit)
    bound = torch.maximum(inside.abs() / (2 * fractions), float(table[1]) / 2 * scale) + NOISE * inside.abs()
    found = fake_quantize(x, coding)
    _require((found.double() - inside).abs() <= bound, f"{coding.format} of", x, found, inside, "about ")


def check_monotone(fake_quantize: Quantize, x: Tensor, coding: Float8) -> None:
    """Of two values with one scale the larger one never becomes the smaller."""
    found = fake_quantize(x, coding)
    rows = [x.reshape(1, -1), found.reshape(1, -1)]
    if coding.axis is not None:
        rows = [value.movedim(coding.axis, 0).flatten(1) for value in (x, found)]
    order = rows[0].argsort(1)
    before, after = rows[0].gather(1, order), rows[1].gather(1, order)
    _require(after[:, 1:] >= after[:, :-1], "above", before[:, :-1], after[:, 1:], after[:, :-1], "at least ")


def check_saturates(fake_quantize: Quantize, x: Tensor, coding: Float8) -> None:
    """Finite values become finite ones, at most the largest code's."""
    limit = float(codes_of(coding.format)[-1]) * _spread(coding, x).double().expand(x.shape)
    found = fake_quantize(x, coding)
    _require(found.double().abs() <= limit * (1 + NOISE), f"{coding.format} of", x, found, limit, "within ")


def check_codes(quantize: Quantize, x: Tensor, coding: Float8) -> None:
    """Codes take one byte each in the format's own type, none is infinite or no number, and zero has a single one."""
    codes = quantize(x, coding)
    assert codes.dtype == coding.dtype, f"codes have dtype {codes.dtype}, should be {coding.dtype}"
    assert codes.shape == x.shape, f"codes have shape {list(codes.shape)}, should be {list(x.shape)}"
    bits = codes.contiguous().view(torch.uint8).int()
    strange = int((bits & 0x7F >= FINITE[coding.format]).sum())
    assert not strange, f"{strange} codes are infinite or no number, should be finite"
    negative = int((bits == 0x80).sum())
    assert not negative, f"{negative} codes are -0, should be 0"


def check_scales(choose: Choose, lowest: Tensor, highest: Tensor, format: str) -> None:
    """Scales are positive and finite, and the largest code stands for the largest magnitude observed."""
    coding = choose(lowest, highest, format)
    about = f"range {float(lowest.min()):.6g}..{float(highest.max()):.6g} in {format}"
    scale = coding.scale.double()
    good = torch.isfinite(coding.scale) & (scale > 0) & torch.isfinite(1 / coding.scale)
    assert bool(good.all()), f"{about}: scale {coding.scale.tolist()}, should be positive and finite"
    reached = scale * float(codes_of(format)[-1])
    assert bool(torch.isfinite(reached.float()).all()), (
        f"{about}: the grid ends at {reached.tolist()}, should be finite"
    )
    most = torch.maximum(lowest.double().abs(), highest.double().abs())
    short = most.clamp(max=LARGEST_VALUE) > reached * (1 + NOISE)
    assert not short.any(), f"{about}: the grid ends at {reached.tolist()}, should reach {most.tolist()}"
    wide = (most > 0) & (scale > SMALLEST_SCALE) & (reached > most * (1 + NOISE))
    assert not wide.any(), f"{about}: the grid ends at {reached.tolist()}, should end at {most.tolist()}"


LAWS: tuple[Callable[[Quantize, Tensor, Float8], None], ...] = (
    check_nearest,
    check_relative_error,
    check_monotone,
    check_saturates,
)


def _spread(coding: Float8, x: Tensor) -> Tensor:
    sizes = [1] * x.dim()
    if coding.axis is not None:
        sizes[coding.axis] = -1
    return coding.scale.reshape(sizes)


def _require(holds: Tensor, of: str, x: Tensor, found: Tensor, expected: Tensor, how: str = "") -> None:
    """All hold, or an error with the first values that do not."""
    if not bool(holds.all()):
        first = int((~holds).flatten().float().argmax())
        value, wrong, right = (float(part.flatten()[first]) for part in (x, found, expected))
        raise AssertionError(f"{of} {value:.9g}: {wrong:.9g}, should be {how}{right:.9g}")
