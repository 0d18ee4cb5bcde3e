"""Masks of single weights: what is prunable, how many go, which, and how they stay gone.

Every convention of sparsity lives here: `pruned_count` rounds, `keep_largest` orders ties. Nobody else multiplies by a
sparsity.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from fractions import Fraction
from types import TracebackType
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.modules.conv import _ConvNd
from torch.optim import Optimizer

from pruning_bench import graphs
from pruning_bench.errors import LevelError, ModelError, PlanError
from pruning_bench.pruning.contract import ChannelPlan, MaskPlan

WHO = "masks"
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


def _weights(module: nn.Module) -> list[Parameter]:
    names: tuple[str, ...] = ("weight",) if isinstance(module, (nn.Linear, _ConvNd)) else ()
    if isinstance(module, nn.MultiheadAttention):
        names = _PACKED
    return [weight for name in names if isinstance(weight := module._parameters.get(name), Parameter)]


def output_layers(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> set[str]:
    """Weights of the layers whose output reaches the model's output through no other layer with a weight.

    Raises:
        ModelError: the model cannot be exported.
    """
    program = graphs.export(model, example_inputs)
    tensors = graphs.tensor_names(program)
    found: set[str] = set()
    waiting, seen = graphs.output_nodes(program), set()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if graphs.operator(node) == "aten.linear" or graphs.operator(node).startswith("aten.conv"):
            weights = [tensors[source.name] for source in node.all_input_nodes[1:2] if source.name in tensors]
            if weights:
                found.update(weights)
                continue
        waiting.extend(node.all_input_nodes)
    return found


def require_finite(name: str, values: Tensor, what: str = "weights") -> None:
    """Raises `ModelError` naming the tensor if it holds NaN or infinity."""
    if not bool(torch.isfinite(values).all()):
        bad = int((~torch.isfinite(values)).sum())
        raise ModelError(WHO, f"{bad} of {values.numel()} {what} NaN or infinite", "all finite", name)


def pruned_count(numel: int, sparsity: float) -> int:
    """How many of `numel` weights a sparsity removes: the nearest whole number to `numel * sparsity`, halves to even.

    The product is exact in the decimal digits of the sparsity, so that 0.29 of 100 is 29; it never falls when the
    sparsity rises.

    Raises:
        LevelError: sparsity outside [0, 1).
    Example:
        >>> pruned_count(100, 0.29), pruned_count(5, 0.5), pruned_count(1, 0.9)
        (29, 2, 1)
    """
    if not 0 <= sparsity < 1:
        raise LevelError(WHO, f"sparsity {sparsity}", "in [0, 1)")
    return round(numel * Fraction(repr(float(sparsity))))


def keep_largest(scores: Tensor, sparsity: float) -> Tensor:
    """Keeps all but the `pruned_count` smallest scores; of equal scores, those that stand first go first.

    Args:
        scores: any shape, finite.
        sparsity: in [0, 1).
    Returns:
        bool, shape of `scores`, True = kept.
    Raises:
        ModelError: NaN or infinite scores.
        LevelError: sparsity outside [0, 1).
    Example:
        >>> keep_largest(torch.tensor([0.0, 3.0, 0.0, 0.0]), 0.5)
        tensor([False,  True, False,  True])
    """
    return select_global({"scores": scores}, sparsity)["scores"]


def select_global(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """`keep_largest` over all tensors as if they were one, in the order of the mapping.

    Raises:
        ModelError: NaN or infinite scores; names the tensor.
    Example:
        >>> select_global({"a": torch.tensor([1.0, 4.0]), "b": torch.tensor([2.0, 3.0])}, 0.5)
        {'a': tensor([False,  True]), 'b': tensor([False,  True])}
    """
    for name, values in scores.items():
        require_finite(name, values, "scores")
    flat = torch.cat([values.detach().reshape(-1) for values in scores.values()])
    mask = _keep(flat, pruned_count(flat.numel(), sparsity))
    parts = torch.split(mask, [values.numel() for values in scores.values()])
    return {name: part.view(scores[name].shape) for name, part in zip(scores, parts, strict=True)}


def choose_masks(
    scores: Mapping[str, Tensor], sparsity: float, scope: Literal["layer", "global"], earlier: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Keeps all but the `sparsity` smallest scores of those that earlier masks left, together or tensor by tensor.

    Steps compound: five times 0.37 leave 0.63 ** 5, a tenth.

    Args:
        scores: name -> scores, finite where nothing was pruned before.
        earlier: name -> bool mask, True = kept so far; names that are missing are whole.
    Example:
        >>> choose_masks({"a": torch.tensor([0.0, 1.0, 2.0])}, 0.5, "global", {"a": torch.tensor([False, True, True])})
        {'a': tensor([False, False,  True])}
    """
    kept = {name: earlier.get(name, torch.ones(values.shape, dtype=torch.bool)) for name, values in scores.items()}
    left = {name: values.detach().cpu()[kept[name]] for name, values in scores.items()}
    if scope == "global":
        chosen = select_global(left, sparsity)
    else:
        chosen = {name: keep_largest(values, sparsity) for name, values in left.items()}
    return {name: kept[name].masked_scatter(kept[name], chosen[name]) for name in scores}


def _keep(flat: Tensor, count: int) -> Tensor:
    """Mask of all but the `count` smallest of a vector, in linear time: a threshold, then its ties by position."""
    if count == 0:
        return torch.ones_like(flat, dtype=torch.bool)
    threshold = torch.kthvalue(flat, count).values
    mask = flat > threshold
    ties = (flat == threshold).nonzero().squeeze(1)
    removed = flat.numel() - len(ties) - int(mask.sum())  # those below the threshold
    mask[ties[count - removed :]] = True
    return mask


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
    their names, and it can be copied and saved at any time.

    Args:
        plans: all plans so far, in the order they were applied; channel plans cut earlier masks down.
    Raises:
        PlanError: a mask does not fit the model.
    Example:
        >>> model = nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with keep_pruned(model, [MaskPlan({"weight": torch.tensor([[False, True]])})], optimizer):
        ...     model(torch.ones(1, 2)).sum().backward()
        ...     _ = optimizer.step()
        >>> model.weight[0, 0].item()
        0.0
    """
    return KeepPruned(model, current_masks(plans), optimizer)
