"""Where channels can be scaled without a change of the model's function: between what makes them and what reads them.

A layer or the affine part of a layer norm makes channels; if every path from there leads through operators that are
positively homogeneous and keep channels apart (ReLU, pooling, flatten, transpose ...) to layers, then its outputs can
be divided by positive factors, one a channel, and the weights of the readers multiplied with them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

from torch import Tensor
from torch.fx import Node

from pruning_bench.graphs import operator, tensor_names
from pruning_bench.quantization.fold import CONVOLUTIONS
from pruning_bench.quantization.plans import Prepared
from pruning_bench.quantization.points import NORM, POOLS, RELUS

POOLINGS = POOLS | {"aten.max_pool1d", "aten.max_pool2d"}
KEEPS = RELUS | {"aten.dropout", "aten.dropout_", "aten.clone", "aten.contiguous"}


@dataclass(frozen=True)
class Seam:
    """Channels and who makes and reads them.

    Args:
        weight, bias: parameters of the maker, both indexed by its channels along dimension 0; bias may be missing.
        is_norm: the maker is a layer norm.
        readers: weights that read the channels -> how many inputs in a row belong to one channel (behind a flatten).
    """

    weight: str
    bias: str | None
    is_norm: bool
    readers: Mapping[str, int]


def find_seams(prepared: Prepared) -> list[Seam]:
    """The seams of a model, in the order of its graph; parameters that are used more than once have none.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from pruning_bench.contracts import Context
        >>> from pruning_bench.quantization.plans import prepare
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> seam, = find_seams(prepare(model, Context((torch.zeros(2, 3),), torch.Generator()), "test"))
        >>> seam.weight, seam.readers
        ('0.weight', {'2.weight': 1})
    """
    return list(_Finder(prepared).seams())


def scale(parameters: Mapping[str, Tensor], seam: Seam, factors: Tensor) -> dict[str, Tensor]:
    """New values: the maker's divided by the factors, the readers' weights multiplied with them.

    Args:
        factors: [channels], positive.
    """
    made = parameters[seam.weight]
    writes = {seam.weight: made / factors.view(-1, *[1] * (made.dim() - 1))}
    if seam.bias is not None:
        writes[seam.bias] = parameters[seam.bias] / factors
    for name, repeats in seam.readers.items():
        weight = parameters[name]
        wide = factors.repeat_interleave(repeats).view(-1, 1, weight.shape[1], 1)
        writes[name] = (_by_input(weight, len(factors), repeats) * wide).view(weight.shape)
    return writes


def input_peaks(weight: Tensor, channels: int, repeats: int) -> Tensor:
    """max |w| over all that a reader multiplies with a channel: [channels]."""
    seen = _by_input(weight, channels, repeats).abs().amax((1, 3))
    return seen.reshape(channels, repeats).amax(1)


def channel_values(columns: Tensor, weight: Tensor, channels: int, repeats: int) -> Tensor:
    """Values of a reader's columns by channel: [parts, columns] -> [channels, places of the kernel * repeats]."""
    return columns.reshape(len(columns), weight.shape[1], -1).reshape(channels, repeats, -1).flatten(1)


def _by_input(weight: Tensor, channels: int, repeats: int) -> Tensor:
    """A reader's weight as [parts, outputs of a part, inputs of a part, places]."""
    parts = channels * repeats // weight.shape[1]
    return weight.reshape(parts, len(weight) // parts, weight.shape[1], -1)


class _Finder:
    """Follows channels through one graph."""

    def __init__(self, prepared: Prepared) -> None:
        self.graph = prepared.program.graph
        self.names = tensor_names(prepared.program)
        self.layers = prepared.points.layers
        self.parameters = prepared.parameters
        self.uses = Counter(
            self.names[source.name]
            for node in self.graph.nodes
            for source in node.all_input_nodes
            if source.name in self.names
        )

    def seams(self) -> Iterator[Seam]:
        for node in self.graph.nodes:
            is_norm = operator(node) == NORM and len(node.args[1]) == 1
            weight, bias = (self._parameter(node, at + is_norm) for at in (1, 2))
            if not (is_norm or node.name in self.layers) or weight is None:
                continue
            known = bias is not None or _argument(node, 2 + is_norm) is None
            if known and (readers := self._readers(node, _channels(node, node), 1)):
                yield Seam(weight, bias, is_norm, readers)

    def _parameter(self, node: Node, at: int) -> str | None:
        """The name of a parameter that stands among the arguments and is used here alone."""
        found = _argument(node, at)
        name = self.names.get(found.name) if isinstance(found, Node) else None
        return name if name in self.parameters and self.uses[name] == 1 else None

    def _readers(self, node: Node, axis: int, repeats: int) -> dict[str, int] | None:
        """The layers that read the channels along a dimension; None if anything else does."""
        found: dict[str, int] = {}
        for user in node.users:
            if user.name in self.layers:
                weight = self._parameter(user, 1)
                if weight is None or user.args[0] is not node or axis != _channels(user, node):
                    return None
                found[weight] = repeats
                continue
            onward = _through(user, node, axis)
            further = None if onward is None else self._readers(user, onward[0], repeats * onward[1])
            if further is None:
                return None
            found |= further
        return found or None


def _channels(layer: Node, value: Node) -> int:
    """The dimension of channels in a layer's or norm's input or output."""
    return 1 if operator(layer) in CONVOLUTIONS else int(value.meta["val"].dim()) - 1


def _argument(node: Node, at: int) -> object:
    return node.args[at] if at < len(node.args) else None


def _through(node: Node, source: Node, axis: int) -> tuple[int, int] | None:
    """Where an operator puts the channels, and how many numbers of each it puts in a row; None if it mixes them."""
    name, dims = operator(node), source.meta["val"].dim()
    if name in KEEPS or (name in POOLINGS and axis == 1 and dims == (4 if name.endswith("2d") else 3)):
        return axis, 1  # of fewer dimensions a pool takes the channels themselves together
    if name == "aten.transpose":
        first, second = (at % dims for at in node.args[1:3] if isinstance(at, int))
        return {first: second, second: first}.get(axis, axis), 1
    if name == "aten.permute" and isinstance(node.args[1], (list, tuple)):
        return [at % dims for at in node.args[1] if isinstance(at, int)].index(axis), 1
    if name == "aten.flatten" and axis == 1 and _argument(node, 1) == 1 and _argument(node, 2) in (None, -1, dims - 1):
        return 1, prod(int(size) for size in source.meta["val"].shape[2:])
    return None
