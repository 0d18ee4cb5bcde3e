"""Scores of coupled channels: sums over the filters that make a channel, or over all weights that touch it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pruning_bench.pruning.couplings import Couplings
from pruning_bench.pruning.masks import require_finite
from pruning_bench.pruning.walk import TensorDim


def filter_norms(model: nn.Module, couplings: Couplings, power: float = 1) -> dict[str, Tensor]:
    """For every coupling the sum of |w|^power over all weights that produce each of its channels, float64 [channels].

    Raises:
        ModelError: a weight holds NaN or infinity; names it.
    """
    weights = dict(model.named_parameters(remove_duplicate=False))
    return filter_scores(weights, couplings, lambda filters: filters.abs().pow(power).sum(1))


def filter_sizes(model: nn.Module, couplings: Couplings) -> dict[str, Tensor]:
    """For every coupling the number of weights that produce each of its channels, float64 [channels]."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    ones = {
        (name, dim): torch.full((parameters[name].shape[dim],), parameters[name].numel() / parameters[name].shape[dim])
        for producers in couplings.producers.values()
        for name, dim in producers
    }
    return {coupling: couplings.sums(coupling, ones) for coupling in couplings.groups}


def filter_scores(
    tensors: Mapping[str, Tensor], couplings: Couplings, score: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """For every coupling the scores of the filters that make each of its channels, summed; float64 [channels].

    Args:
        tensors: for every producer of a coupling, by name, a tensor of its shape: the weight, or what is scored in its
            place.
        score: float64 [filters, weights of each] -> [filters]; called once for every layer.
    Raises:
        ModelError: a tensor holds NaN or infinity; names it.
    """
    scores = {}
    for producers in couplings.producers.values():
        for name, dim in producers:
            values = tensors[name].detach()
            require_finite(name, values)
            scores[name, dim] = score(values.double().movedim(dim, 0).flatten(1))
    return {coupling: couplings.sums(coupling, scores) for coupling in couplings.groups}


def unit_sums(couplings: Couplings, per_index: Mapping[TensorDim, Tensor]) -> dict[str, Tensor]:
    """For every coupling the values of all indices that belong to each of its channels, summed; float64 [channels].

    Args:
        per_index: (tensor, dimension) -> values [size of that dimension]; those that are missing count nothing.
    """
    total = np.zeros(1 + max((int(units.max()) for units in couplings.units.values()), default=0))
    for key, values in per_index.items():
        if key in couplings.units:
            np.add.at(total, couplings.units[key], values.detach().double().cpu().numpy())
    return {name: torch.from_numpy(total[units]) for name, units in couplings.groups.items()}


def norm_scales(model: nn.Module) -> dict[str, Tensor]:
    """Name -> scale (gamma, [channels]) of every batch norm that has one."""
    return {
        f"{path}.weight".lstrip("."): module.weight
        for path, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.weight is not None
    }


def unit_powers(model: nn.Module, couplings: Couplings, power: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Over all weights that touch a channel, those that make it and those that read it: |w|^power, and how many.

    Weights are the parameters of two or more dimensions and the scales of batch norms; biases are none. A weight that
    both makes and reads channels of one coupling counts for each of the two.

    Returns:
        coupling -> sum of |w|^power, float64 [channels]; coupling -> number of weights, float64 [channels].
    Raises:
        ModelError: a weight holds NaN or infinity; names it.
    """
    scales = norm_scales(model)
    sums, counts = {}, {}
    for name, weight in model.named_parameters():
        if weight.dim() < 2 and name not in scales:
            continue
        require_finite(name, weight.detach())
        powers = weight.detach().double().abs().pow(power)
        for dim, size in enumerate(weight.shape):
            others = [other for other in range(weight.dim()) if other != dim]
            sums[name, dim] = powers.sum(others) if others else powers
            counts[name, dim] = torch.full((size,), float(weight.numel() // max(size, 1)))
    return unit_sums(couplings, sums), unit_sums(couplings, counts)
