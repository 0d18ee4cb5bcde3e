"""How well a classifier does on a split."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pruning_bench.datasets.contract import Split
from pruning_bench.graphs import evaluating
from pruning_bench.metrics.accuracy import confusion_matrix
from pruning_bench.models.running import logits_of


@dataclass(frozen=True)
class Evaluation:
    """Quality of a classifier on N examples.

    Args:
        top1: share of right predictions, in [0, 1].
        loss: mean cross-entropy in nats.
        confusion: int64 [classes, classes], rows are true labels, columns predictions; sums to N.
    """

    top1: float
    loss: float
    confusion: Tensor


def evaluate(model: nn.Module, split: Split, batch: int = 250) -> Evaluation:
    """The quality of `model` in evaluation mode on `split`, in fp32; every module's mode is restored.

    The device is that of the model's parameters.
    """
    device = next(model.parameters()).device
    loss, confusion = 0.0, torch.zeros(0)
    with evaluating(model), torch.no_grad():
        for inputs, labels in split.batches(batch):
            logits = logits_of(model, (inputs.to(device),), labels, "evaluate").cpu()
            loss += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
            part = confusion_matrix(logits, labels)
            confusion = confusion + part if confusion.numel() else part
    return Evaluation(float(confusion.diagonal().sum()) / len(split), loss / len(split), confusion)
