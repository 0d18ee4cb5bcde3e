"""Batch norm folded into the convolution or linear layer before it.

    y = gamma * (W x + b - mean) / sqrt(var + eps) + beta
      = (W * k) x + (b - mean) * k + beta,     k = gamma / sqrt(var + eps), per output channel

Jacob et al., CVPR 2018, arXiv 1712.05877, section 3.2.
"""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node

from pruning_bench.graphs import export, operator, tensor_names

CONVOLUTIONS = frozenset({"aten.conv1d", "aten.conv2d", "aten.conv3d"})
LAYERS = CONVOLUTIONS | {"aten.linear"}
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)  # a class derived from one may do more
PLAIN = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)  # whose forward reads a bias as soon as there is one


def fold_batch_norms(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> nn.Module:
    """A copy of `model` in eval mode that computes the same, with its batch norms folded and replaced by `nn.Identity`.

    Folded is a batch norm module of torch's own, without hooks, whose only input is a convolution's (or, on [N, C], a
    linear layer's) only output, when the layer reads the bias that it has; every other one stays as it is. A layer of
    torch's own without bias gets one.

    Args:
        model: any module that exports; never changed.
        example_inputs: positional arguments of its forward.
    Raises:
        ModelError: it cannot be exported.
    Example:
        >>> model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.BatchNorm1d(2))
        >>> folded = fold_batch_norms(model, (torch.zeros(2, 3),))
        >>> folded[1], sorted(folded.state_dict())
        (Identity(), ['0.bias', '0.weight'])
    """
    folded = copy.deepcopy(model).eval()
    if not any(type(module) in NORMS for module in folded.modules()):
        return folded
    for pair in find_pairs(export(folded, example_inputs), folded):
        _fold(folded.get_submodule(pair.layer), folded.get_submodule(pair.norm))
        parent, _, name = pair.norm.rpartition(".")
        setattr(folded.get_submodule(parent), name, nn.Identity())
    return folded


@dataclass(frozen=True)
class Pair:
    """Paths of a layer and of the batch norm that reads nothing else."""

    layer: str
    norm: str


def find_pairs(program: ExportedProgram, model: nn.Module) -> list[Pair]:
    """The batch norms that can be folded, each with its layer, in the order they run."""
    tensors = tensor_names(program)
    uses = Counter(name for node in program.graph.nodes for name in _tensors_of(node, tensors))
    pairs = []
    for node in program.graph.nodes:
        if operator(node) != "aten.batch_norm":
            continue
        source = node.args[0]
        if not _feeds_only(source, node):
            continue
        layer = tensors.get(_name(source.args[1]), "").rpartition(".")
        norm = tensors.get(_name(node.args[3]), "").rpartition(".")
        if layer[2] != "weight" or norm[2] != "running_mean":
            continue  # weights computed on the way, or statistics of the batch
        once = uses["".join(layer)] == 1 and all(
            uses[name] <= 1 for name in tensors.values() if name.startswith(norm[0] + norm[1])
        )
        bias = tensors.get(_name(source.args[2]), "?") if len(source.args) > 2 and source.args[2] is not None else ""
        if once and _is_plain(model.get_submodule(norm[0]), NORMS) and _takes_bias(model, layer[0], bias, uses):
            pairs.append(Pair(layer[0], norm[0]))
    return pairs


def _is_plain(module: nn.Module, classes: tuple[type[nn.Module], ...]) -> bool:
    """Does it do what one of these classes does, and nothing else?"""
    hooks = module._forward_hooks or module._forward_pre_hooks
    return type(module) in classes and not hooks and "forward" not in vars(module)


def _takes_bias(model: nn.Module, path: str, bias: str, uses: Counter[str]) -> bool:
    """Will the layer's forward read a new bias? `bias` is what it reads now: a name, or "" for nothing."""
    layer = model.get_submodule(path)
    own = ".".join(filter(None, (path, "bias")))
    if bias:
        return bias == own and uses[own] == 1 and isinstance(layer.bias, nn.Parameter)
    return type(layer) in PLAIN and layer.bias is None


def _feeds_only(source: object, norm: Node) -> bool:
    """Is `source` a layer whose output channels `norm` scales, and that nothing else reads?"""
    if not isinstance(source, Node) or list(source.users) != [norm]:
        return False
    return operator(source) in CONVOLUTIONS or (operator(source) == "aten.linear" and source.meta["val"].dim() == 2)


def _tensors_of(node: Node, tensors: dict[str, str]) -> list[str]:
    return [tensors[argument.name] for argument in node.all_input_nodes if argument.name in tensors]


def _name(argument: object) -> str:
    return argument.name if isinstance(argument, Node) else ""


def _fold(layer: Any, norm: Any) -> None:
    weight, bias = layer.weight, layer.bias
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    gamma = torch.ones_like(mean) if norm.weight is None else norm.weight.detach().double()
    beta = torch.zeros_like(mean) if norm.bias is None else norm.bias.detach().double()
    factor = gamma / torch.sqrt(variance + norm.eps)
    shift = -mean if bias is None else bias.detach().double() - mean
    new_weight = weight.detach().double() * factor.view(-1, *[1] * (weight.dim() - 1))
    layer.weight = nn.Parameter(new_weight.to(weight.dtype), requires_grad=weight.requires_grad)
    layer.bias = nn.Parameter((shift * factor + beta).to(weight.dtype), requires_grad=weight.requires_grad)
