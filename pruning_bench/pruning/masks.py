"""Masks of single weights: what is prunable, how masks are applied, and how what is pruned stays gone.

How many go and which is decided in `selection`, whose functions can be had from here too.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.modules.conv import _ConvNd
from torch.optim import Optimizer

from pruning_bench.errors import ModelError, PlanError
from pruning_bench.pruning.contract import ChannelPlan, MaskPlan
from pruning_bench.pruning.outputs import output_layers as output_layers
from pruning_bench.pruning.selection import WHO as WHO
from pruning_bench.pruning.selection import choose_masks as choose_masks
from pruning_bench.pruning.selection import keep_largest as keep_largest
from pruning_bench.pruning.selection import pruned_count as pruned_count
from pruning_bench.pruning.selection import require_finite as require_finite
from pruning_bench.pruning.selection import select_global as select_global

_PACKED = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def prunable(
    model: nn.Module, example_inputs: tuple[Tensor, ...], *, output_layer: bool = False
) -> dict[str, Parameter]:
    """The weights that may be pruned, by name: those of linear and convolution layers and packed attention projections.

    Never biases, norms or embeddings (nor a linear layer that shares its weight with one).

    Args:
        example_inputs: positional arguments of the model; they find the output layer.
        output_layer: also the layers whose output reaches the model's output through no other such layer.
    Raises:
        ModelError: there are none, one holds NaN or infinity, or the model cannot be exported.
    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
        >>> list(prunable(model, (torch.zeros(1, 1, 4, 4),)))
        ['0.weight']
    """
    found = {}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    embedded = {id(module.weight) for module in model.modules() if isinstance(module, (nn.Embedding, nn.EmbeddingBag))}
    for module in model.modules():
        for weight in _weights(module):
            if id(weight) in names and id(weight) not in embedded:
                found[names[id(weight)]] = weight
    if found and not output_layer:
        last = output_layers(model, example_inputs)
        found = {name: weight for name, weight in found.items() if name not in last}
    if not found:
        kinds = "linear, convolution or attention layers" + ("" if output_layer else " besides the output layer")
        raise ModelError(WHO, "nothing prunable", f"a model with {kinds}", type(model).__name__)
    for name, weight in found.items():
        require_finite(name, weight)
    return found


def transposed(model: nn.Module) -> dict[str, int]:
    """The groups of every transposed convolution, by the name of its weight [inputs, outputs / groups, ...]."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    layers = [module for module in model.modules() if isinstance(module, _ConvNd) and module.transposed]
    return {names[id(layer.weight)]: layer.groups for layer in layers if id(layer.weight) in names}


def _weights(module: nn.Module) -> list[Parameter]:
    names: tuple[str, ...] = ("weight",) if isinstance(module, (nn.Linear, _ConvNd)) else ()
    if isinstance(module, nn.MultiheadAttention):
        names = _PACKED
    return [weight for name in names if isinstance(weight := module._parameters.get(name), Parameter)]


def apply_masks(model: nn.Module, plan: MaskPlan) -> nn.Module:
    """A copy of `model` with the plan's `writes` in place and the pruned weights zero.

    Raises:
        PlanError: the plan does not fit the model.
    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> apply_masks(model, MaskPlan({"weight": torch.tensor([[False, True]])})).weight[0, 0].item()
        0.0
    """
    changed = copy.deepcopy(model)
    parameters = dict(changed.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, values in plan.writes.items():
            _require_fit(parameters, name, values, "writes")
            parameters[name].copy_(values)
        for name, mask in plan.masks.items():
            _require_fit(parameters, name, mask, "mask")
            parameters[name].masked_fill_(~mask.to(parameters[name].device), 0)
    return changed


def _require_fit(parameters: Mapping[str, Parameter], name: str, values: Tensor, what: str) -> None:
    if name not in parameters:
        raise PlanError(WHO, f"{what} for a parameter that the model lacks", "one of its parameters", name)
    if values.shape != parameters[name].shape:
        found, expected = tuple(values.shape), tuple(parameters[name].shape)
        raise PlanError(WHO, f"{what} of shape {found}", f"{expected}, the parameter's", name)


def current_masks(plans: Sequence[object]) -> dict[str, Tensor]:
    """What all mask plans together keep, in the shapes that the channel plans among them left.

    Args:
        plans: in the order they were applied; other kinds are ignored.
    Returns:
        parameter name -> bool on the CPU, True = kept.
    Raises:
        PlanError: masks of different shapes for one parameter.
    """
    masks: dict[str, Tensor] = {}
    for plan in plans:
        if isinstance(plan, MaskPlan):
            for name, mask in plan.masks.items():
                mask = mask.cpu()
                if name in masks and masks[name].shape != mask.shape:
                    found, expected = tuple(mask.shape), tuple(masks[name].shape)
                    raise PlanError(WHO, f"mask of shape {found}", f"{expected}, as earlier plans left it", name)
                masks[name] = mask & masks[name] if name in masks else mask
        elif isinstance(plan, ChannelPlan):
            for name in masks.keys() & plan.kept.keys():
                for dim, index in plan.kept[name].items():
                    masks[name] = masks[name].index_select(dim, index.cpu())
    return masks


class KeepPruned:
    """Holds pruned weights at zero after every step of an optimizer until `remove`; also a context manager."""

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor], optimizer: Optimizer) -> None:
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for name, mask in masks.items():
            _require_fit(parameters, name, mask, "mask")
        self._pruned = [(parameters[name], ~mask.to(parameters[name].device)) for name, mask in masks.items()]
        self._hook = optimizer.register_step_post_hook(lambda *_: self._apply())
        self._apply()

    @torch.no_grad()
    def _apply(self) -> None:
        for parameter, pruned in self._pruned:
            parameter.masked_fill_(pruned, 0)

    def remove(self) -> None:
        """Ends it; the weights are zero a last time."""
        self._apply()
        self._hook.remove()

    def __enter__(self) -> KeepPruned:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def keep_pruned(model: nn.Module, plans: Sequence[object], optimizer: Optimizer) -> KeepPruned:
    """Keeps what `plans` pruned at zero through training, whatever the optimizer and however old its state.

    The masks are applied now and after each `optimizer.step()`; the model itself carries nothing: its parameters keep
    their names, and it can be copied and saved at any time. A copy is not held, nor are parameters that others replace
    (`load_state_dict(..., assign=True)`).

    Args:
        plans: all plans so far, in the order they were applied; channel plans cut earlier masks down.
    Raises:
        PlanError: no mask among the plans, or one that does not fit the model.
    Example:
        >>> model = nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with keep_pruned(model, [MaskPlan({"weight": torch.tensor([[False, True]])})], optimizer):
        ...     model(torch.ones(1, 2)).sum().backward()
        ...     _ = optimizer.step()
        >>> model.weight[0, 0].item()
        0.0
    """
    masks = current_masks(plans)
    if not masks:
        raise PlanError(WHO, f"{len(plans)} plans without a mask", "at least one MaskPlan", "keep_pruned")
    return KeepPruned(model, masks, optimizer)
