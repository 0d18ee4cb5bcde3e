import math

import pytest
import torch
from torch import nn

from pruning_bench.datasets.contract import Split
from pruning_bench.metrics.accuracy import confusion_matrix
from pruning_bench.training.evaluation import Evaluation, evaluate

LOGITS = torch.tensor([[4.0, 0, 0], [0, 3, 0], [0, 3, 1], [0, 0, 5], [2, 0, 0]])
LABELS = torch.tensor([0, 1, 0, 2, 2])  # right, right, 1 for 0, right, 0 for 2
EXPECTED = [[1, 1, 0], [0, 1, 0], [1, 0, 1]]


class Table(nn.Module):
    """Gives the logits of the example whose number is its first pixel; in training mode it gives nonsense."""

    def __init__(self) -> None:
        super().__init__()
        self.logits, self.frozen = nn.Parameter(LOGITS), nn.BatchNorm2d(1)

    def forward(self, images):
        chosen = self.logits[(images[:, 0, 0, 0] * 255).round().long()]
        return -chosen if self.training else chosen


def table_split() -> Split:
    images = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 1, 2, 2).contiguous()
    return Split(images, LABELS, torch.zeros(1), torch.ones(1))


def check_by_hand(measure) -> None:
    model = Table().train()
    model.frozen.eval()
    found = measure(model, table_split())
    assert found.top1 == 3 / 5, f"top-1 {found.top1}, should be 3 of 5"
    assert found.confusion.tolist() == EXPECTED, f"confusion {found.confusion.tolist()}, should be {EXPECTED}"
    rows = [math.log(sum(map(math.exp, row))) - row[label] for row, label in zip(LOGITS.tolist(), LABELS, strict=True)]
    assert abs(found.loss - sum(rows) / 5) < 1e-6, f"loss {found.loss}, should be {sum(rows) / 5}"
    assert model.training, "evaluation mode, should be training mode as before"
    assert not model.frozen.training, "a frozen batch norm in training mode, should be in evaluation mode as before"


def mutant_training_mode(model, split):
    logits = model(split.inputs()).detach()
    loss = float(nn.functional.cross_entropy(logits, split.labels))
    matrix = confusion_matrix(logits, split.labels)
    return Evaluation(float(matrix.diagonal().sum()) / len(split), loss, matrix)


def mutant_transposed(model, split):
    found = evaluate(model, split)
    return Evaluation(found.top1, found.loss, found.confusion.T)


def mutant_mean_of_batch_means(model, split):
    found = evaluate(model, split)
    model.eval()
    losses = [float(nn.functional.cross_entropy(model(x), y).detach()) for x, y in split.batches(3)]
    model.train().frozen.eval()
    return Evaluation(found.top1, sum(losses) / len(losses), found.confusion)


def mutant_leaves_evaluation_mode(model, split):
    return evaluate(model.eval(), split)


def mutant_forgets_what_was_frozen(model, split):
    found = evaluate(model, split)
    model.train()
    return found


@pytest.mark.parametrize("batch", [1, 2, 5, 100])
def test_by_hand(batch):
    check_by_hand(lambda model, split: evaluate(model, split, batch))


@pytest.mark.parametrize(
    "mutant",
    [
        mutant_training_mode,
        mutant_transposed,
        mutant_mean_of_batch_means,
        mutant_leaves_evaluation_mode,
        mutant_forgets_what_was_frozen,
    ],
)
def test_check_by_hand_rejects(mutant):
    with pytest.raises(AssertionError, match="should be"):
        check_by_hand(mutant)
