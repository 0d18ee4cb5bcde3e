"""Gradients of the loss on training examples: the one place where pruning methods get them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pruning_bench.contracts import Context
from pruning_bench.datasets.contract import check_classes
from pruning_bench.errors import DataError, ModelError
from pruning_bench.models.running import differentiating, logits_of, placed

if TYPE_CHECKING:
    from pruning_bench.datasets.contract import Examples


def batch_gradients(
    model: nn.Module, context: Context, who: str, *, batches: int = 8, batch: int = 64
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """For each batch of training examples their number and the gradients of their mean cross-entropy, in eval mode.

    The examples are drawn without replacement from the context's generator. One batch's gradients are made at a time,
    so that memory does not grow with `batches`; `batch=1` gives the gradients of single examples.

    Args:
        model: a classifier, logits [N, K, ...]; it is copied, and nothing about it changes.
        context: `train` holds the examples, class numbers [N, ...] their targets.
        who: named by errors.
        batches: how many at most, at least 1.
        batch: examples in each; the last one may hold fewer.
    Returns:
        (examples, parameter name -> gradient of the parameter's shape); zeros where the loss does not depend on it.
    Raises:
        ModelError: no training examples, a model that fails on them or in backward, no logits, a loss that is not
            finite or has no gradient.
        DataError: no class numbers, or one that is none of the model's classes.
    Example:
        >>> from pruning_bench.datasets.contract import Tensors
        >>> train = Tensors((torch.eye(2),), torch.tensor([0, 1]))
        >>> context = Context((torch.zeros(2, 2),), torch.Generator(), train=train)
        >>> model = nn.Linear(2, 2, bias=False)
        >>> model.weight.data.zero_()
        tensor([[0., 0.],
                [0., 0.]])
        >>> count, gradients = next(batch_gradients(model, context, "doctest"))
        >>> count, gradients["weight"]
        (2, tensor([[-0.2500,  0.2500],
                [ 0.2500, -0.2500]]))
    """
    drawn = _labelled(context, who).sample(batches * batch, context.generator)
    work = copy.deepcopy(model).eval()
    parameters = {name: p.requires_grad_() for name, p in work.named_parameters() if p.is_floating_point()}
    device = next((p.device for p in parameters.values()), torch.device("cpu"))
    for start in range(0, len(drawn), batch):
        part = slice(start, start + batch)
        targets = drawn.targets[part].to(device)  # type: ignore[index]
        with torch.enable_grad():
            loss = _loss(work, placed(drawn.arguments(part), context.example_inputs, device), targets, who)
            with differentiating(loss, work, who):
                found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
        yield len(targets), {name: gradient.detach() for name, gradient in zip(parameters, found, strict=True)}


def mean_gradients(
    model: nn.Module, context: Context, who: str, *, batches: int = 8, batch: int = 64
) -> dict[str, Tensor]:
    """The gradient of the mean cross-entropy over all examples that `batch_gradients` draws.

    Returns:
        parameter name -> gradient of the parameter's shape.
    Raises:
        ModelError, DataError: as `batch_gradients` does.
    """
    total: dict[str, Tensor] = {}
    examples = 0
    for count, gradients in batch_gradients(model, context, who, batches=batches, batch=batch):
        examples += count
        for name, gradient in gradients.items():
            total[name] = total[name].add_(gradient, alpha=count) if name in total else gradient * count
    return {name: gradient / examples for name, gradient in total.items()}


def _labelled(context: Context, who: str) -> Examples:
    examples = context.need_examples(who)
    targets = examples.targets
    if targets is None or targets.is_floating_point():
        found = "no targets" if targets is None else f"{targets.dtype} targets"
        raise DataError(who, f"training data with {found}", "examples whose targets are class numbers")
    return examples


def _loss(model: nn.Module, inputs: tuple[Tensor, ...], targets: Tensor, who: str) -> Tensor:
    logits = logits_of(model, inputs, targets, who)
    check_classes(targets, logits.shape[1], who)
    loss = cross_entropy(logits, targets.long())
    if not bool(torch.isfinite(loss)):
        raise ModelError(who, f"a loss of {float(loss.detach())} on training data", "finite", type(model).__name__)
    return loss
