"""What channel methods share: scores of coupled channels, and how many of them stay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from pruning_bench.errors import ModelError
from pruning_bench.pruning.couplings import Couplings, find_couplings
from pruning_bench.pruning.masks import keep_largest, require_finite, select_global

WHO = "channels"


def require_couplings(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> Couplings:
    """`find_couplings`, for methods that need some.

    Raises:
        ModelError: no channel of the model can be removed (says why), or it cannot be exported.
    """
    found = find_couplings(model, example_inputs)
    if not found.groups:
        reason = next((f"{where}: {why}" for where, why in found.untouched.items()), type(model).__name__)
        raise ModelError(
            WHO, "no removable channel", "a model with coupled channels between its input and output", reason
        )
    return found


def filter_norms(model: nn.Module, couplings: Couplings, power: float = 1) -> dict[str, Tensor]:
    """For every coupling the sum of |w|^power over all weights that produce each of its channels, float64 [channels].

    Raises:
        ModelError: a weight holds NaN or infinity; names it.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    norms = {}
    for producers in couplings.producers.values():
        for name, dim in producers:
            weight = parameters[name].detach()
            require_finite(name, weight)
            others = [other for other in range(weight.dim()) if other != dim]
            norms[name, dim] = weight.double().abs().pow(power).sum(others)
    return {coupling: couplings.sums(coupling, norms) for coupling in couplings.groups}


def filter_sizes(model: nn.Module, couplings: Couplings) -> dict[str, Tensor]:
    """For every coupling the number of weights that produce each of its channels, float64 [channels]."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    ones = {
        (name, dim): torch.full((parameters[name].shape[dim],), parameters[name].numel() / parameters[name].shape[dim])
        for producers in couplings.producers.values()
        for name, dim in producers
    }
    return {coupling: couplings.sums(coupling, ones) for coupling in couplings.groups}


def keep_channels(
    scores: Mapping[str, Tensor], sparsity: float, scope: Literal["layer", "global"]
) -> dict[str, Tensor]:
    """Keeps all but the smallest scores, in every coupling at least the largest one.

    Args:
        scores: coupling -> [channels].
        sparsity: share removed of each coupling ("layer") or of all channels together ("global"), as `pruned_count`
            rounds it; one that would empty a coupling leaves its largest channel, so that fewer go.
    Returns:
        coupling -> bool [channels], True = kept.
    Example:
        >>> keep_channels({"a": torch.tensor([3.0, 1.0, 2.0]), "b": torch.tensor([5.0])}, 0.9, "layer")
        {'a': tensor([ True, False, False]), 'b': tensor([True])}
    """
    if scope == "layer":
        keep = {name: keep_largest(values, sparsity) for name, values in scores.items()}
    else:
        keep = select_global(_last_to_go(scores), sparsity)
    for name, mask in keep.items():
        mask[_largest(scores[name])] = True
    return keep


def _last_to_go(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scores with the largest of each coupling above all others, so that global counts are exact while they can be."""
    top = max(float(values.max()) for values in scores.values())
    raised = {name: values.clone() for name, values in scores.items()}
    for values in raised.values():
        values[_largest(values)] = top + 1
    return raised


def _largest(scores: Tensor) -> int:
    """The channel that goes last: the largest score, of equal ones the last, in line with `keep_largest`."""
    return len(scores) - 1 - int(scores.flip(0).argmax())
