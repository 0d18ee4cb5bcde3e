"""Further training of a compressed model, with the dense one as its teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from pruning_bench.levels import count_of
from pruning_bench.models.running import logits_of
from pruning_bench.options import Positive, Share
from pruning_bench.training.contract import StepTags, training_step
from pruning_bench.training.loop import cross_entropy
from pruning_bench.training.tuning import TuneOptions, Tuning

if TYPE_CHECKING:
    from pruning_bench.contracts import Context


@training_step
@dataclass(frozen=True)
class Distill(TuneOptions):
    """Trains for as many epochs as the level says, by the labels and by what the model that came in says:

        loss = (1 - share) * cross entropy of the labels + share * `soft_loss`(teacher, student, temperature)

    Args:
        share: of the loss that is the teacher's, in [0, 1]; at 0 this is `finetune`.
        temperature: that both sides' logits are divided by, positive. The others: see `TuneOptions`.
    """

    share: Share = 0.9
    temperature: Positive = 4.0

    name: ClassVar[str] = "distill"
    examples: ClassVar[tuple[str, ...]] = ("l1_filter:0.5+distill:2",)
    tags: ClassVar[StepTags] = StepTags(
        level=count_of,
        reference="Hinton et al., Distilling the Knowledge in a Neural Network, NIPS 2014 workshop, arXiv 1503.02531",
    )

    def run(self, model: nn.Module, level: Any, plans: Sequence[Any], context: Context) -> None:
        """Trains `model` in place; raises `LevelError` for a level out of range."""
        train = context.need_train(self.name)
        config = self.config(count_of(self.name, level), context.generator)
        teacher, of_labels = context.need_dense(self.name), cross_entropy(config)

        def loss(inputs: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
            with torch.no_grad():
                taught = logits_of(teacher, (inputs,), labels, self.name)
            soft = soft_loss(taught, logits, self.temperature)
            return torch.lerp(of_labels(inputs, logits, labels), soft, self.share)

        Tuning(model, train, config, plans, context, also=[teacher]).run(loss_of=loss)


def soft_loss(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)), in nats, the mean over a batch.

    The factor keeps the gradient as large as that of the labels at any temperature.

    Args:
        teacher, student: logits, float [N, classes].
    Returns:
        shape [], at least 0 but for rounding.
    Example:
        >>> logits = torch.tensor([[1.0, 2.0, 0.5]])
        >>> float(soft_loss(logits, logits, 4.0))
        0.0
    """
    kept, said = (nn.functional.log_softmax(logits / temperature, 1) for logits in (teacher, student))
    return nn.functional.kl_div(said, kept, reduction="batchmean", log_target=True) * temperature**2
