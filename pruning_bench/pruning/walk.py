"""One pass over an exported graph, in which the rules of `coupling_rules` label, join and pin what must go together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node

from pruning_bench import graphs
from pruning_bench.errors import ModelError

WHO = "couplings"
Labels: TypeAlias = NDArray[np.int64]
Dimension: TypeAlias = Labels | str  # a label for every index, or the reason why this dimension keeps its size
TensorDim: TypeAlias = tuple[str, int]
Rule: TypeAlias = Callable[["Walk", Node], Any]


class Walk:
    """One pass over an exported graph; what the rules read and write.

    A rule gets the walk and a node and returns the dimensions of the node's value; on the way it calls `join` and
    `pin`. It reads operands by `argument` and their dimensions by `dims`.

    Args:
        model: whose graphs are walked; never changed.
        rules: name of an operator -> its rule.
        fixed: modules whose own code fixes sizes: what they touch is pinned.

    Attributes:
        count: how many labels there are.
        tensors: (parameter or buffer, dimension) -> the label of every index.
        edges: labels that go together, index by index.
        pins: labels that stay, and why.
        producers: (weight, dimension) that makes channels -> the size of that dimension.
        makers: node -> for `coupling_rules.contract`.
        requirements, made: see `require` and `require_made`.
    """

    def __init__(self, model: nn.Module, rules: Mapping[str, Rule], fixed: tuple[type[nn.Module], ...] = ()) -> None:
        self._rules, self._fixed = rules, fixed
        self._modules = dict(model.named_modules(remove_duplicate=False))
        self._canonical = _canonical_names(model)
        stored = model.state_dict(keep_vars=True).keys()
        self._unstored = {name for name, _ in model.named_buffers() if name not in stored}
        self._parameters = dict.fromkeys(self._canonical[name] for name, _ in model.named_parameters())
        self._names: dict[str, str] = {}
        self.count = 0
        self.tensors: dict[TensorDim, Labels] = {}
        self._values: dict[Node, Any] = {}
        self.makers: dict[Node, list[Labels] | None] = {}
        self.edges: list[tuple[Labels, Labels]] = []
        self.pins: list[tuple[Labels, str]] = []
        self.producers: dict[TensorDim, int] = {}  # with the size of the dimension
        self._reached: set[str] = set()
        self.requirements: list[tuple[Labels, Labels, int, str]] = []
        self.made: list[tuple[Labels, list[Labels], str]] = []

    def run(self, program: ExportedProgram) -> None:
        """Walks all nodes of a graph of the model in order; a further graph adds its joins and pins."""
        self._names = graphs.tensor_names(program)
        self._values = {}
        for node in program.graph.nodes:
            if node.op == "placeholder":
                self._values[node] = self._placeholder(node)
            elif node.op == "output":
                for source in node.all_input_nodes:
                    self.pin_all(source, "the model's output")
            elif isinstance(node.meta.get("val"), (Tensor, tuple, list)):
                self._values[node] = self._apply(node)

    @property
    def work(self) -> int:
        """Labels handled so far: those made, joined and pinned."""
        return self.count + sum(len(one) for one, _ in (*self.edges, *self.pins))

    def unreached(self) -> list[str]:
        """The parameters that no graph walked so far uses."""
        return [name for name in self._parameters if name not in self._reached]

    def module(self, node: Node) -> nn.Module | None:
        """The innermost module whose forward ran the node."""
        return self._modules.get(graphs.module_path(node))

    def owned(self, node: Node) -> bool:
        """Is it a parameter or buffer of the model?"""
        return node.name in self._names

    def dims(self, node: Node) -> list[Dimension]:
        """The dimensions of a node's value; of what is no tensor, none."""
        return [] if isinstance(node.meta.get("val"), (tuple, list)) else self._values.get(node, [])

    def parts(self, node: Node) -> list[list[Dimension]]:
        """The dimensions of each tensor of a node whose value is several."""
        return self._values.get(node, []) if isinstance(node.meta.get("val"), (tuple, list)) else []

    def argument(self, node: Node, name: str, default: Any = None) -> Any:
        """An operand by its name in the operator's schema."""
        for position, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
            if argument.name == name:
                return node.args[position] if position < len(node.args) else node.kwargs.get(name, default)
        return default

    def shape(self, node: Node) -> tuple[Any, ...]:
        """The shape of a node's value: ints, or torch.SymInt where it follows the batch."""
        value = node.meta.get("val")
        return tuple(value.shape) if isinstance(value, Tensor) else ()

    def fresh(self, size: int) -> Labels:
        """New labels for a dimension."""
        self.count += size
        return np.arange(self.count - size, self.count, dtype=np.int64)

    def labels(self, dimension: Dimension, size: int) -> Labels:
        """Labels of a dimension; one that keeps its size gets new ones, pinned by its reason."""
        if not isinstance(dimension, str):
            return dimension
        labels = self.fresh(size)
        self.pin(labels, dimension)
        return labels

    def join(self, one: Dimension, other: Dimension) -> Dimension:
        """The two go together, index by index; what is joined to a dimension that keeps its size keeps its own."""
        if isinstance(one, str):
            self.pin(other, one)
            return one
        if isinstance(other, str):
            self.pin(one, other)
            return other
        if one is not other:
            self.edges.append((one, other))
        return one

    def pin(self, dimension: Dimension, reason: str) -> None:
        """The dimension keeps its size."""
        if not isinstance(dimension, str):
            self.pins.append((dimension, reason))

    def pin_all(self, node: Node, reason: str) -> None:
        """All dimensions of a node's value keep their size."""
        for dims in (self.dims(node), *self.parts(node)):
            for dimension in dims:
                self.pin(dimension, reason)

    def require(self, made: Labels, source: Labels, size: int, where: str) -> None:
        """The size of `made` is computed from that of `source`: where their channels do not go together, they stay.

        Args:
            size: that of `made` in the traced model, `len(source)` times a constant.
        """
        self.requirements.append((made, source, size, f"its size follows that of other channels [{where}]"))

    def require_made(self, dimension: Dimension, options: Sequence[Sequence[Labels]], reason: str) -> None:
        """The dimension keeps its size, unless all of its channels go with those of one of the options."""
        if not isinstance(dimension, str):
            self.made.append((dimension, [np.concatenate(option) for option in options], reason))

    def produce(self, weight: Node, dim: int) -> None:
        """This dimension of a weight makes the channels that it labels."""
        if weight.name in self._names:
            self.producers[self._tensor(weight), dim] = int(self.shape(weight)[dim])

    def _tensor(self, node: Node) -> str:
        name = self._names[node.name]
        return self._canonical.get(name, name)

    def _placeholder(self, node: Node) -> list[Dimension]:
        shape = self.shape(node)
        if node.name not in self._names:
            return ["the model's input, or a constant of its code"] * len(shape)
        tensor = self._tensor(node)
        if node.users:
            self._reached.add(tensor)
        if tensor in self._unstored:
            return ["a buffer that no state_dict holds: a smaller one could not be loaded"] * len(shape)
        for dim, size in enumerate(shape):
            if size > 1 and (tensor, dim) not in self.tensors:
                self.tensors[tensor, dim] = self.fresh(size)
        return [self.tensors.get((tensor, dim), "a single channel") for dim in range(len(shape))]

    def _apply(self, node: Node) -> Any:
        several = isinstance(node.meta["val"], (tuple, list))
        owner = self.module(node)
        if isinstance(owner, self._fixed):
            reason = f"the code of {type(owner).__name__} fixes its size [{graphs.place(node)}]"
        else:
            rule = self._rules.get(graphs.operator(node))
            dims = rule(self, node) if rule is not None else None
            if dims is not None:
                for value, found in zip(node.meta["val"], dims, strict=True) if several else [(node.meta["val"], dims)]:
                    _check_sizes(value, found, node)
                return dims
            reason = f"no rule for {graphs.operator(node)} [{graphs.place(node)}]"
        for source in node.all_input_nodes:
            self.pin_all(source, reason)
        return [[reason] * value.dim() for value in node.meta["val"]] if several else [reason] * len(self.shape(node))


def _canonical_names(model: nn.Module) -> dict[str, str]:
    """Name -> the first name of the same tensor: tied weights are one tensor under several names."""
    first: dict[int, str] = {}
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: first.setdefault(id(tensor), name) for name, tensor in tensors}


def _check_sizes(value: Tensor, dims: list[Dimension], node: Node) -> None:
    """Raises unless there are as many labels as the value has entries, in every dimension."""
    shape = tuple(value.shape)
    sizes = tuple(shape[at] if isinstance(dim, str) else len(dim) for at, dim in enumerate(dims[: len(shape)]))
    if len(dims) != len(shape) or sizes != shape:
        raise ModelError(WHO, f"dimensions {sizes}", f"{shape}, those of the value", graphs.place(node))
