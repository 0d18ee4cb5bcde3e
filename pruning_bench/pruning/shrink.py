"""Physical removal of channels: smaller tensors under the same names, their dense twin, and the way back.

Everything here returns a new model; `state_dict` names, `requires_grad` and training flags are those of the given one.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from pruning_bench.errors import PlanError
from pruning_bench.pruning.contract import ChannelPlan
from pruning_bench.pruning.masks import current_masks

WHO = "channels"
_PER_CHANNEL = ("weight", "bias", "running_mean", "running_var")


def apply_channels(model: nn.Module, plan: ChannelPlan) -> nn.Module:
    """A copy of `model` without the channels that the plan removes.

    Its class is the same; its parameters, buffers and sizes (`out_channels`, `num_features`, ...) are smaller.

    Raises:
        PlanError: the plan does not fit the model.
    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> kept = torch.tensor([0, 2])
        >>> apply_channels(model, ChannelPlan({"0.weight": {0: kept}, "0.bias": {0: kept}, "2.weight": {1: kept}}))
        Sequential(
          (0): Linear(in_features=2, out_features=2, bias=True)
          (1): ReLU()
          (2): Linear(in_features=2, out_features=1, bias=True)
        )
    """
    check_fits(model, plan)
    tensors = _tensors(model)
    smaller: dict[int, Tensor] = {}
    for name in plan.kept.keys() | plan.writes.keys():
        tensor = tensors[name]
        values = plan.writes[name].to(tensor).clone() if name in plan.writes else take(tensor.detach(), plan.kept[name])
        is_parameter = isinstance(tensor, nn.Parameter)
        smaller[id(tensor)] = nn.Parameter(values, tensor.requires_grad) if is_parameter else values
    changed = {id(tensor) for tensor in smaller.values()}
    small = copy.deepcopy(model, dict(smaller))  # a memo: the large tensors are never copied, and tied ones stay tied
    for path, module in small.named_modules():
        if any(id(tensor) in changed for tensor in _own(module).values()):
            _update_sizes(module, path)
    return small


def zero_channels(model: nn.Module, plan: ChannelPlan) -> nn.Module:
    """The masked twin of `apply_channels(model, plan)`: dense shapes, everything that the plan removes is zero.

    A removed running variance is one, so that the removed channel of a batch norm gives exactly zero.

    Raises:
        PlanError: the plan does not fit the model.
    """
    check_fits(model, plan)
    twin = copy.deepcopy(model)
    for name, tensor in _tensors(twin).items():
        kept = plan.kept.get(name, {})
        if name in plan.writes:
            tensor.data = _embed(plan.writes[name].to(tensor), kept, tensor.shape, _empty_value(name))
        for dim, index in kept.items():
            gone = torch.ones(tensor.shape[dim], dtype=torch.bool).index_fill(0, index.cpu(), False)
            tensor.data.index_fill_(dim, gone.nonzero().squeeze(1).to(tensor.device), _empty_value(name))
    return twin


def _empty_value(name: str) -> float:
    return float(name.rpartition(".")[2] == "running_var")


def expand(shrunk: nn.Module, dense: nn.Module, plans: Sequence[object]) -> nn.Module:
    """A copy of `dense` that holds the weights of `shrunk` where the plans kept them and zero everywhere else.

    Args:
        shrunk: what the plans, applied in order to a model of the shapes of `dense`, and any training left.
        plans: all plans in the order they were applied; others than mask and channel plans are ignored.
    Raises:
        PlanError: plans and models do not fit together.
    """
    twin = copy.deepcopy(dense)
    kept = compose([plan for plan in plans if isinstance(plan, ChannelPlan)]).kept
    masks = current_masks(plans)
    small = _tensors(shrunk)
    with torch.no_grad():
        for name, tensor in first_named(twin).items():
            values = small[name].detach() if name in small else None
            index = kept.get(name, {})
            expected = tuple(len(index[dim]) if dim in index else size for dim, size in enumerate(tensor.shape))
            if values is None or tuple(values.shape) != expected:
                found = "missing" if values is None else f"of shape {tuple(values.shape)}"
                raise PlanError(WHO, f"a tensor {found}", f"of shape {expected}, as the plans left it", name)
            if name in masks:
                values = values.masked_fill(~masks[name].to(values.device), 0)
            tensor.data = _embed(values, index, tensor.shape, _empty_value(name))
    return twin


def _embed(values: Tensor, kept: Mapping[int, Tensor], shape: torch.Size, fill: float) -> Tensor:
    """A tensor of `shape` with `values` at the kept indices and `fill` elsewhere."""
    if not kept:
        return values.clone()
    full = values.new_full(shape, fill)
    index = [kept.get(dim, torch.arange(size)).to(values.device) for dim, size in enumerate(shape)]
    full[torch.meshgrid(*index, indexing="ij")] = values
    return full


def compose(plans: Sequence[ChannelPlan]) -> ChannelPlan:
    """One plan that keeps what all of them, applied one after the other, keep.

    Example:
        >>> first = ChannelPlan({"w": {0: torch.tensor([0, 2, 3])}})
        >>> second = ChannelPlan({"w": {0: torch.tensor([1, 2])}})
        >>> compose([first, second]).kept
        {'w': {0: tensor([2, 3])}}
    """
    kept: dict[str, dict[int, Tensor]] = {}
    for plan in plans:
        for name, dims in plan.kept.items():
            for dim, index in dims.items():
                before = kept.setdefault(name, {}).get(dim)
                if before is not None and len(index) and int(index.max()) >= len(before):
                    raise PlanError(
                        WHO, f"index {int(index.max())}", f"below the {len(before)} kept before", f"{name}, {dim}"
                    )
                kept[name][dim] = index if before is None else before[index]
    return ChannelPlan(kept, exact=all(plan.exact for plan in plans))


def resize_to(model: nn.Module, shapes: Mapping[str, Sequence[int]]) -> nn.Module:
    """A copy of a dense model with the shapes of a channel-pruned `state_dict`; values are the first of each dimension.

    Args:
        shapes: tensor name -> shape, for every entry of the model's `state_dict`.
    Raises:
        PlanError: names differ, a dimension is larger than in the model or empty, or a module's tensors disagree.
    Example:
        >>> resize_to(nn.Linear(3, 2), {"weight": [1, 2], "bias": [1]})
        Linear(in_features=2, out_features=1, bias=True)
    """
    dense = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    for name in sorted(dense.keys() ^ shapes.keys()):
        raise PlanError(WHO, "missing" if name in dense else "unknown", "the tensors of the model, by name", name)
    kept: dict[str, dict[int, Tensor]] = {}
    for name, shape in shapes.items():
        old = tuple(dense[name].shape)
        if len(shape) != len(old) or (
            any(not 0 < new <= size for new, size in zip(shape, old, strict=True)) and 0 not in old
        ):
            raise PlanError(WHO, f"shape {tuple(shape)}", f"between 1 and {old} in each dimension", name)
        if tuple(shape) != old:
            kept[name] = {
                dim: torch.arange(new) for dim, (new, size) in enumerate(zip(shape, old, strict=True)) if new != size
            }
    return apply_channels(model, ChannelPlan(kept))


def take(tensor: Tensor, kept: Mapping[int, Tensor]) -> Tensor:
    """The entries of a tensor at the kept indices of each dimension; a new tensor."""
    for dim, index in kept.items():
        tensor = tensor.index_select(dim, index.to(tensor.device))
    return tensor.clone() if not kept else tensor


def check_fits(model: nn.Module, plan: ChannelPlan) -> None:
    """Raises `PlanError` unless every tensor of the plan is in the model and its indices are sorted and in range."""
    tensors = _tensors(model)
    for name in [*plan.kept, *plan.writes]:
        if name not in tensors:
            raise PlanError(WHO, "no such tensor in the model", "a parameter or buffer", name)
    for name, dims in plan.kept.items():
        for dim, index in dims.items():
            where, shape = f"{name}, dimension {dim}", tuple(tensors[name].shape)
            if not 0 <= dim < len(shape):
                raise PlanError(WHO, f"a tensor of shape {shape}", "one with that dimension", where)
            if index.dtype != torch.int64 or index.dim() != 1 or not len(index) or bool((index.diff() <= 0).any()):
                raise PlanError(
                    WHO, "indices out of order, repeated or none", "sorted int64 indices, at least one", where
                )
            if int(index[0]) < 0 or int(index[-1]) >= shape[dim]:
                raise PlanError(WHO, f"indices {int(index[0])}..{int(index[-1])}", f"in 0..{shape[dim] - 1}", where)
    for name, values in plan.writes.items():
        kept = plan.kept.get(name, {})
        expected = tuple(len(kept[dim]) if dim in kept else size for dim, size in enumerate(tensors[name].shape))
        if tuple(values.shape) != expected:
            raise PlanError(WHO, f"writes of shape {tuple(values.shape)}", f"{expected}, the kept shape", name)


def first_named(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, each under the first of its names alone: the one that plans call it by."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under all their names."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def _update_sizes(module: nn.Module, path: str) -> None:
    """The attributes of torch's own layers that repeat the sizes of their tensors."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
        made = module.out_features
    elif isinstance(module, _ConvNd):
        made = _update_convolution(module, path)
    elif isinstance(module, _NormBase):
        made = module.num_features = len(next(t for t in _own(module).values() if t.dim() == 1))
    elif isinstance(module, nn.GroupNorm):
        made = _update_group_norm(module, path)
    elif isinstance(module, nn.PReLU):
        made = module.num_parameters = len(module.weight)
    else:
        return
    for name, tensor in _own(module).items():
        if name in _PER_CHANNEL and tensor.dim() == 1 and len(tensor) != made:
            raise PlanError(WHO, f"{name} of {len(tensor)} channels", f"{made}, as the rest of the layer", path)


def _update_convolution(module: _ConvNd, path: str) -> int:
    """Sizes and groups of a convolution; the number of channels that it makes."""
    out, inner = module.weight.shape[:2]
    if isinstance(module, _ConvTransposeNd):
        out, inner = inner * module.groups, out
    else:
        # Groups keep their size, or all of them lose the same share of what they read and make.
        read_before = module.in_channels // module.groups
        per_group = max(1, module.out_channels // module.groups * inner // read_before)
        if out % per_group and module.groups > 1:
            raise PlanError(WHO, f"{out} output channels", f"whole groups of {per_group}", path)
        module.groups = out // per_group if module.groups > 1 else 1
        inner *= module.groups
    module.out_channels, module.in_channels = out, inner
    return out


def _update_group_norm(module: nn.GroupNorm, path: str) -> int:
    """Groups and channels of a group norm, whose groups keep their size; the number of its channels."""
    made, per_group = len(module.weight), module.num_channels // module.num_groups
    if made % per_group:
        raise PlanError(WHO, f"{made} channels", f"whole groups of {per_group}", path)
    module.num_groups, module.num_channels = made // per_group, made
    return made


def _own(module: nn.Module) -> dict[str, Tensor]:
    return {name: t for name, t in [*module._parameters.items(), *module._buffers.items()] if t is not None}
