"""The rules of coupling for operators that move channels: reshapes, permutations, concatenation, slices, products.

A reshape may merge a channel dimension with others (a channel becomes a block) or split it. In what it splits into, the
dimension whose size follows the channels (-1, or a number that the code computed from a shape) loses the same places
everywhere; one whose size is a literal stays whole.
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.fx import Node

from pruning_bench.graphs import place
from pruning_bench.pruning.coupling_rules import RULES, SINGLE, contract, pinned, rule, together
from pruning_bench.pruning.walk import Dimension, Labels, Walk

__all__ = ["RULES"]


@rule("aten.cat")
def concatenation(walk: Walk, node: Node) -> list[Dimension]:
    """Along `dim` the labels follow one another; the other dimensions go together."""
    sources: Sequence[Node] = walk.argument(node, "tensors")
    dim = walk.argument(node, "dim", 0) % len(walk.shape(node))
    dims = list(walk.dims(sources[0]))
    for source in sources[1:]:
        for at, other in enumerate(walk.dims(source)):
            dims[at] = dims[at] if at == dim else walk.join(dims[at], other)
    parts = [walk.dims(source)[dim] for source in sources]
    if all(isinstance(part, str) for part in parts):
        return dims
    sizes = [walk.shape(source)[dim] for source in sources]
    dims[dim] = np.concatenate([walk.labels(part, size) for part, size in zip(parts, sizes, strict=True)])
    return dims


@rule("aten.stack")
def stack(walk: Walk, node: Node) -> list[Dimension]:
    """All operands go together; the new dimension holds one of each."""
    sources: Sequence[Node] = walk.argument(node, "tensors")
    dims = list(walk.dims(sources[0]))
    for source in sources[1:]:
        dims = [walk.join(one, other) for one, other in zip(dims, walk.dims(source), strict=True)]
    at = walk.argument(node, "dim", 0) % len(walk.shape(node))
    return [*dims[:at], "stacked", *dims[at:]]


@rule("aten.permute", "aten.transpose", "aten.t", "aten.swapaxes", "aten.movedim", "aten.numpy_T")
def permutation(walk: Walk, node: Node) -> list[Dimension] | None:
    """Dimensions in another order."""
    dims = walk.dims(node.all_input_nodes[0])
    order = walk.argument(node, "dims")
    if order is None:
        names = ("dim0", "dim1") if "dim0" in _names(node) else ("axis0", "axis1")
        if len(dims) != 2 and names[0] not in _names(node):
            return None
        one, other = (walk.argument(node, name, at) for at, name in enumerate(names))
        order = list(range(len(dims)))
        if len(dims) > 1:
            order[one], order[other] = order[other], order[one]
    return [dims[dim] for dim in order]


def _names(node: Node) -> list[str]:
    return [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]


@rule("aten.flatten", "aten.squeeze", "aten.unsqueeze")
def flatten(walk: Walk, node: Node) -> list[Dimension]:
    """A reshape whose sizes follow the input's."""
    return _reshaped(walk, node, [-1] * len(walk.shape(node)))


@rule("aten.view", "aten.reshape", "aten._unsafe_view")
def reshape(walk: Walk, node: Node) -> list[Dimension] | None:
    """A reshape to sizes that the code gives; `view(dtype)` is none."""
    asked = walk.argument(node, "size") or walk.argument(node, "shape")
    return None if asked is None else _reshaped(walk, node, asked)


@rule("aten.unflatten")
def unflatten(walk: Walk, node: Node) -> list[Dimension]:
    """One dimension becomes several, of sizes that the code gives."""
    sizes, ndim = walk.argument(node, "sizes"), len(walk.dims(node.all_input_nodes[0]))
    at = walk.argument(node, "dim") % ndim
    return _reshaped(walk, node, [*[-1] * at, *sizes, *[-1] * (ndim - at - 1)])


@rule("pruning_bench.follow")
def follow(walk: Walk, node: Node) -> list[Dimension]:
    """Marks which sizes of the reshape after it follow the shapes of which tensors: see `sizes`."""
    return walk.dims(walk.argument(node, "x"))


@rule("pruning_bench.hold")
def hold(walk: Walk, node: Node) -> list[Dimension]:
    """Dimensions whose size the code computes with keep it; two that are only compared go together, or keep theirs."""
    held = [
        walk.dims(tensor)[dim] if walk.dims(tensor) else SINGLE
        for tensor, dim in zip(walk.argument(node, "tensors"), walk.argument(node, "dims"), strict=True)
    ]
    one, other = held[0], held[-1]
    if len(held) == 2 and not isinstance(one, str) and not isinstance(other, str):
        walk.require(one, other, len(one), place(node))
    else:
        for dimension in held:
            walk.pin(dimension, f"the code computes with its size [{place(node)}]")
    return [SINGLE]


def _reshaped(walk: Walk, node: Node, asked: Sequence[Any]) -> list[Dimension]:
    """Equal sizes at both ends pass; in between, pieces of equal products are merged or split."""
    source = node.all_input_nodes[0]
    dims, old, new = walk.dims(source), walk.shape(source), walk.shape(node)
    follows = _followed(walk, source)
    head = _common(old, new)
    tail = _common(old[head:][::-1], new[head:][::-1])
    moves = [at in follows or (isinstance(size, int) and size == -1) for at, size in enumerate(asked)]
    out: list[Dimension] = list(dims[:head])
    for (a, b), (c, d) in _pieces(old, new, (head, len(old) - tail), (head, len(new) - tail)):
        out += _piece(walk, node, dims[a:b], old[a:b], new[c:d], moves[c:d])
    out += dims[len(dims) - tail :] if tail else []
    for at, size in enumerate(asked):
        made = out[at]
        if isinstance(made, str) or (isinstance(size, int) and size == -1):
            continue
        if at not in follows:
            out[at] = pinned(walk, made, f"the code gives its size as {size} [{place(node)}]")
        else:
            walk.require(made, follows[at], int(new[at]), place(node))
    return out


def _followed(walk: Walk, source: Node) -> dict[int, Labels]:
    """Place among the asked sizes -> the labels of the one dimension that this number was computed from."""
    if RULES.get("pruning_bench.follow") is None or str(source.target) != "pruning_bench.follow.default":
        return {}
    tensors, dims, places = (walk.argument(source, name) for name in ("sources", "dims", "places"))
    found: dict[int, list[Labels]] = {}
    for tensor, dim, at in zip(tensors, dims, places, strict=True):
        labels = walk.dims(tensor)[dim] if walk.dims(tensor) else SINGLE
        if not isinstance(labels, str):
            found.setdefault(at, []).append(labels)
    return {at: labels[0] for at, labels in found.items() if len(labels) == 1}


def _pieces(
    old: Sequence[Any], new: Sequence[Any], left: tuple[int, int], right: tuple[int, int]
) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Cuts two ranges of sizes into the shortest pieces of equal products; one piece where a size is symbolic."""
    (a, a_end), (c, c_end) = left, right
    if not all(isinstance(size, int) and size > 0 for size in (*old[a:a_end], *new[c:c_end])):
        return [(left, right)]
    pieces = []
    while a < a_end or c < c_end:
        b, d = min(a + 1, a_end), min(c + 1, c_end)
        while (one := math.prod(old[a:b])) != (other := math.prod(new[c:d])):
            b, d = (b + 1, d) if one < other else (b, d + 1)
        pieces.append(((a, b), (c, d)))
        a, c = b, d
    return pieces


def _piece(
    walk: Walk, node: Node, dims: list[Dimension], old: Sequence[Any], new: Sequence[Any], moves: Sequence[bool]
) -> list[Dimension]:
    """Dimensions of sizes `old` seen as sizes `new`, of which those that `moves` says follow the channels."""
    labelled = [at for at, dimension in enumerate(dims) if not isinstance(dimension, str)]
    fixed = all(isinstance(size, int) for size in (*old, *new))
    if not new:
        return []
    if fixed and len(labelled) == len(new) == 1:
        at = labelled[0]
        return [np.tile(np.repeat(dims[at], math.prod(old[at + 1 :])), math.prod(old[:at]))]
    if fixed and len(labelled) == len(old) == 1 and (free := [at for at, moved in enumerate(moves) if moved]):
        wide = [at for at in free if new[at] > 1]
        if len(wide) == 1:
            return _split(walk, dims[0], new, wide[0])
    reason = f"reshaped [{place(node)}]" if labelled else next(iter(dims), SINGLE)
    for dimension in dims:
        walk.pin(dimension, str(reason))
    return [SINGLE if isinstance(size, int) and size == 1 else reason for size in new]


def _split(walk: Walk, dimension: Dimension, new: Sequence[int], at: int) -> list[Dimension]:
    """The dimension at `at` keeps labels, the same ones for all places of the others."""
    rows = np.asarray(dimension).reshape(math.prod(new[:at]), new[at], -1).transpose(1, 0, 2).reshape(new[at], -1)
    together(walk, rows)
    out: list[Dimension] = ["one of several of a channel's places"] * len(new)
    out[at] = rows[:, 0]
    return out


def _common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many sizes the two have in common at their start; sizes that follow the batch are compared as text."""
    return [*(str(a) == str(b) for a, b in zip(one, other, strict=False)), False].index(False)


@rule("aten.chunk")
def chunk(walk: Walk, node: Node) -> list[list[Dimension]]:
    """Equal parts lose the same places, so that they stay equal."""
    return _parts(walk, node, walk.argument(node, "dim", 0), following=True)


@rule("aten.split", "aten.split_with_sizes", "aten.unbind", "aten.tensor_split")
def split(walk: Walk, node: Node) -> list[list[Dimension]] | None:
    """Parts of a size that the code gives keep it; equal parts whose size follows the channels go as `chunk`'s."""
    dim = walk.argument(node, "dim", 0)
    source = node.all_input_nodes[0]
    if "unbind" in str(node.target):
        dims = list(walk.dims(source))
        pinned(walk, dims.pop(dim % len(dims)), f"taken apart [{place(node)}]")
        return [list(dims) for _ in node.meta["val"]]
    follows = _followed(walk, source)
    whole = walk.dims(source)[dim]
    if isinstance(whole, str) or 0 not in follows or not isinstance(size := walk.argument(node, "split_size"), int):
        return _parts(walk, node, dim, following=False)
    walk.require(whole[:size], follows[0], size, place(node))
    return _parts(walk, node, dim, following=True)


def _parts(walk: Walk, node: Node, dim: int, *, following: bool) -> list[list[Dimension]]:
    dims = list(walk.dims(node.all_input_nodes[0]))
    values: Sequence[Tensor] = node.meta["val"]
    dim %= len(dims)
    sizes = [value.shape[dim] for value in values]
    whole = dims[dim]
    if isinstance(whole, str):
        return [list(dims) for _ in values]
    if not following or len(set(sizes)) > 1:
        dims[dim] = pinned(walk, whole, f"the code gives the size of its parts [{place(node)}]")
        return [list(dims) for _ in values]
    rows = whole.reshape(len(values), -1)
    together(walk, rows.T)
    return [[*dims[:dim], row, *dims[dim + 1 :]] for row in rows]


@rule("aten.glu")
def halves(walk: Walk, node: Node) -> list[Dimension]:
    """One half gates the other: they lose the same places."""
    dims = list(walk.dims(node.all_input_nodes[0]))
    dim = walk.argument(node, "dim", -1) % len(dims)
    if isinstance(whole := dims[dim], str):
        return dims
    rows = whole.reshape(2, -1)
    together(walk, rows.T)
    return [*dims[:dim], rows[0], *dims[dim + 1 :]]


@rule("getitem")
def part(walk: Walk, node: Node) -> list[Dimension] | None:
    """One of several tensors."""
    source, at = node.args
    if node.target is not operator.getitem or not isinstance(source, Node) or not walk.parts(source):
        return None
    return walk.parts(source)[at]  # type: ignore[index]


@rule("aten.channel_shuffle")
def channel_shuffle(walk: Walk, node: Node) -> list[Dimension]:
    """Channels [groups, n] in the order [n, groups]: groups lose the same places."""
    batch, channels, *others = walk.dims(node.all_input_nodes[0])
    if isinstance(channels, str):
        return [batch, channels, *others]
    rows = channels.reshape(walk.argument(node, "groups"), -1).T
    together(walk, rows)
    return [batch, rows.reshape(-1), *others]


@rule("aten.slice")
def slicing(walk: Walk, node: Node) -> list[Dimension]:
    """A part of a dimension keeps the whole of it; all others pass, and so does a slice of everything."""
    start, end, step = (
        walk.argument(node, name, default) for name, default in (("start", 0), ("end", None), ("step", 1))
    )
    whole = start in (0, None) and end in (None, sys.maxsize) and step == 1
    return _cut(walk, node, set() if whole else {walk.argument(node, "dim", 0)})


@rule("aten.roll", "aten.flip")
def rolling(walk: Walk, node: Node) -> list[Dimension]:
    """Dimensions whose order changes keep their size; all others pass. Without `dims` all do."""
    ndim = len(walk.dims(node.all_input_nodes[0]))
    return _cut(walk, node, set(walk.argument(node, "dims") or range(ndim)))


@rule("aten.pad", "aten.constant_pad_nd")
def padding(walk: Walk, node: Node) -> list[Dimension]:
    """A padded dimension keeps its size; all others pass. `pad` counts from the last dimension, two numbers each."""
    pad = walk.argument(node, "pad")
    return _cut(walk, node, {-1 - at // 2 for at, amount in enumerate(pad) if amount != 0})


def _cut(walk: Walk, node: Node, cut: set[int]) -> list[Dimension]:
    dims = list(walk.dims(node.all_input_nodes[0]))
    for dim in cut:
        dims[dim] = pinned(walk, dims[dim], f"cut or padded [{place(node)}]")
    return dims


@rule("aten.select")
def select(walk: Walk, node: Node) -> list[Dimension]:
    """The dimension that one index is taken of keeps its size and is gone; all others pass."""
    dims = list(walk.dims(node.all_input_nodes[0]))
    pinned(walk, dims.pop(walk.argument(node, "dim")), f"an index of it is taken [{place(node)}]")
    return dims


@rule("aten.expand", "aten.expand_as")
def expand(walk: Walk, node: Node) -> list[Dimension]:
    """Repeats dimensions of size one; the others pass, and those whose size the code gives as a number keep it."""
    source = node.all_input_nodes[0]
    dims, old, new = walk.dims(source), walk.shape(source), walk.shape(node)
    asked = walk.argument(node, "size") or [-1] * len(new)
    out: list[Dimension] = ["repeated"] * (len(new) - len(old))
    for at, dimension in enumerate(dims, start=len(new) - len(old)):
        size = asked[at]
        if isinstance(dimension, str):
            out.append(dimension if str(old[at - len(new)]) == str(new[at]) else "repeated")
        elif isinstance(size, int) and size != -1:
            out.append(pinned(walk, dimension, f"the code gives its size as {size} [{place(node)}]"))
        else:
            out.append(dimension)
    if (other := walk.argument(node, "other")) is not None:
        return [
            dimension if not isinstance(dimension, str) or isinstance(theirs, str) else theirs
            for dimension, theirs in zip(out, walk.dims(other), strict=True)
        ]
    return out


@rule("aten.matmul", "aten.bmm", "aten.mm")
def product(walk: Walk, node: Node) -> list[Dimension] | None:
    """[..., n, k] times [..., k, m]: k goes together, n and m pass; vectors have no rule."""
    one, other = node.args[0], node.args[1]
    first, second = walk.dims(one), walk.dims(other)  # type: ignore[arg-type]
    if min(len(first), len(second)) < 2:
        return None
    contract(walk, node, (one, first[-1]), (other, second[-2]))  # type: ignore[arg-type]
    batch: list[Dimension] = [SINGLE] * (len(walk.shape(node)) - 2)
    for dims, shape in ((first, walk.shape(one)), (second, walk.shape(other))):  # type: ignore[arg-type]
        for back, dimension in enumerate(reversed(dims[:-2]), start=1):
            if isinstance(shape[-2 - back], int) and shape[-2 - back] == 1:
                continue
            known = batch[-back]
            batch[-back] = dimension if isinstance(known, str) and known == SINGLE else walk.join(known, dimension)
    return [*batch, first[-2], second[-1]]


@rule("aten.scaled_dot_product_attention")
def attention(walk: Walk, node: Node) -> list[Dimension]:
    """softmax(q kT / sqrt(d)) v: the size of q's channels is in the scale, so that they stay; v's pass."""
    query, key, value, *rest = node.all_input_nodes
    reason = f"attention scales by its size [{place(node)}]"
    for source in (query, key, *rest):
        walk.pin_all(source, reason)
    dims = walk.dims(value)
    for dimension in dims[:-1]:
        walk.pin(dimension, reason)
    heads = [one if isinstance(one, str) else reason for one in walk.dims(query)[:-1]]
    return [*heads, dims[-1]]
