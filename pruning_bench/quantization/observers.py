"""Observers: what range a tensor takes over the calibration batches, in memory that does not grow with them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from pruning_bench.errors import ModelError
from pruning_bench.quantization.affine import choose_affine
from pruning_bench.quantization.clipping import Choose, Range, mse_range, percentile_range
from pruning_bench.quantization.contract import Affine
from pruning_bench.quantization.histogram import Histogram, check_batch

ObserverName = Literal["minmax", "moving_average", "percentile", "mse"]
AVERAGING = 0.1  # weight of the newest batch


class Observer(Protocol):
    """Watches one value; itself a value: `update` returns a new one."""

    def update(self, x: Tensor, who: str = ..., where: str | None = None) -> Observer:
        """With what a batch shows; raises `ModelError` for an empty batch and for values that are not finite."""

    def ends(self, who: str = ...) -> Range:
        """The lowest and the highest value of what was seen; raises `ModelError` when nothing was."""

    def affine(self, bits: int, *, symmetric: bool, who: str = ...) -> Affine:
        """The affine for what was seen; raises `ModelError` when nothing was."""


def value_range(x: Tensor, axis: int | None = None) -> tuple[Tensor, Tensor]:
    """Lowest and highest value: shape [] over the whole tensor, or [channels] per index of dimension `axis`.

    Example:
        >>> value_range(torch.tensor([[1.0, -2.0], [3.0, 4.0]]), axis=0)
        (tensor([-2.,  3.]), tensor([1., 4.]))
    """
    if axis is None:
        return x.amin(), x.amax()
    others = [d for d in range(x.dim()) if d != axis % x.dim()]
    return (x.amin(others), x.amax(others)) if others else (x, x)


def weight_range(weight: Tensor, granularity: str, group: int | None = None) -> tuple[Tensor, Tensor]:
    """Lowest and highest value of a weight: [] per tensor, [channels] per channel, [channels, groups] per group.

    Args:
        granularity: "per_tensor", "per_channel" (dimension 0) or "per_group".
        group: columns per group, of the weight seen as [channels, columns]; the last group may be shorter.
    Example:
        >>> weight_range(torch.tensor([[1.0, 2.0, -3.0]]), "per_group", 2)
        (tensor([[ 1., -3.]]), tensor([[ 2., -3.]]))
    """
    if granularity == "per_tensor":
        return value_range(weight)
    if granularity == "per_channel":
        return value_range(weight, 0)
    assert group is not None
    rows = weight.flatten(1)
    full = rows.shape[1] // group * group
    parts = [rows[:, :full].reshape(len(rows), -1, group)] if full else []
    lowest, highest = [p.amin(2) for p in parts], [p.amax(2) for p in parts]
    if full < rows.shape[1]:
        lowest.append(rows[:, full:].amin(1, keepdim=True))
        highest.append(rows[:, full:].amax(1, keepdim=True))
    return torch.cat(lowest, 1), torch.cat(highest, 1)


@dataclass(frozen=True)
class MinMax:
    """Running minimum and maximum; a value: `update` returns a new one.

    Args:
        lowest, highest: shape [] or [channels]; None before the first batch.
        axis: the channel dimension, None for the whole tensor.
    """

    lowest: Tensor | None = None
    highest: Tensor | None = None
    axis: int | None = None

    def update(self, x: Tensor, who: str = "minmax", where: str | None = None) -> MinMax:
        """The range widened by a batch.

        Raises:
            ModelError: the batch is empty or holds a value that is not finite.
        Example:
            >>> seen = MinMax().update(torch.tensor([1.0, 2.0])).update(torch.tensor([-3.0]))
            >>> float(seen.lowest), float(seen.highest)
            (-3.0, 2.0)
        """
        check_batch(x, who, where)
        lowest, highest = value_range(x.detach(), self.axis)
        if self.lowest is None or self.highest is None:
            return MinMax(lowest, highest, self.axis)
        return MinMax(torch.minimum(self.lowest, lowest), torch.maximum(self.highest, highest), self.axis)

    def ends(self, who: str = "minmax") -> Range:
        """The range by now; raises `ModelError` when nothing was seen."""
        if self.lowest is None or self.highest is None:
            raise ModelError(who, "no calibration batches", "at least one")
        return self.lowest, self.highest

    def affine(self, bits: int, *, symmetric: bool, who: str = "minmax") -> Affine:
        """The affine that spans what was seen; raises `ModelError` when nothing was."""
        return choose_affine(*self.ends(who), bits, symmetric=symmetric, axis=self.axis, who=who)


@dataclass(frozen=True)
class MovingAverage(MinMax):
    """The ends of each batch's range, averaged: end <- end + AVERAGING * (the batch's - end), from the first batch on.

    Averages are float64: in float32 the difference of two ends may overflow, and a tenth of a tiny one vanish.

    Jacob et al., CVPR 2018, arXiv 1712.05877, section 3.1.
    """

    def update(self, x: Tensor, who: str = "moving_average", where: str | None = None) -> MovingAverage:
        """Moved towards the range of a batch."""
        new = MinMax(axis=self.axis).update(x, who, where)
        assert new.lowest is not None
        assert new.highest is not None
        if self.lowest is None or self.highest is None:
            return replace(self, lowest=new.lowest, highest=new.highest)
        lowest, highest = (
            torch.lerp(old.double(), end.double(), AVERAGING)
            for old, end in ((self.lowest, new.lowest), (self.highest, new.highest))
        )
        return replace(self, lowest=lowest, highest=highest)


@dataclass(frozen=True)
class Clipping:
    """A histogram of all batches, and one of the rules of `quantization.clipping` that makes a range of it."""

    rule: Callable[[Histogram, Choose], Range]
    seen: Histogram | None = None

    def update(self, x: Tensor, who: str = "clipping", where: str | None = None) -> Clipping:
        """With the values of a batch."""
        check_batch(x, who, where)
        new = Histogram.of(x)
        return replace(self, seen=self.seen.merged(new) if self.seen else new)

    def ends(self, who: str = "clipping") -> Range:
        """The whole range, outliers too."""
        seen = self._histogram(who)
        return seen.lowest, seen.highest

    def affine(self, bits: int, *, symmetric: bool, who: str = "clipping") -> Affine:
        """The affine of the range that the rule finds best for these bits."""
        choose = functools.partial(choose_affine, bits=bits, symmetric=symmetric, who=who)
        return choose(*self.rule(self._histogram(who), choose))

    def _histogram(self, who: str) -> Histogram:
        if self.seen is None:
            raise ModelError(who, "no calibration batches", "at least one")
        return self.seen


OBSERVERS: Mapping[ObserverName, Observer] = {
    "minmax": MinMax(),
    "moving_average": MovingAverage(),
    "percentile": Clipping(percentile_range),
    "mse": Clipping(mse_range),
}
