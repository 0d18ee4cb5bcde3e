"""A model in another floating-point type, between float32 inputs and outputs."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from pruning_bench.quantization.contract import FLOATS


class Cast(nn.Module):
    """Inputs of a floating-point type become `dtype`, the output float32 again; other inputs pass as they are."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, *inputs: Tensor) -> Tensor:
        """As the model's."""
        cast = [value.to(self.dtype) if value.is_floating_point() else value for value in inputs]
        output: Tensor = self.model(*cast)
        return output.float()


def cast(model: nn.Module, dtype: str) -> Cast:
    """A copy of `model` whose parameters and buffers of a floating-point type are rounded to `dtype`.

    Args:
        model: float32; never changed.
        dtype: a key of `FLOATS`.
    Example:
        >>> half = cast(nn.Linear(3, 2), "bf16")
        >>> half.model.weight.dtype, half(torch.zeros(1, 3)).dtype
        (torch.bfloat16, torch.float32)
    """
    return Cast(copy.deepcopy(model).eval().to(FLOATS[dtype]), FLOATS[dtype]).eval()
