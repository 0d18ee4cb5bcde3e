"""Further training of a compressed model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from pruning_bench.levels import count_of
from pruning_bench.training.contract import StepTags, training_step
from pruning_bench.training.tuning import TuneOptions, Tuning

if TYPE_CHECKING:
    from pruning_bench.contracts import Context


@training_step
@dataclass(frozen=True)
class Finetune(TuneOptions):
    """Trains for as many epochs as the level says: SGD with Nesterov momentum, cosine schedule.

    What was pruned stays zero after every step. Options: see `TuneOptions`.
    """

    name: ClassVar[str] = "finetune"
    examples: ClassVar[tuple[str, ...]] = ("l1_filter:0.5+finetune:2",)
    tags: ClassVar[StepTags] = StepTags(
        level=count_of,
        reference="Han et al., Learning both Weights and Connections for Efficient Neural Networks, NeurIPS 2015, "
        "arXiv 1506.02626",
    )

    def run(self, model: nn.Module, level: Any, plans: Sequence[Any], context: Context) -> None:
        """Trains `model` in place; raises `LevelError` for a level out of range."""
        train = context.need_train(self.name)
        config = self.config(count_of(self.name, level), context.generator)
        Tuning(model, train, config, plans, context).run()
