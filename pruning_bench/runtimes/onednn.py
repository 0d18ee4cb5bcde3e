"""oneDNN's int8 kernels on x86 before VNNI, torch's and openvino's: they clip sums of two large products of codes.

They are run all the same, as they are for everybody there; `agreement_simulation` tells what that costs.
"""

from __future__ import annotations

import functools
import platform
from typing import TYPE_CHECKING, Any

import torch

from pruning_bench.quantization.contract import Affine

if TYPE_CHECKING:
    from pruning_bench.engine import Compressed

X86 = ("x86_64", "AMD64")
NEVER_CLIPPED = 64  # weight codes up to this: 2 * 255 * 64 fits into 16 bits


@functools.cache
def sums_saturate() -> bool:
    """Do oneDNN's convolutions add products of uint8 and int8 codes in 16 bits, and so clip large ones?

    x86 before VNNI does. Found by convolving the largest codes: 255 * 127 * 64 should be 2,072,640.
    """
    if platform.machine() not in X86 or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call,unused-ignore]
        return False
    onednn = torch.ops.onednn
    scale, zero, geometry = torch.ones(16), torch.zeros(16, dtype=torch.int64), ([1, 1], [0, 0], [1, 1], 1)
    x = torch.full((1, 64, 8, 8), 255, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    weight = torch.full((16, 64, 1, 1), 127, dtype=torch.int8)
    packed = onednn.qconv_prepack(weight, scale, 1.0, 0, *geometry, list(x.shape))
    tail: tuple[Any, ...] = (None, *geometry, 1.0, 0, torch.float32, "none", [], "")
    found = onednn.qconv_pointwise.default(x, 1.0, 0, packed, scale, zero, *tail)
    return bool((found != 255 * 127 * 64).any())


def remarks() -> tuple[str, ...]:
    """What that means here for quantized models."""
    if not sums_saturate():
        return ()
    return ("this CPU clips sums of uint8 times int8: w8a8 may predict otherwise than its simulation; w7a8 is exact",)


def depends(compressed: Compressed) -> str:
    """On what of this CPU the outputs of a model depend: "", or that sums of its codes are clipped here."""
    plan = compressed.quant_plan
    if plan is None or plan.weights_only or not sums_saturate():
        return ""
    fit = all(isinstance(grid, Affine) and grid.high <= NEVER_CLIPPED for grid in plan.weights.values())
    return "" if fit else "sums clipped to 16 bits"
