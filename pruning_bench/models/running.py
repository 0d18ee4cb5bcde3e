"""A model runs on a batch of given examples: what does not fit together is one line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pruning_bench.errors import ModelError, PruningBenchError, describe
from pruning_bench.models.contract import first_tensor, fresh


def placed(arguments: Sequence[Tensor], like: Sequence[Tensor], device: torch.device) -> tuple[Tensor, ...]:
    """The arguments of a forward on a device, those of a floating-point type in that of the example in their place.

    Args:
        like: examples of the arguments, as many or fewer.
    Example:
        >>> [x.dtype for x in placed((torch.ones(2), torch.ones(2)), (torch.ones(1).double(),), torch.device("cpu"))]
        [torch.float64, torch.float32]
    """
    moved = []
    for place, value in enumerate(arguments):
        dtype = float_type(like, place) if value.is_floating_point() else None
        value = value.to(device, dtype)
        moved.append(value.clone() if value.is_inference() else value)  # which no gradient passes
    return tuple(moved)


def float_type(like: Sequence[Tensor], place: int = 0) -> torch.dtype | None:
    """The type of the example in this place; None where there is none, or one of whole numbers."""
    return like[place].dtype if place < len(like) and like[place].is_floating_point() else None


def run(model: nn.Module, inputs: tuple[Tensor, ...], who: str) -> Tensor:
    """The first tensor that the model returns for a batch, of which it gets a copy.

    Raises:
        ModelError: it fails, with the shapes of the inputs; or returns no tensor.
    Example:
        >>> run(nn.Linear(3, 2), (torch.ones(5, 4),), "doctest")
        Traceback (most recent call last):
        ...
        pruning_bench.errors.ModelError: doctest: inputs [5, 4] that do not run (RuntimeError: mat1 and mat2 shapes \
cannot be multiplied (5x4 and 3x2)), should be inputs of the model [Linear]
    """
    try:
        output = first_tensor(model(*fresh(inputs)))
    except PruningBenchError:
        raise
    except Exception as problem:
        shapes = ", ".join(str(list(value.shape)) for value in inputs)
        found = f"inputs {shapes} that do not run ({describe(problem)})"
        raise ModelError(who, found, _expected(problem, "inputs of the model"), type(model).__name__) from problem
    if output is None:
        raise ModelError(who, "no tensor", "logits, first in what the model returns", type(model).__name__)
    return output


def logits_of(model: nn.Module, inputs: tuple[Tensor, ...], targets: Tensor, who: str) -> Tensor:
    """What a classifier says of a batch: float32 [N, classes, ...] for targets [N, ...].

    Raises:
        ModelError: it does not run on the inputs, or returns no logits.
    """
    outputs = run(model, inputs, who)
    if outputs.dim() < 2 or outputs.shape[:1] + outputs.shape[2:] != targets.shape:
        found = f"outputs {list(outputs.shape)} for targets {list(targets.shape)}"
        raise ModelError(who, found, "logits [N, classes, ...] for targets [N, ...]", type(model).__name__)
    return outputs.float()


@contextmanager
def differentiating(value: Tensor, model: nn.Module, who: str) -> Iterator[None]:
    """Around what computes the gradients of a value that the model gave, with gradients on.

    Raises:
        ModelError: no parameter of the model has a part in the value; autograd, or a backward of the model's own,
            fails.
    Example:
        >>> model = nn.Linear(3, 2)
        >>> loss = model(torch.ones(1, 3)).sum()
        >>> with differentiating(loss, model, "doctest"):
        ...     loss.backward()
        >>> model.bias.grad
        tensor([1., 1.])
    """
    if not value.requires_grad:
        expected = "outputs of parameters that train, by a forward without torch.no_grad() or detach()"
        raise ModelError(who, "outputs that have no gradient", expected, type(model).__name__)
    try:
        yield
    except PruningBenchError:
        raise
    except Exception as problem:
        found = f"gradients that fail ({describe(problem)})"
        expected = _expected(problem, "a forward that autograd can go back through")
        raise ModelError(who, found, expected, type(model).__name__) from problem


def _expected(problem: Exception, otherwise: str) -> str:
    return "as much memory as it takes" if isinstance(problem, torch.OutOfMemoryError) else otherwise
