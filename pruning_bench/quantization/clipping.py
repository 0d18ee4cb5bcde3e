"""Ranges narrower than what was seen: what is cut off at the ends buys finer steps for everything else.

Each rule takes a `Histogram` and returns the lowest and highest value of a range inside what was seen; `choose_affine`
widens it to zero.

* percentile: the share `PERCENTILE` of the values lies inside, what is outside in equal parts at both ends.
  Wu et al., Integer Quantization for Deep Learning Inference: Principles and Empirical Evaluation, arXiv 2004.09602.
* mse: the sum of (x - x')^2 over everything seen is smallest, of the ranges tried; never larger than that of the whole
  range. Banner et al., Post training 4-bit quantization of convolutional networks, NeurIPS 2019, arXiv 1810.05723.
  This is what others call a histogram observer. The divergence of TensorRT's calibration was tried and left out: it
  cuts far too much off where a ReLU has put half of the values at zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from pruning_bench.quantization.affine import SMALLEST_SCALE, dequantize, fake_quantize, quantize
from pruning_bench.quantization.contract import Affine
from pruning_bench.quantization.histogram import Histogram

PERCENTILE = 0.9999
SHARES = tuple(0.95**power for power in range(1, 60))  # of the range, tried by the search
SIDES = ((1, 1), (1, 0), (0, 1))  # both ends move, or one does
Range = tuple[Tensor, Tensor]
Choose = Callable[[Tensor, Tensor], Affine]


def percentile_range(seen: Histogram, choose: Choose) -> Range:
    """By the rule `percentile` of the module's text."""
    upto = seen.counts.cumsum(0)
    outside = float(upto[-1]) * (1 - PERCENTILE) / 2
    low = int((upto <= outside).sum())  # the first bin that reaches into the share
    high = int((upto < float(upto[-1]) - outside).sum()) + 1
    ends = torch.tensor([(seen.first + low) * seen.width, (seen.first + high) * seen.width])
    return torch.maximum(ends[0], seen.lowest).clamp(max=0), torch.minimum(ends[1], seen.highest).clamp(min=0)


def mse_range(seen: Histogram, choose: Choose) -> Range:
    """By the rule `mse` of the module's text.

    The error of a range is known but for the bins that two codes share. A narrower one is taken only where the most
    that its error can be is below the least that the whole range's can.
    """
    whole = seen.lowest, seen.highest
    best, error = whole, squared_error(seen, choose(*whole))[0]
    for tried in _narrower(seen):
        most = squared_error(seen, choose(*tried))[1]
        if most < error:
            best, error = tried, most
    return best


def squared_error(seen: Histogram, affine: Affine) -> tuple[float, float]:
    """The least and the most that the sum of (x - x')^2 over what was seen can be."""
    used = seen.counts > 0
    counts, sums, squares = seen.counts[used], seen.sums[used], seen.squares[used]
    value = dequantize(quantize((sums / counts).float(), affine), affine).double()  # as if all had their mean's code
    most = float((squares - 2 * value * sums + value.square() * counts).clamp(min=0).sum())
    starts = (torch.arange(len(used))[used] + seen.first).double() * seen.width
    ends = [quantize(end.clamp(-3e38, 3e38).float(), affine) for end in (starts, starts + seen.width)]
    split = ends[0] != ends[1]
    step = float(affine.scale)
    gain = 2 * counts[split] * (step * (ends[1] - ends[0])[split]) * seen.width  # of other codes, at most
    return max(most - float(gain.sum()), 0.0), most


def _narrower(seen: Histogram) -> Iterator[Range]:
    """Ranges whose ends, together or one alone, are a share of those seen."""
    low, high = seen.lowest.clamp(max=0), seen.highest.clamp(min=0)
    sides = SIDES if float(low) < 0 < float(high) else SIDES[:1]
    for share in SHARES:
        for moves_low, moves_high in sides:
            yield low * (share if moves_low else 1), high * (share if moves_high else 1)


def clip_weight(weight: Tensor, affine: Affine) -> Affine:
    """The affine with each scale at the share of itself, at most 1, at which the squared error of its weights is least.

    Args:
        weight: float, [channels, ...].
        affine: with scales that span the weight; see `Affine` for their shapes. Its zero points stay.
    """
    best, scale = _errors(weight, affine), affine.scale
    for share in SHARES:
        tried = replace(affine, scale=(affine.scale * share).clamp(min=SMALLEST_SCALE))
        error = _errors(weight, tried)
        scale = torch.where(error < best, tried.scale, scale)
        best = torch.minimum(error, best)
    return replace(affine, scale=scale)


def _errors(weight: Tensor, affine: Affine) -> Tensor:
    """The squared error of the weights of each scale; float64 of the scale's shape."""
    error = (fake_quantize(weight, affine).double() - weight.double()).square()
    if affine.axis is None:
        return error.sum()
    rows = error.flatten(1)
    if affine.group is None:
        return rows.sum(1)
    whole = nn.functional.pad(rows, (0, -rows.shape[1] % affine.group))
    return whole.reshape(*affine.scale.shape, affine.group).sum(2)
