"""Counts of a value's range in bounded memory, the same in whatever batches the values come.

Bins are as wide as a power of two and start at multiples of it. When the range outgrows them they get twice as wide and
neighbours become one: nothing is counted anew, so that no count is ever off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pruning_bench.errors import ModelError
from pruning_bench.quantization.affine import LARGEST_VALUE

MOST_BINS = 8192  # 32 for each step of 8 bits
NARROWEST = 2.0**-140
LARGEST_FACTOR = 2**62  # at which all bins have become one at either side of zero, or two


@dataclass(frozen=True)
class Histogram:
    """How often a value was in each of some bins; zero is always among them.

    Args:
        width: of a bin, a power of two; bin i holds [(first + i) * width, (first + i + 1) * width).
        first: multiple of the width at which the first bin starts.
        counts, sums, squares: float64 [bins]: how many values, what they add up to, and their squares.
        lowest, highest: the values at the ends, float32 [].
    """

    width: float
    first: int
    counts: Tensor
    sums: Tensor
    squares: Tensor
    lowest: Tensor
    highest: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Histogram:
        """Of one batch, not empty and finite; magnitudes beyond `LARGEST_VALUE` count as that.

        Example:
            >>> seen = Histogram.of(torch.tensor([0.0, 0.5, 1.0]))
            >>> float(seen.counts.sum()), float(seen.sums.sum())
            (3.0, 1.5)
        """
        values = x.detach().reshape(-1).double().clamp(-LARGEST_VALUE, LARGEST_VALUE)
        lowest, highest = values.amin(), values.amax()
        width = _width(min(float(lowest), 0.0), max(float(highest), 0.0))
        place = torch.floor(values / width).long()
        first = min(int(place.min()), 0)
        size = max(int(place.max()), 0) - first + 1
        counts, sums, squares = (
            torch.bincount(place - first, weights, minlength=size).double()
            for weights in (None, values, values.square())
        )
        return cls(width, first, counts, sums, squares, lowest.float(), highest.float())

    def merged(self, other: Histogram) -> Histogram:
        """Of the values of both."""
        lowest, highest = torch.minimum(self.lowest, other.lowest), torch.maximum(self.highest, other.highest)
        width = _width(min(float(lowest), 0.0), max(float(highest), 0.0))
        a, b = self.coarser(width), other.coarser(width)
        first = min(a.first, b.first)
        size = max(part.first + len(part.counts) for part in (a, b)) - first

        def total(name: str) -> Tensor:
            room = torch.zeros(size, dtype=torch.float64)
            for part in (a, b):
                room[part.first - first : part.first - first + len(part.counts)] += getattr(part, name)
            return room

        return Histogram(width, first, total("counts"), total("sums"), total("squares"), lowest, highest)

    def coarser(self, width: float) -> Histogram:
        """The same values in bins of a width that is a power of two times this one's."""
        factor = min(round(width / self.width), LARGEST_FACTOR)
        first = self.first // factor
        place = (torch.arange(len(self.counts)) + self.first) // factor - first
        size = int(place[-1]) + 1
        summed = {
            name: torch.zeros(size, dtype=torch.float64).index_add_(0, place, getattr(self, name))
            for name in ("counts", "sums", "squares")
        }
        return replace(self, width=width, first=first, **summed)


def check_batch(x: Tensor, who: str, where: str | None) -> None:
    """Raises `ModelError` when a batch is empty or holds a value that is not finite."""
    if x.numel() == 0:
        raise ModelError(who, f"an empty batch of shape {list(x.shape)}", "at least one example", where)
    if not torch.isfinite(x).all():
        bad = int((~torch.isfinite(x)).sum())
        raise ModelError(who, f"{bad} non-finite values in a calibration batch", "finite values", where)


def _width(least: float, most: float) -> float:
    """The narrowest power of two at which the bins from `least` to `most`, one more at the end, are not too many."""
    return max(2.0 ** math.ceil(math.log2((most - least) / (MOST_BINS - 2))) if most > least else 0.0, NARROWEST)
