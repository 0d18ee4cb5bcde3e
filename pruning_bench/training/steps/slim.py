"""Training that makes batch-norm scales sparse, for network slimming."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from pruning_bench.errors import ModelError
from pruning_bench.levels import count_of
from pruning_bench.options import Amount
from pruning_bench.pruning.channel_scores import norm_scales
from pruning_bench.training.contract import StepTags, training_step
from pruning_bench.training.tuning import TuneOptions, Tuning

if TYPE_CHECKING:
    from pruning_bench.contracts import Context


@training_step
@dataclass(frozen=True)
class Slim(TuneOptions):
    """Trains with the loss + penalty * sum |gamma| over the scales gamma of all batch norms: their gradient gets
    penalty * sign(gamma) added. The level is the number of epochs; `bn_scale` then finds the channels of small scales.

    Args:
        penalty: at least 0; the paper's are 1e-5 and 1e-4, for some 160 epochs. The others: see `TuneOptions`.
    Raises:
        ModelError: no batch norm has a scale that trains.
    """

    penalty: Amount = 1e-4

    name: ClassVar[str] = "slim"
    tags: ClassVar[StepTags] = StepTags(
        level=count_of,
        reference="Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017, "
        "arXiv 1708.06519",
    )

    def run(self, model: nn.Module, level: Any, plans: Sequence[Any], context: Context) -> None:
        """Trains `model` in place; raises `LevelError` for a level out of range."""
        train = context.need_train(self.name)
        config = self.config(count_of(self.name, level), context.generator)
        scales = [scale for scale in norm_scales(model).values() if scale.requires_grad]
        if not scales:
            raise ModelError(self.name, "no batch norm", "batch norms with scales that train", type(model).__name__)
        tuning = Tuning(model, train, config, plans, context)

        @torch.no_grad()
        def pull(*_: Any) -> None:
            for scale in scales:
                if scale.grad is not None:
                    scale.grad.add_(scale.sign(), alpha=self.penalty)

        tuning.optimizer.register_step_pre_hook(pull)
        tuning.run()
