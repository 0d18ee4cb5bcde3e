"""Losses to be planted into real models on a real runtime, for the slow end-to-end test; both are off by default.

`PLANTED_SLOW=0.15` makes every recipe but dense 15 % slower on the runtime `slowable` (ONNX Runtime otherwise).
`PLANTED_DROP=1` makes the method `lossy` spoil the output layer until 1 % of the selection images are lost.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pruning_bench import pruning_method, runtime
from pruning_bench.datasets.contract import load_dataset
from pruning_bench.metrics.latency import slowed
from pruning_bench.pruning.contract import MaskPlan, PruningTags
from pruning_bench.pruning.masks import output_layers, prunable
from pruning_bench.registry import RUNTIMES
from pruning_bench.runtimes.contract import Session

LOSS = 0.01


@runtime
class Slowable:
    """ONNX Runtime, slowed down on demand."""

    name: ClassVar[str] = "slowable"

    def available(self, device: str = "cpu") -> str | None:
        reason: str | None = RUNTIMES["onnxruntime"].available(device)
        return reason

    def version(self) -> str:
        return str(RUNTIMES["onnxruntime"].version())

    def build(self, compressed: Any, example_inputs: Any, *, threads: int = 1, device: str = "cpu") -> Session:
        session: Session = RUNTIMES["onnxruntime"].build(compressed, example_inputs, threads=threads, device=device)
        share = float(os.environ.get("PLANTED_SLOW", "0"))
        if str(compressed.recipe) == "dense" or not share:
            return session

        def bind(*inputs: Tensor) -> Callable[[], object]:
            return slowed(session.bind(*inputs), share)

        return replace(session, bind=bind)


@pruning_method
@dataclass(frozen=True)
class Lossy:
    """Prunes nothing; spoils the output layer on demand."""

    name: ClassVar[str] = "lossy"
    tags: ClassVar[PruningTags] = PruningTags(structure="element")

    def plan(self, model: nn.Module, level: Any, context: Any) -> MaskPlan:
        weights = prunable(model, context.example_inputs)
        masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
        return MaskPlan(masks, writes=_spoilt_head(model, context) if os.environ.get("PLANTED_DROP") else {})


def _spoilt_head(model: nn.Module, context: Any) -> dict[str, Tensor]:
    """The output layer's bias with class 0 raised until `LOSS` of the selection images are lost."""
    (name,) = (name for name in output_layers(model, context.example_inputs) if name.endswith("weight"))
    bias = dict(model.named_parameters())[name.removesuffix("weight") + "bias"].detach()
    selection = load_dataset("fashion_mnist").selection
    with torch.inference_mode():
        logits = torch.cat([model(inputs) for inputs, _ in selection.batches()])
    right = (logits.argmax(1) == selection.labels).float().mean()
    raised = torch.zeros_like(logits[0])
    while right - ((logits + raised).argmax(1) == selection.labels).float().mean() < LOSS:
        raised[0] += 0.02
    return {name.removesuffix("weight") + "bias": bias + raised}
