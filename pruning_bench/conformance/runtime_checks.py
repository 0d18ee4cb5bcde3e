"""What must hold of every runtime that multiplies codes: each code that a layer gives is the one that is simulated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pruning_bench.engine import compress
from pruning_bench.quantization.lower import Rule
from pruning_bench.quantization.simulation import simulate

ROWS, PLACES, INPUTS, OUTPUTS = 600, 65, 96, 128
LARGEST = 63  # of a weight's codes: sums of two products fit into 16 bits, so that no CPU clips them


class CodesShown(nn.Module):
    """A linear layer, and one that multiplies each of its outputs by the same number, so that its codes can be read.

    Bias and scales of the first are large and unlike, so that many of its sums lie near a tie.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.layer, self.shows = nn.Linear(INPUTS, OUTPUTS), nn.Linear(OUTPUTS, OUTPUTS, bias=False)
        with torch.no_grad():
            self.layer.weight.copy_(torch.randn(OUTPUTS, INPUTS, generator=generator) * 0.1)
            self.layer.weight.mul_(4 * torch.rand(OUTPUTS, 1, generator=generator))
            self.layer.bias.copy_(torch.randn(OUTPUTS, generator=generator))
            self.shows.weight.copy_(torch.eye(OUTPUTS))

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        y: Tensor = self.shows(self.layer(x))
        return y


def codes_off(runtime: Any, rules: frozenset[Rule] | None = None, *, seed: int = 0) -> int:
    """How many of five million codes that a linear layer of int8 gives on a runtime are not those of the simulation.

    Args:
        runtime: an object of a registered runtime class, that runs quantized models.
        rules: simulated instead of the runtime's own.
        seed: of the layer and its inputs, and so of the grids; some factors are the same in several formulas.
    Example:
        >>> from pruning_bench.runtimes.onnxruntime import OnnxRuntime
        >>> codes_off(OnnxRuntime()) if OnnxRuntime().available() is None else 0
        0
    """
    generator = torch.Generator().manual_seed(seed)
    model, x = CodesShown(generator).eval(), torch.randn(ROWS, PLACES, INPUTS, generator=generator)
    made = compress(model, "static:w7a8", example_inputs=(x[:1],), calibration=[(x,)])
    assert made.quant_plan is not None
    rules = runtime.rules if rules is None else rules
    with torch.inference_mode():
        simulated = simulate(made.quant_plan, model, (x[:1],), rules)(x)
    grid, factor = made.quant_plan.activations["layer.linear"], made.quant_plan.weights["shows.weight"].scale
    unit = LARGEST * float(grid.scale) * float(factor[0])
    found = runtime.build(made, (x,)).run(x)
    return int((torch.round(found / unit) != torch.round(simulated / unit)).sum())
