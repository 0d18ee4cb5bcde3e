"""Where the canonical plan quantizes: names of values in the exported graph of a model whose batch norm is folded.

A value gets a point when it is

* the output of a convolution, a linear layer, an addition of two tensors or an average pool, or
* anything else that one of these reads, such as the model's input.

An addition that a normalization or a softmax reads, or that reads an embedding or (part of) a parameter, such as a
learned position, stays in float: around it nothing runs on integers. So do embeddings themselves.

The point stands after a clamp from zero (ReLU, ReLU6) that follows directly and alone. Operators that only move or
select values (max pool, flatten, dropout, ReLU on quantized values ...) have no point: they pass the parameters of
their input on. A linear layer that gives the model's output has none either: integer kernels can write float there, and
logits rounded to 8 bits would tie. A point is named after the value's place in the model's own code
(`graphs.readable_names`): "input", "stages.0.0.conv1.conv2d", "stages.0.0.add".
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.fx import Node

from pruning_bench.errors import ModelError
from pruning_bench.graphs import input_nodes, operator, output_nodes, place, readable_names, tensor_names
from pruning_bench.quantization.fold import CONVOLUTIONS, LAYERS

WHO = "quantization"
ADDS = frozenset({"aten.add", "aten.add_"})
POOLS = frozenset({"aten.adaptive_avg_pool1d", "aten.adaptive_avg_pool2d", "aten.avg_pool1d", "aten.avg_pool2d"})
NORM = "aten.layer_norm"
FLOAT_READERS = frozenset({NORM, "aten.rms_norm", "aten.softmax", "aten._softmax", "aten._safe_softmax"})
EMBEDDINGS = frozenset({"aten.embedding", "aten.embedding_bag"})
RELUS = frozenset({"aten.relu", "aten.relu_"})
CLAMPS = {"aten.hardtanh": (-1.0, 1.0), "aten.hardtanh_": (-1.0, 1.0), "aten.clamp": (None, None)}  # their own ends
CLAMPS |= {"aten.clamp_": (None, None), "aten.relu6": (0.0, 6.0), "aten.relu6_": (0.0, 6.0)}
SHAPES = frozenset({"aten.view", "aten.reshape", "aten.flatten", "aten.squeeze", "aten.unsqueeze"})
MOVES = frozenset({"aten.max_pool1d", "aten.max_pool2d", "aten.permute", "aten.transpose", "aten.clone"})
CARRIES = RELUS | SHAPES | MOVES | {"aten.contiguous", "aten.dropout", "aten.dropout_", "aten.feature_dropout"}
PARTS = frozenset({"aten.alias", "aten.slice", "aten.select", "aten.expand"})
SEVERAL = frozenset({"aten.chunk", "aten.split", "aten.split_with_sizes", "aten.unbind", "getitem"})
ALIASES = PARTS | SHAPES | SEVERAL | {"aten.permute", "aten.transpose"}  # they may give a part of what they read


@dataclass(frozen=True)
class Points:
    """The canonical placement in one graph; all keys and values but names and weights are names of graph nodes.

    Args:
        values: point name -> the node whose value is quantized.
        producers: node of `values` that is a clamp from zero -> the layer or addition before it, whose point it is.
        carried: node that passes quantized values on -> the node of `values` that it has them from.
        layers: convolution or linear -> parameter name of its weight.
        biases: those of them whose bias is a parameter -> its name.
        tops: node of `producers` -> the highest value that it gives, inf for a ReLU.
    """

    values: Mapping[str, str]
    producers: Mapping[str, str]
    carried: Mapping[str, str]
    layers: Mapping[str, str]
    biases: Mapping[str, str] = field(default_factory=dict)
    tops: Mapping[str, float] = field(default_factory=dict)

    def top_behind(self, node: str) -> float | None:
        """Where the values of a layer or addition are clamped behind it, from zero; None where they are not."""
        return next((self.tops[clamp] for clamp, producer in self.producers.items() if producer == node), None)

    def name_at(self, node: str) -> str | None:
        """The point that says how the value of `node` is quantized, or None."""
        source = self.carried.get(node, node)
        return next((name for name, place in self.values.items() if place == source), None)


def find_points(program: ExportedProgram) -> Points:
    """The points of an exported model (see the module's text), in the order of its graph.

    Example:
        >>> import torch
        >>> from pruning_bench.graphs import export
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> points = find_points(export(model, (torch.zeros(2, 3),)))
        >>> dict(points.values)
        {'input': 'input', '0.linear': 'relu'}
        >>> dict(points.layers)
        {'linear': '0.weight', 'linear_1': '2.weight'}
    """
    tensors, names = tensor_names(program), readable_names(program)
    parameters = {node: name for node, name in tensors.items() if name in program.graph_signature.parameters}
    given = set(program.graph_signature.user_inputs)
    layers = {node: weight for node in program.graph.nodes if (weight := _weight_of(node, parameters, given))}
    users = [
        node for node in program.graph.nodes if node in layers or _is_add(node, tensors) or operator(node) in POOLS
    ]
    outputs = set(output_nodes(program))
    placed: dict[Node, str] = {}
    producers: dict[str, str] = {}
    tops: dict[str, float] = {}
    for node in users:
        if operator(node) == "aten.linear" and _only_reaches(node, outputs):
            continue
        clamp, top = _following_clamp(node)
        placed[clamp] = names[node]
        if top is not None:
            producers[clamp.name], tops[clamp.name] = node.name, top
    for node in users:
        for value in _reads(node, node in layers):
            if not _is_constant(source := _source(value, placed), tensors):
                placed.setdefault(source, names[source])
    order = [node for node in program.graph.nodes if node in placed]
    carriers = [node for node in program.graph.nodes if _carries(node) and node not in placed]
    return Points(
        values={placed[node]: node.name for node in order},
        producers=producers,
        carried={node.name: source.name for node in carriers if (source := _source(node, placed)) in placed},
        layers={node.name: weight for node, weight in layers.items()},
        biases={node.name: bias for node in layers if (bias := _bias_of(node, parameters))},
        tops=tops,
    )


def summed(program: ExportedProgram, points: Points) -> set[str]:
    """Points of the convolutions that can take the addition behind them, and write the sum over its other operand.

    An addition alone reads such a convolution, or the clamp from zero behind it; it does not read the other operand
    itself; what else reads that is done before the addition; both have one shape. Of two it is the first.
    """
    found, tensors = set(), tensor_names(program)
    layers = {node.name: node for node in program.graph.nodes if node.name in points.layers}
    for node in program.graph.nodes:
        if _is_add(node, tensors):
            for value, other in zip(node.args, reversed(node.args), strict=True):
                layer = layers.get(points.producers.get(value.name, value.name))
                if layer is not None and list(value.users) == [node] and _writes_over(layer, other, node):
                    found.add(points.name_at(value.name))
                    break
    return {name for name in found if name is not None}


def _writes_over(layer: Node, other: Node, add: Node) -> bool:
    """Is it a convolution that can write its sums with `other` over that operand?"""
    if operator(layer) not in CONVOLUTIONS or layer.args[0] is other:
        return False
    return layer.meta["val"].shape == other.meta["val"].shape and other.users.keys() <= {add, *_before(add)}


def _before(node: Node) -> set[Node]:
    """All that a node depends on."""
    found, waiting = set[Node](), [node]
    while waiting:
        new = set(waiting.pop().all_input_nodes) - found
        found |= new
        waiting += new
    return found


def sums_of_values(program: ExportedProgram) -> set[str]:
    """Additions of two float tensors that both depend on the model's inputs."""
    changing: set[Node] = set(input_nodes(program))
    for node in program.graph.nodes:
        if not changing.isdisjoint(node.all_input_nodes):
            changing.add(node)
    return {node.name for node in program.graph.nodes if is_sum(node) and changing.issuperset(node.args)}


def check_writes(program: ExportedProgram) -> None:
    """Refuses operators that change a view of a value which others read: a quantizer behind it would cut them off.

    Raises:
        ModelError: there is one, such as `y.view(-1).relu_()` before `conv(y)`.
    """
    order = {node: at for at, node in enumerate(program.graph.nodes)}
    for node in program.graph.nodes:
        base = node.args[0] if operator(node).endswith("_") and node.args else None
        seen = {node}
        while isinstance(base, Node) and operator(base) in ALIASES and base.all_input_nodes:
            seen.add(base)
            base = base.all_input_nodes[0]
        if isinstance(base, Node) and len(seen) > 1 and any(order[user] > order[node] for user in base.users):
            found = f"{operator(node)} on a view, which changes what others read of the whole"
            raise ModelError(WHO, found, f"{operator(node).rstrip('_')}, whose result they read", place(node))


def runnable(program: ExportedProgram) -> tuple[fx.GraphModule, dict[str, Node]]:
    """The program as a module with a graph that can be edited, and the node of that graph for each name in the program.

    Only inputs and operators are matched, by their order: torch may rename nodes on the way.
    """
    module = program.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    for node in list(module.graph.nodes):
        if node.op == "call_module" and node.target == "_guards_fn":
            module.graph.erase_node(node)
    before = [*input_nodes(program), *(n for n in program.graph.nodes if n.op == "call_function")]
    after = [n for op in ("placeholder", "call_function") for n in module.graph.nodes if n.op == op]
    return module, {old.name: new for old, new in zip(before, after, strict=True)}


def _weight_of(node: Node, parameters: Mapping[str, str], given: Collection[object]) -> str | None:
    """Parameter name of a layer's weight; None for other nodes, and where weight or bias is computed or an input."""
    if operator(node) not in LAYERS or not isinstance(node.args[1], Node):
        return None
    bias = node.args[2] if len(node.args) > 2 else None
    held = bias is None or (isinstance(bias, Node) and bias.op == "placeholder" and bias.name not in given)
    return parameters.get(node.args[1].name) if held else None


def _bias_of(node: Node, parameters: Mapping[str, str]) -> str | None:
    """The same of a layer's bias; None without one."""
    bias = node.args[2] if len(node.args) > 2 else None
    return parameters.get(bias.name) if isinstance(bias, Node) else None


def _is_add(node: Node, tensors: Mapping[str, str]) -> bool:
    """Is it the plain addition of two computed float tensors, among operators that run on integers?"""
    constant = any(_is_constant(value, tensors) for value in node.all_input_nodes)
    return is_sum(node) and not _among_floats(node) and not constant


def is_sum(node: Node) -> bool:
    """Does it add two float tensors, neither of them multiplied by a number first?"""
    return operator(node) in ADDS and not node.kwargs and len(node.args) == 2 and all(map(_is_float, node.args))


def _is_constant(node: Node, tensors: Mapping[str, str]) -> bool:
    """Is it a parameter or buffer, or a part or another view of one?"""
    if operator(node) in CARRIES | PARTS:
        return all(_is_constant(value, tensors) for value in node.all_input_nodes[:1])
    return node.name in tensors


def _among_floats(node: Node) -> bool:
    reads = any(operator(source) in EMBEDDINGS for source in node.all_input_nodes)
    return reads or any(operator(user) in FLOAT_READERS for user in node.users)


def _is_float(value: object) -> bool:
    held = value.meta.get("val") if isinstance(value, Node) else None
    return isinstance(held, Tensor) and held.is_floating_point()


def _reads(node: Node, is_layer: bool) -> Iterator[Node]:
    """The values that must be quantized for `node` to run on integers."""
    count = 2 if not is_layer and operator(node) in ADDS else 1
    yield from (value for value in node.args[:count] if isinstance(value, Node))


def _carries(node: Node) -> bool:
    return operator(node) in CARRIES and _is_float(node)


def _source(node: Node, placed: Mapping[Node, str]) -> Node:
    """The node from which `node` has its values: itself, or back through operators that pass them on."""
    while node not in placed and _carries(node):
        node = node.all_input_nodes[0]
    return node


def _following_clamp(node: Node) -> tuple[Node, float | None]:
    """The clamp from zero that alone reads the node, and its upper end; the node itself and None without one."""
    users = list(node.users)
    top = top_of(users[0]) if len(users) == 1 else None
    return (node, None) if top is None else (users[0], top)


def top_of(node: Node) -> float | None:
    """The upper end of a clamp from zero: inf for a ReLU, 6 for a ReLU6; None for every other operator.

    Example:
        >>> import torch
        >>> from pruning_bench.graphs import export
        >>> model = torch.nn.Sequential(torch.nn.ReLU6(), torch.nn.ReLU(), torch.nn.Hardtanh())
        >>> [top_of(node) for node in export(model, (torch.zeros(2, 3),)).graph.nodes]
        [None, 6.0, inf, None, None]
    """
    name = operator(node)
    if name in RELUS:
        return math.inf
    if name not in CLAMPS:
        return None
    given: dict[str, Any] = dict(zip(("min", "max"), CLAMPS[name], strict=True))
    given |= zip(("min", "max"), node.args[1:], strict=False)
    given |= {key.removesuffix("_val"): value for key, value in node.kwargs.items()}
    low, high = given["min"], math.inf if given["max"] is None else given["max"]
    is_clamp = isinstance(low, (int, float)) and isinstance(high, (int, float)) and low == 0 < high
    return float(high) if is_clamp else None


def _only_reaches(node: Node, outputs: set[Node]) -> bool:
    """Is the node's value the model's output, through operators that pass values on at most?"""
    readers = [user for user in node.users if user.op != "output"]
    if not readers:
        return node in outputs
    return node not in outputs and all(_carries(user) and _only_reaches(user, outputs) for user in readers)
