"""SynFlow: the weights that carry least of the flow from input to output go, a few at a time, without any data."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pruning_bench.contracts import Context
from pruning_bench.levels import sparsity_of
from pruning_bench.models.running import differentiating, run
from pruning_bench.options import Checked, Count
from pruning_bench.pruning.contract import MaskPlan, PruningTags, pruning_method
from pruning_bench.pruning.masks import choose_masks, prunable


@pruning_method
@dataclass(frozen=True)
class Synflow(Checked):
    """Removes the weights of smallest synaptic flow: score = w * dR/dw with R = 1^T |W_L| ... |W_1| 1.

    R is the sum of the outputs for an input of ones, of the model with absolute weights, without biases, each batch
    norm in eval mode as its gain |scale| / sqrt(variance + eps), the variance 1 where it keeps none; in float64, in
    which deep models do not overflow.
    Round k of `rounds` leaves the share (1 - level)^(k / rounds), so that no layer is emptied long before the others.
    Made for layers joined by ReLU-like activations, through which a positive flow passes as it is.

    Args:
        rounds: at least 1.
    Reference:
        Tanaka et al., Pruning neural networks without any data by iteratively conserving synaptic flow, NeurIPS 2020,
        arXiv 2006.05467.
    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1))
        >>> model[0].weight.data = torch.tensor([[1.0, -4.0], [3.0, -2.0]])
        >>> model[2].weight.data = torch.tensor([[9.0, 1.0]])
        >>> Synflow().plan(model, 0.5, Context((torch.zeros(2, 2),), torch.Generator())).masks
        {'0.weight': tensor([[ True,  True],
                [False, False]])}
    """

    rounds: Count = 100
    name: ClassVar[str] = "synflow"
    examples: ClassVar[tuple[str, ...]] = ("synflow:0.9",)
    tags: ClassVar[PruningTags] = PruningTags(
        structure="element",
        level=sparsity_of,
        nested=False,
        reference="Tanaka et al., Pruning neural networks without any data by iteratively conserving synaptic flow, "
        "NeurIPS 2020, arXiv 2006.05467",
    )

    def plan(self, model: nn.Module, level: Any, context: Context) -> MaskPlan:
        """A mask over all prunable weights; `level` is the share removed of what earlier steps left, in [0, 1)."""
        sparsity = sparsity_of(self.name, level)
        names = list(prunable(model, context.example_inputs))
        work = positive_twin(model)
        inputs = tuple(_ones(value[:1], work) for value in context.example_inputs)
        masks: Mapping[str, Tensor] = context.earlier
        for done in range(1, self.rounds + 1):
            with torch.no_grad():
                for name, mask in masks.items():
                    work.get_parameter(name).masked_fill_(~mask.to(inputs[0].device), 0)
            share = sparsity if done == self.rounds else 1 - (1 - sparsity) ** (done / self.rounds)
            masks = choose_masks(synaptic_flow(work, inputs, names), share, "global", context.earlier)
        return MaskPlan(masks)


def synaptic_flow(model: nn.Module, inputs: tuple[Tensor, ...], names: list[str]) -> dict[str, Tensor]:
    """w * dR/dw of the named parameters of a positive twin, R the sum of its outputs; float64 of their shapes."""
    parameters = [model.get_parameter(name) for name in names]
    with torch.enable_grad():
        total = run(model, inputs, Synflow.name).sum()
        with differentiating(total, model, Synflow.name):
            found = torch.autograd.grad(total, parameters, allow_unused=True, materialize_grads=True)
    return {name: (p.detach() * g).cpu() for name, p, g in zip(names, parameters, found, strict=True)}


@torch.no_grad()
def positive_twin(model: nn.Module) -> nn.Module:
    """A float64 copy in eval mode with absolute weights and without biases; a batch norm is its gain alone."""
    work = copy.deepcopy(model).double().eval()
    for name, parameter in work.named_parameters():
        parameter.abs_().requires_grad_()
        if name.rpartition(".")[2].startswith(("bias", "in_proj_bias")):  # bias_ih_l0 and bias_k too
            parameter.zero_()
    for module in work.modules():
        if not isinstance(module, _BatchNorm):
            continue
        if module.running_var is None:  # it would take those of the one input
            module.running_var = torch.ones(module.num_features, dtype=torch.float64)
        module.running_mean = torch.zeros_like(module.running_var)
    return work


def _ones(value: Tensor, model: nn.Module) -> Tensor:
    device = next(model.parameters()).device
    return (torch.ones_like(value, dtype=torch.float64) if value.is_floating_point() else value).to(device)
