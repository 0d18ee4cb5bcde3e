"""Which channels must go together: found by walking the exported graph once, along the rules of `coupling_rules`.

Every index of every dimension of every parameter and buffer gets a label. An operator's rule passes labels on
(relu, flatten), joins them (a residual add joins its operands channel by channel) or pins them (what must keep its
size). Connected labels are one *unit*: a channel with all that it touches, removed whole or not at all. Units with the
same producers (the layers that make the channel) form a *coupling*, out of which a method takes its share.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array  # type: ignore[import-untyped]
from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node

from pruning_bench import graphs
from pruning_bench.errors import ModelError, PlanError
from pruning_bench.pruning.contract import ChannelPlan
from pruning_bench.pruning.sizes import following_sizes

WHO = "couplings"
Labels: TypeAlias = NDArray[np.int64]
Dimension: TypeAlias = Labels | str  # a label for every index, or the reason why this dimension keeps its size
TensorDim: TypeAlias = tuple[str, int]


@dataclass(frozen=True)
class Couplings:
    """What may be removed from a model, and what goes with it.

    Args:
        units: (tensor, dimension) -> the unit of every index, int64 [size]; tensors are parameters and buffers.
        groups: coupling -> its units, two or more, in the order of its first producer; named after that one's module.
        producers: coupling -> the (weight, dimension) pairs that make its channels, in forward order.
        untouched: "weight, dimension d" -> why some or all of it cannot be pruned.
    """

    units: Mapping[TensorDim, Labels]
    groups: Mapping[str, Labels]
    producers: Mapping[str, tuple[TensorDim, ...]]
    untouched: Mapping[str, str]

    def sums(self, coupling: str, per_index: Mapping[TensorDim, Tensor]) -> Tensor:
        """Values of the producers' indices summed over each unit of a coupling.

        Args:
            per_index: for every producer of the coupling, values of shape [size of that dimension].
        Returns:
            float64 [units of the coupling].
        """
        units = self.groups[coupling]
        order = np.argsort(units)
        total = np.zeros(len(units))
        for producer in self.producers[coupling]:
            values = per_index[producer].detach().double().cpu().numpy()
            at = np.minimum(np.searchsorted(units, self.units[producer], sorter=order), len(units) - 1)
            here = units[order[at]] == self.units[producer]
            np.add.at(total, order[at[here]], values[here])
        return torch.from_numpy(total)

    def plan(self, keep: Mapping[str, Tensor]) -> ChannelPlan:
        """The plan that keeps, of each coupling named in `keep`, the units that are True there.

        Args:
            keep: coupling -> bool [units]; couplings left out stay whole.
        Raises:
            PlanError: an unknown coupling, a mask of another length, or one that keeps nothing.
        """
        gone = np.zeros(1 + max((int(units.max()) for units in self.units.values()), default=0), dtype=bool)
        removed = {}
        for name, mask in keep.items():
            if name not in self.groups or mask.shape != self.groups[name].shape:
                raise PlanError(
                    WHO, f"keep of shape {tuple(mask.shape)}", "one bool for every unit of a coupling", name
                )
            if not mask.any():
                raise PlanError(WHO, "no channel kept", "at least one", name)
            gone[self.groups[name][~mask.cpu().numpy()]] = True
            removed[name] = (int((~mask).sum()), len(mask))
        kept: dict[str, dict[int, Tensor]] = {}
        for (tensor, dim), units in self.units.items():
            if gone[units].any():
                kept.setdefault(tensor, {})[dim] = torch.from_numpy(np.flatnonzero(~gone[units]))
        return ChannelPlan(kept, removed, untouched=dict(self.untouched))


def find_couplings(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> Couplings:
    """The couplings of `model`; the model is not changed. Linear in the size of the graph.

    Inputs and outputs of the model keep their sizes; so do channels that an operator without a rule touches.

    Raises:
        ModelError: the model cannot be exported.
    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> found = find_couplings(model, (torch.zeros(2, 1, 4, 4),))
        >>> found.producers
        {'0': (('0.weight', 0),)}
        >>> plan = found.plan({"0": torch.tensor([True, False, False, True])})
        >>> {name: [len(index) for index in dims.values()] for name, dims in plan.kept.items()}
        {'0.weight': [2], '0.bias': [2], '3.weight': [8]}
        >>> plan.untouched
        {'3.weight, dimension 0': "the model's output"}
    """
    walk = Walk(model)
    with following_sizes(model):
        program = graphs.export(model, example_inputs)
    walk.run(program)
    if walk.unreached():
        walk.run(_training_graph(model, example_inputs, walk.unreached()))
    for name in walk.unreached():
        raise ModelError(
            WHO, "a parameter that no forward reaches", "one that is used, or deleted before pruning", name
        )
    return walk.couplings()


def _training_graph(model: nn.Module, example_inputs: tuple[Tensor, ...], unreached: list[str]) -> ExportedProgram:
    """The graph of the forward in training mode, which reaches what only training uses, as auxiliary heads."""
    try:
        with following_sizes(model):
            return graphs.export(model, example_inputs, training=True)
    except ModelError as error:
        found = f"a parameter that the forward in eval mode does not reach, and in training mode {error.found}"
        raise ModelError(WHO, found, "one that is used, or deleted before pruning", unreached[0]) from error


def _canonical_names(model: nn.Module) -> dict[str, str]:
    """Name -> the first name of the same tensor: tied weights are one tensor under several names."""
    first: dict[int, str] = {}
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: first.setdefault(id(tensor), name) for name, tensor in tensors}


class Walk:
    """One pass over an exported graph; what the rules read and write.

    A rule gets the walk and a node and returns the dimensions of the node's value; on the way it calls `join` and
    `pin`. It reads operands by `argument` and their dimensions by `dims`.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = dict(model.named_modules(remove_duplicate=False))
        self._canonical = _canonical_names(model)
        stored = model.state_dict(keep_vars=True).keys()
        self._unstored = {name for name, _ in model.named_buffers() if name not in stored}
        self._parameters = dict.fromkeys(self._canonical[name] for name, _ in model.named_parameters())
        self._names: dict[str, str] = {}
        self._count = 0
        self._tensors: dict[TensorDim, Labels] = {}
        self._values: dict[Node, Any] = {}
        self.makers: dict[Node, list[Labels] | None] = {}
        self._edges: list[tuple[Labels, Labels]] = []
        self._pins: list[tuple[Labels, str]] = []
        self._producers: dict[TensorDim, int] = {}  # with the size of the dimension
        self._reached: set[str] = set()
        self._requirements: list[tuple[Labels, Labels, int, str]] = []
        self._made: list[tuple[Labels, list[Labels], str]] = []

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
        return self._count + sum(len(one) for one, _ in (*self._edges, *self._pins))

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
        self._count += size
        return np.arange(self._count - size, self._count, dtype=np.int64)

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
            self._edges.append((one, other))
        return one

    def pin(self, dimension: Dimension, reason: str) -> None:
        """The dimension keeps its size."""
        if not isinstance(dimension, str):
            self._pins.append((dimension, reason))

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
        self._requirements.append((made, source, size, f"its size follows that of other channels [{where}]"))

    def require_made(self, dimension: Dimension, options: Sequence[Sequence[Labels]], reason: str) -> None:
        """The dimension keeps its size, unless all of its channels go with those of one of the options."""
        if not isinstance(dimension, str):
            self._made.append((dimension, [np.concatenate(option) for option in options], reason))

    def produce(self, weight: Node, dim: int) -> None:
        """This dimension of a weight makes the channels that it labels."""
        if weight.name in self._names:
            self._producers[self._tensor(weight), dim] = int(self.shape(weight)[dim])

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
            if size > 1 and (tensor, dim) not in self._tensors:
                self._tensors[tensor, dim] = self.fresh(size)
        return [self._tensors.get((tensor, dim), "a single channel") for dim in range(len(shape))]

    def _apply(self, node: Node) -> Any:
        from pruning_bench.pruning.coupling_rules import FIXED
        from pruning_bench.pruning.shape_rules import RULES  # the rules are written against this class

        several = isinstance(node.meta["val"], (tuple, list))
        owner = self.module(node)
        if isinstance(owner, FIXED):
            reason = f"the code of {type(owner).__name__} fixes its size [{graphs.place(node)}]"
        else:
            rule = RULES.get(graphs.operator(node))
            dims = rule(self, node) if rule is not None else None
            if dims is not None:
                for value, found in zip(node.meta["val"], dims, strict=True) if several else [(node.meta["val"], dims)]:
                    _check_sizes(value, found, node)
                return dims
            reason = f"no rule for {graphs.operator(node)} [{graphs.place(node)}]"
        for source in node.all_input_nodes:
            self.pin_all(source, reason)
        return [[reason] * value.dim() for value in node.meta["val"]] if several else [reason] * len(self.shape(node))

    def couplings(self) -> Couplings:
        """What the walks found."""
        unit = self._units()
        for made, source, size, reason in self._requirements:
            units, which = np.unique(unit[np.concatenate([made, source])], return_inverse=True)
            there = np.bincount(which[: len(made)], minlength=len(units)) * len(source)
            here = np.bincount(which[len(made) :], minlength=len(units)) * size
            both = np.concatenate([made, source])
            self.pin(both[(there != here)[which]], reason)
        for dimension, options, reason in self._made:
            if not any(np.isin(unit[dimension], unit[option]).all() for option in options):
                self.pin(dimension, reason)
        reasons = [reason for _, reason in self._pins]
        pinned = np.full(self._count, -1, dtype=np.int64)  # unit -> the first pin on it
        for at, (labels, _) in enumerate(self._pins):
            units = unit[labels]
            pinned[units[pinned[units] < 0]] = at
        untouched: dict[str, str] = {}
        makers = _Makers(self._count)
        for producer, size in self._producers.items():
            units = unit[self._tensors.get(producer, np.empty(0, np.int64))]
            if size == 1:
                untouched[f"{producer[0]}, dimension {producer[1]}"] = "a single channel"
            free = pinned[units] < 0
            makers.add(producer, units[free])
            if not free.all():
                untouched[f"{producer[0]}, dimension {producer[1]}"] = reasons[pinned[units[~free][0]]]
        grouped = makers.groups()
        for producers in [producers for producers, units in grouped.items() if len(units) == 1]:
            del grouped[producers]
            for tensor, dim in producers:
                size = len(self._tensors[tensor, dim])
                untouched.setdefault(f"{tensor}, dimension {dim}", f"its channels go together: one unit of {size}")
        names = dict(zip(_names(grouped), grouped, strict=True))
        return Couplings(
            units={key: unit[labels] for key, labels in self._tensors.items()},
            groups={name: grouped[producers] for name, producers in names.items()},
            producers=names,
            untouched=untouched,
        )

    def _units(self) -> Labels:
        """Label -> unit: the connected components of all joins."""
        empty = np.empty(0, dtype=np.int64)
        left = np.concatenate([empty, *(one for one, _ in self._edges)])
        right = np.concatenate([empty, *(other for _, other in self._edges)])
        graph = coo_array((np.ones(len(left), dtype=np.int8), (left, right)), shape=(self._count, self._count))
        return connected_components(graph, directed=False)[1].astype(np.int64)  # type: ignore[no-any-return]


def _check_sizes(value: Tensor, dims: list[Dimension], node: Node) -> None:
    """Raises unless there are as many labels as the value has entries, in every dimension."""
    shape = tuple(value.shape)
    sizes = tuple(shape[at] if isinstance(dim, str) else len(dim) for at, dim in enumerate(dims[: len(shape)]))
    if len(dims) != len(shape) or sizes != shape:
        raise ModelError(WHO, f"dimensions {sizes}", f"{shape}, those of the value", graphs.place(node))


class _Makers:
    """Sorts units by who makes them: each unit has the number of a set of producers, refined producer by producer."""

    def __init__(self, units: int) -> None:
        self._set = np.zeros(units, dtype=np.int64)  # 0: made by nobody
        self._sets: dict[tuple[int, TensorDim], int] = {}  # a set and one producer more -> the larger set
        self._order: list[Labels] = []

    def add(self, producer: TensorDim, units: Labels) -> None:
        """This producer makes these units as well."""
        self._order.append(units[np.sort(np.unique(units, return_index=True)[1])])
        before, which = np.unique(self._set[units], return_inverse=True)
        after = [self._sets.setdefault((int(one), producer), len(self._sets) + 1) for one in before]
        self._set[units] = np.array(after, dtype=np.int64)[which]

    def groups(self) -> dict[tuple[TensorDim, ...], Labels]:
        """Producers, in forward order -> the units that exactly they make, in the order of the first of them."""
        larger = {after: key for key, after in self._sets.items()}
        units = np.concatenate([np.empty(0, np.int64), *self._order])
        units = units[np.sort(np.unique(units, return_index=True)[1])]
        sets, first, which = np.unique(self._set[units], return_index=True, return_inverse=True)
        by_set = np.split(units[np.argsort(which, kind="stable")], np.cumsum(np.bincount(which))[:-1])
        made = {}
        for at in np.argsort(first):
            producers, members = int(sets[at]), []
            while producers:
                producers, member = larger[producers]
                members.append(member)
            made[tuple(reversed(members))] = by_set[at]
        return made


def _names(groups: Iterable[tuple[TensorDim, ...]]) -> list[str]:
    """The module of each coupling's first producer, numbered from the second coupling of that module on."""
    names: list[str] = []
    seen: dict[str, int] = {}
    for producers in groups:
        module = producers[0][0].rpartition(".")[0] or producers[0][0]
        names.append(f"{module}_{seen[module]}" if module in seen else module)
        seen[module] = seen.get(module, 0) + 1
    return names
