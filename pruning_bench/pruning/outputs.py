"""Which layers make a model's output: followed through one forward pass without values, or else its exported graph."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from pruning_bench import graphs

_ATEN = torch.ops.aten
# Where an operator's weight may stand among its arguments.
_FACTORS = {
    _ATEN.mm: (0, 1),
    _ATEN.bmm: (0, 1),
    _ATEN.addmm: (1, 2),
    _ATEN.baddbmm: (1, 2),
    _ATEN.convolution: (1,),
}


def output_layers(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> set[str]:
    """Weights of the layers whose output reaches the model's output through no other layer with a weight.

    Raises:
        ModelError: the model neither runs on tensors without values nor can be exported.
    Example:
        >>> output_layers(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), (torch.zeros(1, 3),))
        {'2.weight'}
    """
    try:
        return _followed(model, example_inputs)
    except Exception:  # whatever a forward pass on meta tensors may raise; the export says it in words
        return _in_graph(model, example_inputs)


class _Last(TorchDispatchMode):
    """Follows for every storage which weights it last went through; views and changes in place share a storage."""

    def __init__(self, weights: dict[int, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.weights = weights
        self.last: dict[int, frozenset[str]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is _ATEN.native_batch_norm.default:  # what torch does without values costs more than all the rest
            out = (torch.empty_like(args[0]), *(x.new_empty(0) for x in (args[0], args[0])))
        else:
            out = func(*args, **(kwargs or {}))
        used = [_storage(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        made = [_storage(x) for x in tree_leaves(out) if isinstance(x, Tensor)]
        factors = [_storage(args[at]) for at in _FACTORS.get(func.overloadpacket, ())]
        found = frozenset(self.weights[x] for x in factors if x in self.weights)
        if not found:
            found = frozenset().union(*(self.last.get(x, frozenset()) for x in used))
        for storage in made:
            if storage not in self.weights:  # a view of a weight is the weight
                self.last[storage] = found | self.last.get(storage, frozenset()) if storage in used else found
        return out


def _followed(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> set[str]:
    """By a forward pass of a copy whose parameters and buffers hold no values."""
    memo: dict[int, Any] = {}
    weights: dict[int, str] = {}
    for name, parameter in model.named_parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
        weights[_storage(memo[id(parameter)])] = name
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.detach().to("meta")
    empty = copy.deepcopy(model, memo).eval()
    inputs = tree_map(lambda x: x.to("meta") if isinstance(x, Tensor) else x, example_inputs)
    follow = _Last(weights)
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), torch.device("meta"), follow:
            outputs = [x for x in tree_leaves(empty(*inputs)) if isinstance(x, Tensor)]
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    if not outputs:
        raise TypeError("no tensor in the output")
    return set().union(*(follow.last.get(_storage(x), frozenset()) for x in outputs))


def _storage(tensor: Tensor) -> int:
    """The same for a tensor and its views."""
    return int(tensor.untyped_storage()._cdata)


def _in_graph(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> set[str]:
    """By walking back from the outputs of the exported graph."""
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
