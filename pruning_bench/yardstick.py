"""A fixed piece of work that tells how fast the machine is at the moment."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

CHANNELS, SIZE = 32, 16


def yardstick() -> Callable[[], object]:
    """A call that does the same work on the CPU in every run: two convolutions and a linear layer in float32, batch 1.

    A little of what the models do: arithmetic (6 million multiply-accumulates), 4 MB of weights read once, and a few
    small operators; a machine that is slower for them is slower for it. It depends on nothing that a run can configure
    but torch's threads.

    Example:
        >>> yardstick()().shape
        torch.Size([1, 128])
    """
    shapes = [(1, CHANNELS, SIZE, SIZE), *[(CHANNELS, CHANNELS, 3, 3)] * 2, (128, CHANNELS * SIZE * SIZE)]
    x, first, second, last = (torch.full(shape, 0.01) for shape in shapes)

    @torch.inference_mode()
    def call() -> torch.Tensor:
        y = x
        for weight in (first, second):
            y = torch.relu(nn.functional.conv2d(y, weight, padding=1))
        return nn.functional.linear(y.flatten(1), last)

    return call
