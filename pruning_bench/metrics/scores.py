"""Scores of single outputs that need no labels: how close to the dense model's they are."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from pruning_bench.metrics.contract import score


def cosines(outputs: Tensor, reference: Tensor) -> Tensor:
    """Cosine of the angle between each output and its reference, all numbers of an example as one vector.

    Two zero vectors, and only they, agree though they have no angle: 1.

    Args:
        outputs, reference: [N, ...], of one shape.
    Returns:
        float64 [N], in [-1, 1].

    Example:
        >>> import torch
        >>> cosines(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[2.0, 0.0], [1.0, -1.0]])).tolist()
        [1.0, 0.0]
    """
    a, b = (value.double().flatten(1) for value in (outputs, reference))
    same = (a == 0).all(1) & (b == 0).all(1)
    return functional.cosine_similarity(a, b, dim=1).masked_fill(same, 1.0)


def similarity(outputs: Tensor, reference: Tensor) -> float:
    """Mean of `cosines`, in [-1, 1]; an example where either is not finite counts as -1."""
    return float(cosines(outputs, reference).nan_to_num(-1.0).mean())


@score(against="dense")
def cosine_agreement(outputs: Tensor, reference: Tensor) -> Tensor:
    """Mean cosine between the test outputs and the dense model's."""
    return cosines(outputs, reference)
