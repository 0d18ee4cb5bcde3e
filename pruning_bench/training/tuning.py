"""What steps that train share: their options, and epochs in which what was pruned stays zero."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from torch.optim import Optimizer

from pruning_bench.models.running import float_type
from pruning_bench.options import Amount, BelowOne, Checked, Count, Pixels, Positive
from pruning_bench.pruning.masks import KeepPruned, current_masks
from pruning_bench.training.fitting import fit
from pruning_bench.training.loop import Loss, TrainConfig, make_optimizer, train_epoch

if TYPE_CHECKING:
    from pruning_bench.contracts import Context
    from pruning_bench.datasets.contract import Split


@dataclass(frozen=True)
class TuneOptions(Checked):
    """The options of steps that train: SGD with Nesterov momentum, cosine schedule. They suit some 5,000 images.

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

    lr: Positive = 0.01
    batch: Count = 64
    momentum: BelowOne = 0.9
    weight_decay: Amount = 5e-4
    label_smoothing: BelowOne = 0.0
    shift: Pixels = 2
    flip: bool = False
    amp: bool = False

    name: ClassVar[str]

    def config(self, epochs: int, generator: torch.Generator) -> TrainConfig:
        """How to train for so many epochs, seeded by the generator."""
        seed = int(torch.randint(2**62, (), generator=generator))
        options = {option.name: getattr(self, option.name) for option in dataclasses.fields(TuneOptions)}
        return TrainConfig(epochs=epochs, seed=seed, **options)


class Tuning:
    """A training about to begin: a step may add hooks to its `optimizer`, and then calls `run`.

    Args:
        model: trained in place.
        plans: all plans so far; what they pruned stays zero after every step of the optimizer.
        also: models that are shown the same images.
    Raises:
        ModelError, DataError: model and images do not fit, as `fitting.fit` says.
    """

    def __init__(
        self,
        model: nn.Module,
        train: Split,
        config: TrainConfig,
        plans: Sequence[Any],
        context: Context,
        also: Sequence[nn.Module] = (),
    ) -> None:
        self.optimizer: Optimizer = make_optimizer(model, config)
        self._model, self._train, self._config = model, train, config
        self._plans, self._progress = plans, context.progress
        self._feed = fit(model, train, config, float_type(context.example_inputs), also)
        self.steps: int = len(self._feed.batches(torch.arange(len(train)), config.batch))  # of one epoch

    def run(self, first: int = 0, loss_of: Loss | None = None) -> None:
        """Trains from epoch `first` of the schedule to its end; leaves evaluation mode, and no gradients.

        Args:
            loss_of: instead of the cross entropy of the labels.
        """
        with KeepPruned(self._model, current_masks(self._plans), self.optimizer):
            for epoch in range(first, self._config.epochs):
                train_epoch(
                    self._model, self._train, self.optimizer, self._config, epoch, self._progress, loss_of, self._feed
                )
        self._model.zero_grad(set_to_none=True)
        self._model.eval()
