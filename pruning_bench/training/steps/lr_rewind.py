"""Learning-rate rewinding: the last epochs of the original schedule once more, from the weights that there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from pruning_bench.errors import LevelError
from pruning_bench.levels import count_of
from pruning_bench.options import Count, Positive
from pruning_bench.training.contract import StepTags, training_step
from pruning_bench.training.tuning import TuneOptions, Tuning

if TYPE_CHECKING:
    from pruning_bench.contracts import Context


@training_step
@dataclass(frozen=True)
class LrRewind(TuneOptions):
    """Trains for as many epochs as the level says, at the learning rates of the last epochs of a training of `of`.

    Args:
        of: epochs of the original training, whose schedule is a warm-up and a cosine.
        lr: the highest learning rate of the original training; here it is reached only with level = `of`.
    Other options: see `TuneOptions`.
    """

    lr: Positive = 0.05
    of: Count = 16

    name: ClassVar[str] = "lr_rewind"
    tags: ClassVar[StepTags] = StepTags(
        level=count_of,
        reference="Renda et al., Comparing Rewinding and Fine-tuning in Neural Network Pruning, ICLR 2020, "
        "arXiv 2003.02389",
    )

    def run(self, model: nn.Module, level: Any, plans: Sequence[Any], context: Context) -> None:
        """Trains `model` in place; raises `LevelError` for a level out of range."""
        train = context.need_train(self.name)
        epochs = count_of(self.name, level)
        config = self.config(self.of, context.generator)
        if epochs > self.of:
            raise LevelError(self.name, f"level {epochs}", f"at most {self.of}, the epochs that there were")
        Tuning(model, train, config, plans, context).run(first=self.of - epochs)
