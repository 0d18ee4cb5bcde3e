"""Average pools as every runtime computes them alike: means of what is inside the image, times a factor for each place.

With padding on codes whose zero is not 0, windows that hang over the edge (`ceil_mode`) or a divisor of its own, the
runtimes' kernels and torch's exporter differ from torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

AVERAGES = {"aten.avg_pool1d": 1, "aten.avg_pool2d": 2, "aten.avg_pool3d": 3}  # with their dimensions
_POOLS = (nn.functional.avg_pool1d, nn.functional.avg_pool2d, nn.functional.avg_pool3d)


@dataclass(frozen=True)
class Pooling:
    """What an average pool is given.

    Args:
        sizes: of the image, one for each dimension; so are kernel, stride and padding.
        overhang: windows may begin inside and end behind the padding (`ceil_mode`).
        counts_padding: the padding counts among what is averaged.
        divisor: what every sum is divided by instead of the count.
    """

    sizes: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    overhang: bool = False
    counts_padding: bool = True
    divisor: int | None = None

    @classmethod
    def of(cls, sizes: Sequence[int], given: Mapping[str, Any]) -> Pooling:
        """By the arguments of the operator."""

        def each(value: Any) -> tuple[int, ...]:
            values = (value,) if isinstance(value, int) else tuple(value)
            return values * len(sizes) if len(values) == 1 else values

        kernel = each(given["kernel_size"])
        return cls(
            tuple(sizes),
            kernel,
            each(given["stride"]) if given.get("stride") else kernel,
            each(given.get("padding", 0)),
            given.get("ceil_mode", False),
            given.get("count_include_pad", True),
            given.get("divisor_override"),
        )

    def counts(self) -> list[int]:
        """How many windows there are, in each dimension."""
        found = []
        for size, kernel, stride, padding in zip(self.sizes, self.kernel, self.stride, self.padding, strict=True):
            steps = (size + 2 * padding - kernel) / stride
            count = (ceil(steps) if self.overhang else int(steps)) + 1
            found.append(count - (self.overhang and (count - 1) * stride >= size + padding))
        return found

    @property
    def hangs_over(self) -> bool:
        """Does a window end behind the padding?"""
        geometry = zip(self.counts(), self.sizes, self.kernel, self.stride, self.padding, strict=True)
        return any((count - 1) * s + k > size + 2 * padding for count, size, k, s, padding in geometry)

    def factors(self) -> Tensor:
        """What the mean of a window's places inside the image is multiplied with: float32, one for each window."""
        shares: Tensor = torch.ones((), dtype=torch.float64)
        geometry = zip(self.counts(), self.sizes, self.kernel, self.stride, self.padding, strict=True)
        for count, size, kernel, stride, padding in geometry:
            first = torch.arange(count) * stride - padding
            last = first + kernel
            inside = (last.clamp(max=size) - first.clamp(min=0)).double()
            whole = (last.clamp(max=size + padding) - first).double() if self.counts_padding else inside
            shares = shares[..., None] * (inside if self.divisor is not None else inside / whole)
        return (shares / (self.divisor or 1)).float()


class PlainAverage(nn.Module):
    """An average pool as the mean of what each window has inside the image, times a factor.

    Example:
        >>> pooling = Pooling.of((5,), {"kernel_size": [2], "stride": [2], "padding": [1], "ceil_mode": True})
        >>> x = torch.arange(5.0).reshape(1, 1, 5)
        >>> PlainAverage(pooling)(x), nn.functional.avg_pool1d(x, 2, 2, 1, ceil_mode=True)
        (tensor([[[0.0000, 1.5000, 3.5000]]]), tensor([[[0.0000, 1.5000, 3.5000]]]))
    """

    factors: Tensor

    def __init__(self, pooling: Pooling) -> None:
        super().__init__()
        self.given = (pooling.kernel, pooling.stride, pooling.padding, pooling.hangs_over, False)
        self.pool = _POOLS[len(pooling.sizes) - 1]
        self.register_buffer("factors", pooling.factors())

    def forward(self, x: Tensor) -> Tensor:
        """As the operator."""
        means: Tensor = self.pool(x, *self.given)
        return means * self.factors
