"""A user's own definitions, for the plug-in's tests: a model right by construction, a runtime whose clock is made up.

Class k of the toy data is the one whose pixel k is bright. One image in eighty also has the bright pixel `PLANTED`,
which the model ignores until the method `planted` is told to spoil it.
"""

import os
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pruning_bench import pruning_method, reference_dataset, reference_model, runtime
from pruning_bench.datasets.contract import Dataset, Split
from pruning_bench.errors import DataError
from pruning_bench.pruning.contract import MaskPlan, PruningTags
from pruning_bench.runtimes.contract import Session

PLANTED = 12
SECONDS = {"dense": 2e-3}
OTHERWISE = 1e-3


@reference_model
def toy(*, num_classes: int = 10, in_channels: int = 1) -> nn.Module:
    """Two linear layers on 16 pixels."""
    return nn.Sequential(nn.Flatten(), nn.Linear(16 * in_channels, 16), nn.ReLU(), nn.Linear(16, num_classes))


def trained() -> nn.Module:
    model = toy().eval()
    with torch.no_grad():
        for layer in (model[1], model[3]):
            layer.weight.copy_(torch.eye(16)[: layer.out_features])
            layer.bias.zero_()
        model[3].weight[:, 10:] = 0
    return model


def split(count: int, seed: int) -> Split:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 60, (count, 16), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (count,), generator=generator)
    images[torch.arange(count), labels] = 255
    images[::80, PLANTED] = 255
    return Split(images.view(count, 1, 4, 4), labels, torch.zeros(1), torch.ones(1))


@reference_dataset
def pixels(folder: Path | None = None, *, full: bool = False) -> Dataset:
    """Ten classes, one bright pixel each."""
    if folder is not None and not folder.is_dir():
        raise DataError("pixels", "no such folder", "a folder of pixels", str(folder))
    parts = [split(count, seed) for seed, count in enumerate((256, 256, 10000))]
    return Dataset("pixels", tuple("0123456789"), *parts, digest="pixels-1", source="made")


@pruning_method
@dataclass(frozen=True)
class Planted:
    """Prunes nothing; loses 1 % of the examples where the environment says so."""

    name: ClassVar[str] = "planted"
    tags: ClassVar[PruningTags] = PruningTags(structure="element")
    examples: ClassVar[tuple[str, ...]] = () if os.environ.get("PLANTED_GONE") else ("planted:0",)

    def plan(self, model: nn.Module, level: Any, context: Any) -> MaskPlan:
        _perhaps_warn()
        if os.environ.get("PLANTED_CRASH"):
            raise RuntimeError("the method crashed")
        head = model[3].weight.detach().clone()
        if os.environ.get("PLANTED_DROP"):
            head[0, PLANTED] = 9.0
        return MaskPlan({"1.weight": torch.ones(16, 16, dtype=torch.bool)}, writes={"3.weight": head})


def _perhaps_warn() -> None:
    if os.environ.get("PLANTED_WARNING"):
        warnings.warn("a library has changed its mind", DeprecationWarning, stacklevel=2)


class Clock:
    """Time that passes only when a model is said to run."""

    def __init__(self) -> None:
        self.now = 0.0
        self.noise = random.Random(0)

    def __call__(self) -> float:
        self.now += 1e-6
        return self.now

    def run(self, seconds: float) -> None:
        self.now += seconds * (1 + 0.002 * self.noise.random())


CLOCK = Clock()


@runtime
class Virtual:
    """Runs in eager and takes exactly as long as it is told to."""

    name: ClassVar[str] = "virtual"

    def available(self, device: str = "cpu") -> str | None:
        _perhaps_warn()
        return "virtual is switched off; python -m pip install virtual" if os.environ.get("VIRTUAL_AWAY") else None

    def version(self) -> str:
        return "virtual 1"

    def build(self, compressed: Any, example_inputs: Any, *, threads: int = 1, device: str = "cpu") -> Session:
        recipe = str(compressed.recipe)
        seconds = SECONDS.get(recipe, OTHERWISE)
        if recipe.startswith("planted"):
            seconds *= 1 + float(os.environ.get("PLANTED_SLOW", "0"))
        model = compressed.model

        def bind(*inputs: Tensor) -> Callable[[], object]:
            return lambda: CLOCK.run(seconds)

        return Session(torch.inference_mode()(lambda *inputs: model(*inputs)), bind, clock=CLOCK)
