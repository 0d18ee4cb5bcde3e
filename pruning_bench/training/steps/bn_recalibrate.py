"""Batch-norm statistics measured anew, after weights or widths have changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pruning_bench.errors import DataError, ModelError
from pruning_bench.levels import count_of
from pruning_bench.models.running import placed, run
from pruning_bench.options import Checked, Range
from pruning_bench.training.contract import StepTags, training_step

if TYPE_CHECKING:
    from pruning_bench.contracts import Context
    from pruning_bench.datasets.contract import Examples


WHO = "bn_recalibrate"


def recalibrate(model: nn.Module, batches: Iterable[tuple[Tensor, ...]]) -> None:
    """Sets every running mean and variance to the average of those of `batches`, in place.

    Batch-norm layers run in training mode and everything else in evaluation mode; momentum and modes are restored.
    Without batches, and in a model without running statistics, nothing changes.

    Args:
        batches: model inputs, each a tuple of positional arguments; every batch counts the same.
    Raises:
        ModelError: the model does not run on a batch.
    """
    norms = [layer for layer in model.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
    before = [(layer, layer.training) for layer in model.modules()]
    momenta = [layer.momentum for layer in norms]
    model.eval()
    try:
        with torch.no_grad():
            for index, inputs in enumerate(batches if norms else ()):
                if index == 0:
                    for layer in norms:
                        layer.reset_running_stats()
                        layer.momentum = None  # a cumulative average
                        layer.train()
                run(model, inputs, WHO)
    finally:
        for layer, momentum in zip(norms, momenta, strict=True):
            layer.momentum = momentum
        for module, training in before:
            module.training = training


def batches_of(who: str, level: Any) -> int | None:
    """The level as a count of batches, or None without one; raises `LevelError` otherwise."""
    return None if level is None else count_of(who, level)


@training_step
@dataclass(frozen=True)
class BnRecalibrate(Checked):
    """Measures batch-norm statistics anew on training images; weights stay. A model without batch norm stays as it is.

    The level is the number of batches, drawn without replacement; left out, or more than there are, it is all of them.

    Args:
        batch: images a batch, at least 2.
    """

    batch: Annotated[int, Range("[2, inf)")] = 250

    name: ClassVar[str] = WHO
    examples: ClassVar[tuple[str, ...]] = ("l1_filter:0.5+bn_recalibrate:8",)
    tags: ClassVar[StepTags] = StepTags(
        level=batches_of,
        trains_weights=False,
        reference="Li et al., Revisiting Batch Normalization For Practical Domain Adaptation, 2016, arXiv 1603.04779",
    )

    def run(self, model: nn.Module, level: Any, plans: Sequence[Any], context: Context) -> None:
        """Replaces the statistics of `model` in place.

        Raises:
            LevelError: a level that is no count.
            ModelError: the model does not run on the examples.
            DataError: a single example, which has no variance.
        """
        count = batches_of(self.name, level)
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        examples = context.need_examples(self.name)
        batches = _drawn(examples, self.batch, count, context.generator)
        try:
            recalibrate(model, (placed(inputs, context.example_inputs, device) for inputs in batches))
        except ModelError as problem:
            if len(examples) > 1:
                raise
            expected = "at least 2, over which batch norm finds a variance"
            raise DataError(self.name, f"one example, {problem.found}", expected, problem.where) from problem
        model.eval()


def _drawn(split: Examples, batch: int, count: int | None, generator: torch.Generator) -> Iterable[tuple[Tensor, ...]]:
    """At most `count` batches in random order, all of the same size: an average over batches weighs them equally."""
    size = min(batch, len(split))
    whole = len(split) // size
    order = torch.randperm(len(split), generator=generator)
    for index in range(whole if count is None else min(count, whole)):
        yield split.arguments(order[index * size : (index + 1) * size])
