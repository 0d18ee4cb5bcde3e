"""Further training of a compressed model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from pruning_bench.errors import LevelError, PruningBenchError
from pruning_bench.pruning.masks import keep_pruned
from pruning_bench.recipe import count_of
from pruning_bench.training.contract import StepTags, training_step
from pruning_bench.training.loop import TrainConfig, make_optimizer, train_epoch

if TYPE_CHECKING:
    from pruning_bench.contracts import Context


@training_step
@dataclass(frozen=True)
class Finetune:
    """Trains for as many epochs as the level says: SGD with Nesterov momentum, cosine schedule.

    What was pruned stays zero after every step. The defaults suit some 5,000 images.

    Args:
        lr: the highest learning rate, positive.
        batch: images a step, at least 1.
        momentum: in [0, 1).
        weight_decay: on weights, not on biases and norms; at least 0.
        label_smoothing: in [0, 1).
        shift: images are moved by up to this many pixels.
        flip: half of the images are mirrored; wrong for digits and letters, so off by default.
        amp: the forward pass in bfloat16.
    """

    lr: float = 0.01
    batch: int = 64
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    shift: int = 2
    flip: bool = False
    amp: bool = False

    name: ClassVar[str] = "finetune"
    examples: ClassVar[tuple[str, ...]] = ("l1_filter:0.5+finetune:2",)
    tags: ClassVar[StepTags] = StepTags(
        reference="Han et al., Learning both Weights and Connections for Efficient Neural Networks, NeurIPS 2015, "
        "arXiv 1506.02626"
    )

    def run(self, model: nn.Module, level: Any, plans: Sequence[Any], context: Context) -> None:
        """Trains `model` in place; raises `LevelError` for options and levels out of range."""
        train = context.need_train(self.name)
        config = self._config(count_of(self.name, level), context.generator)
        optimizer = make_optimizer(model, config)
        with keep_pruned(model, plans, optimizer):
            for epoch in range(config.epochs):
                train_epoch(model, train, optimizer, config, epoch, context.progress)
        model.zero_grad(set_to_none=True)
        model.eval()

    def _config(self, epochs: int, generator: torch.Generator) -> TrainConfig:
        seed = int(torch.randint(2**62, (), generator=generator))
        try:
            return TrainConfig(epochs=epochs, seed=seed, **dataclasses.asdict(self))
        except PruningBenchError as problem:
            raise LevelError(self.name, problem.found, problem.expected) from None
