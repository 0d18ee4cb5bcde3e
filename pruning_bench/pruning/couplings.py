"""Which channels must go together: found by walking the exported graph once, along the rules of `coupling_rules`.

Every index of every dimension of every parameter and buffer gets a label. An operator's rule passes labels on
(relu, flatten), joins them (a residual add joins its operands channel by channel) or pins them (what must keep its
size). Connected labels are one *unit*: a channel with all that it touches, removed whole or not at all. Units with the
same producers (the layers that make the channel) form a *coupling*, out of which a method takes its share.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_array  # type: ignore[import-untyped]
from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.export import ExportedProgram

from pruning_bench import graphs
from pruning_bench.errors import ModelError, PlanError
from pruning_bench.pruning.contract import ChannelPlan
from pruning_bench.pruning.coupling_rules import FIXED
from pruning_bench.pruning.shape_rules import RULES
from pruning_bench.pruning.sizes import following_sizes
from pruning_bench.pruning.walk import WHO, Labels, TensorDim, Walk


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
    walk = Walk(model, RULES, FIXED)
    with following_sizes(model):
        program = graphs.export(model, example_inputs)
    walk.run(program)
    if walk.unreached():
        walk.run(_training_graph(model, example_inputs, walk.unreached()))
    for name in walk.unreached():
        raise ModelError(
            WHO, "a parameter that no forward reaches", "one that is used, or deleted before pruning", name
        )
    return collect(walk)


def _training_graph(model: nn.Module, example_inputs: tuple[Tensor, ...], unreached: list[str]) -> ExportedProgram:
    """The graph of the forward in training mode, which reaches what only training uses, as auxiliary heads."""
    try:
        with following_sizes(model):
            return graphs.export(model, example_inputs, training=True)
    except ModelError as error:
        found = f"a parameter that the forward in eval mode does not reach, and in training mode {error.found}"
        raise ModelError(WHO, found, "one that is used, or deleted before pruning", unreached[0]) from error


def collect(walk: Walk) -> Couplings:
    """What the walks found: units, sorted by who makes them."""
    unit = _units(walk)
    for made, source, size, reason in walk.requirements:
        units, which = np.unique(unit[np.concatenate([made, source])], return_inverse=True)
        there = np.bincount(which[: len(made)], minlength=len(units)) * len(source)
        here = np.bincount(which[len(made) :], minlength=len(units)) * size
        both = np.concatenate([made, source])
        walk.pin(both[(there != here)[which]], reason)
    for dimension, options, reason in walk.made:
        if not any(np.isin(unit[dimension], unit[option]).all() for option in options):
            walk.pin(dimension, reason)
    reasons = [reason for _, reason in walk.pins]
    pinned = np.full(walk.count, -1, dtype=np.int64)  # unit -> the first pin on it
    for at, (labels, _) in enumerate(walk.pins):
        units = unit[labels]
        pinned[units[pinned[units] < 0]] = at
    untouched: dict[str, str] = {}
    makers = _Makers(walk.count)
    for producer, size in walk.producers.items():
        units = unit[walk.tensors.get(producer, np.empty(0, np.int64))]
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
            size = len(walk.tensors[tensor, dim])
            untouched.setdefault(f"{tensor}, dimension {dim}", f"its channels go together: one unit of {size}")
    names = dict(zip(_names(grouped), grouped, strict=True))
    return Couplings(
        units={key: unit[labels] for key, labels in walk.tensors.items()},
        groups={name: grouped[producers] for name, producers in names.items()},
        producers=names,
        untouched=untouched,
    )


def _units(walk: Walk) -> Labels:
    """Label -> unit: the connected components of all joins."""
    empty = np.empty(0, dtype=np.int64)
    left = np.concatenate([empty, *(one for one, _ in walk.edges)])
    right = np.concatenate([empty, *(other for _, other in walk.edges)])
    graph = coo_array((np.ones(len(left), dtype=np.int8), (left, right)), shape=(walk.count, walk.count))
    return connected_components(graph, directed=False)[1].astype(np.int64)  # type: ignore[no-any-return]


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
