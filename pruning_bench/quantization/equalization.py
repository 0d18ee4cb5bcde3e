"""Equal ranges of the weights that make and that read a channel.

Nagel et al., Data-free quantization through weight equalization and bias correction, ICCV 2019, arXiv 1906.04721.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pruning_bench.quantization.plans import Prepared
from pruning_bench.quantization.seams import Seam, find_seams, input_peaks, scale

ROUNDS = 50
SETTLED = 1e-3  # the largest |log s| at which nothing changes any more
FARTHEST = 1e3  # factors stay in [1 / FARTHEST, FARTHEST] a round: beyond, a channel is as good as dead


def equalize(prepared: Prepared) -> dict[str, Tensor]:
    """New values of weights and biases with which the model computes the same; see `CrossLayerEqualization`.

    Args:
        prepared: not changed.
    Returns:
        Parameter name -> float32 values; empty if no two layers belong together.
    """
    seams = [seam for seam in find_seams(prepared) if not seam.is_norm and len(seam.readers) == 1]
    parameters = prepared.parameters
    writes: dict[str, Tensor] = {}
    for _ in range(ROUNDS):
        moved = 0.0
        for seam in seams:
            factors = equal_factors(parameters | writes, seam)
            writes |= scale(parameters | writes, seam, factors)
            moved = max(moved, float(factors.log().abs().max()))
        if moved <= SETTLED:
            break
    return writes


def equal_factors(parameters: dict[str, Tensor], seam: Seam) -> Tensor:
    """s = sqrt(r1 / r2), [channels]; 1 for channels that nothing makes or reads."""
    made = parameters[seam.weight].flatten(1).abs().amax(1)
    ((name, repeats),) = seam.readers.items()
    read = input_peaks(parameters[name], len(made), repeats)
    alive = (made > 0) & (read > 0)
    factors = torch.where(alive, (made / read).sqrt(), 1.0)
    return factors.clamp(1 / FARTHEST, FARTHEST)
