"""The rules of coupling, one small function per family of operators; an operator without a rule pins what it touches.

A rule is `rule(walk, node) -> dimensions of the node's value`, or None, before it has joined anything, where it does
not hold; `@rule("aten.name", ...)` enters it into the table.
A rule must hold for the *code* of the model run on fewer channels, not only for the traced shapes: a number in the
code (`view(-1, 2048)`) stays when channels go, so that such a dimension is pinned.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from torch.fx import Node

from pruning_bench.graphs import place
from pruning_bench.pruning.couplings import Dimension, Walk

Rule: TypeAlias = Callable[[Walk, Node], "list[Dimension] | None"]
RULES: dict[str, Rule] = {}
SPATIAL = "no channels: places in an image or a sequence"
SINGLE = "a single channel"


def rule(*operators: str, in_place: bool = False) -> Callable[[Rule], Rule]:
    """Enters a rule for these operators (names as `graphs.operator` gives them), with their in-place twins if asked."""

    def enter(function: Rule) -> Rule:
        for name in operators:
            RULES[name] = function
            if in_place:
                RULES[f"{name}_"] = function
        return function

    return enter


@rule("aten.conv1d", "aten.conv2d", "aten.conv3d")
def convolution(walk: Walk, node: Node) -> list[Dimension] | None:
    """Weight [out, in / groups, ...]: makes its dimension 0, reads its dimension 1; of groups, whole ones go."""
    source, weight = walk.argument(node, "input"), walk.argument(node, "weight")
    groups = walk.argument(node, "groups", 1)
    if len(walk.dims(source)) != len(walk.dims(weight)):  # an image without a batch
        return None
    batch, channels, *_ = walk.dims(source)
    out, inner, *kernel = walk.dims(weight)
    if groups == 1:
        walk.join(channels, inner)
    else:
        walk.pin(inner, f"the size of a group [{place(node)}]")
        out = _whole_groups(walk, out, channels, groups)
    for dimension in kernel:
        walk.pin(dimension, SPATIAL)
    return [batch, _made(walk, node, weight, 0, out), *[SPATIAL] * len(kernel)]


@rule("aten.conv_transpose1d", "aten.conv_transpose2d", "aten.conv_transpose3d")
def transposed_convolution(walk: Walk, node: Node) -> list[Dimension] | None:
    """Weight [in, out, ...]: makes its dimension 1, reads its dimension 0; with groups the rule does not hold."""
    source, weight = walk.argument(node, "input"), walk.argument(node, "weight")
    if walk.argument(node, "groups", 1) != 1 or len(walk.dims(source)) != len(walk.dims(weight)):
        return None
    batch, channels, *_ = walk.dims(source)
    inner, out, *kernel = walk.dims(weight)
    for dimension in kernel:
        walk.pin(dimension, SPATIAL)
    walk.join(channels, inner)
    return [batch, _made(walk, node, weight, 1, out), *[SPATIAL] * len(kernel)]


@rule("aten.linear")
def linear(walk: Walk, node: Node) -> list[Dimension]:
    """Weight [out, in]: makes its dimension 0, reads its dimension 1, passes all others on."""
    weight = walk.argument(node, "weight")
    *others, channels = walk.dims(walk.argument(node, "input"))
    out, inner = walk.dims(weight)
    walk.join(channels, inner)
    return [*others, _made(walk, node, weight, 0, out)]


def _made(walk: Walk, node: Node, weight: Node, dim: int, out: Dimension) -> Dimension:
    """The channels that a layer makes, its bias among them."""
    walk.produce(weight, dim)
    bias = walk.argument(node, "bias")
    return out if bias is None else walk.join(out, walk.dims(bias)[0])


def _whole_groups(walk: Walk, out: Dimension, channels: Dimension, groups: int) -> Dimension:
    """Joins all that one group makes and reads; depthwise convolutions have groups of one."""
    if isinstance(out, str) or isinstance(channels, str):
        reason = channels if isinstance(channels, str) else str(out)
        walk.pin(out, reason)
        walk.pin(channels, reason)
        return reason
    makes, reads = out.reshape(groups, -1), channels.reshape(groups, -1)
    for block in (makes, reads):
        walk.join(block[:, 1:].reshape(-1), np.repeat(block[:, 0], block.shape[1] - 1))
    walk.join(makes[:, 0], reads[:, 0])
    return out


@rule("aten.batch_norm")
def batch_norm(walk: Walk, node: Node) -> list[Dimension]:
    """Weight, bias and statistics go with dimension 1."""
    dims = list(walk.dims(walk.argument(node, "input")))
    for name in ("weight", "bias", "running_mean", "running_var"):
        if (tensor := walk.argument(node, name)) is not None:
            dims[1] = walk.join(dims[1], walk.dims(tensor)[0])
    return dims


RECTIFIERS = "relu relu6 hardtanh leaky_relu elu selu celu gelu silu mish hardswish"
SQUASHERS = "hardsigmoid sigmoid tanh softplus log_sigmoid"
ARITHMETIC = "exp neg abs sqrt rsqrt clamp clamp_min clamp_max pow add sub mul div maximum minimum"
UNCHANGED = "dropout feature_dropout alpha_dropout contiguous clone detach alias to _to_copy"
ELEMENTWISE = [f"aten.{name}" for name in " ".join((RECTIFIERS, SQUASHERS, ARITHMETIC, UNCHANGED)).split()]


@rule(*ELEMENTWISE, in_place=True)
def elementwise(walk: Walk, node: Node) -> list[Dimension]:
    """All operands go together dimension by dimension, aligned at the last one; those of size one are repeated."""
    dims: list[Dimension] = [SINGLE] * len(walk.shape(node))
    for source in node.all_input_nodes:
        shape = walk.shape(source)
        for back, dimension in enumerate(reversed(walk.dims(source)), start=1):
            if isinstance(shape[-back], int) and shape[-back] == 1:
                continue
            known = dims[-back]
            dims[-back] = dimension if isinstance(known, str) and known == SINGLE else walk.join(known, dimension)
    return dims


def _windows(spatial: int) -> Rule:
    """The rule of operators that work on the last `spatial` dimensions, channel by channel."""

    def windows(walk: Walk, node: Node) -> list[Dimension]:
        source = node.all_input_nodes[0]
        dims = walk.dims(source)
        for dimension in dims[-spatial:]:
            walk.pin(dimension, f"pooled over [{place(node)}]")
        return [*dims[:-spatial], *[SPATIAL] * spatial]

    return windows


for _spatial in (1, 2, 3):
    rule(*(f"aten.{name}{_spatial}d" for name in ("max_pool", "avg_pool", "adaptive_avg_pool")))(_windows(_spatial))


@rule("aten.mean", "aten.sum", "aten.amax", "aten.amin")
def reduction(walk: Walk, node: Node) -> list[Dimension]:
    """The dimensions reduced over keep their size, the others pass."""
    source = node.all_input_nodes[0]
    dims = walk.dims(source)
    over = {dim % len(dims) for dim in walk.argument(node, "dim", None) or range(len(dims))}
    for dim in over:
        walk.pin(dims[dim], f"reduced over [{place(node)}]")
    if walk.argument(node, "keepdim", False):
        return [SINGLE if dim in over else dimension for dim, dimension in enumerate(dims)]
    return [dimension for dim, dimension in enumerate(dims) if dim not in over]


@rule("aten.softmax", "aten.log_softmax")
def softmax(walk: Walk, node: Node) -> list[Dimension]:
    """Passes all dimensions but the one that it normalizes over."""
    dims = list(walk.dims(node.all_input_nodes[0]))
    dim, reason = walk.argument(node, "dim"), f"normalized over [{place(node)}]"
    walk.pin(dims[dim], reason)
    dims[dim] = reason
    return dims


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


@rule("aten.permute", "aten.transpose", "aten.t")
def permutation(walk: Walk, node: Node) -> list[Dimension]:
    """Dimensions in another order."""
    dims = walk.dims(node.all_input_nodes[0])
    order = walk.argument(node, "dims")
    if order is None:
        order = list(range(len(dims)))
        one, other = walk.argument(node, "dim0", 0), walk.argument(node, "dim1", -1)
        if dims:
            order[one], order[other] = order[other], order[one]
    return [dims[dim] for dim in order]


@rule("aten.flatten", "aten.squeeze", "aten.unsqueeze")
def flatten(walk: Walk, node: Node) -> list[Dimension]:
    """A reshape whose sizes follow the input's."""
    return _reshaped(walk, node, [-1] * len(walk.shape(node)))


@rule("aten.view", "aten.reshape", "aten._unsafe_view")
def reshape(walk: Walk, node: Node) -> list[Dimension]:
    """A reshape; a dimension whose size the code gives as a number is pinned."""
    return _reshaped(walk, node, walk.argument(node, "size") or walk.argument(node, "shape"))


def _reshaped(walk: Walk, node: Node, asked: Sequence[Any]) -> list[Dimension]:
    """Equal sizes at both ends pass; in between, several dimensions may become one: a channel becomes a block."""
    source = node.all_input_nodes[0]
    dims, old, new = walk.dims(source), walk.shape(source), walk.shape(node)
    head = _common(old, new)
    tail = _common(old[head:][::-1], new[head:][::-1])
    middle, sizes = dims[head : len(dims) - tail], old[head : len(old) - tail]
    made = _merged(walk, node, middle, sizes, new[head : len(new) - tail])
    out = [*dims[:head], *made, *dims[len(dims) - tail :]]
    for dim, size in enumerate(asked):
        if isinstance(size, int) and size != -1 and not isinstance(out[dim], str):
            reason = f"the code gives its size as {size} [{place(node)}]"
            walk.pin(out[dim], reason)
            out[dim] = reason
    return out


def _merged(walk: Walk, node: Node, dims: list[Dimension], old: Sequence[Any], new: Sequence[Any]) -> list[Dimension]:
    """Dimensions of sizes `old` seen as sizes `new`."""
    labelled = [at for at, dimension in enumerate(dims) if not isinstance(dimension, str)]
    if len(labelled) == len(new) == 1 and all(isinstance(size, int) for size in old):
        at = labelled[0]
        return [np.tile(np.repeat(dims[at], math.prod(old[at + 1 :])), math.prod(old[:at]))]
    reason = f"reshaped [{place(node)}]" if labelled else next(iter(dims), SINGLE)
    for dimension in dims:
        walk.pin(dimension, str(reason))
    return [reason] * len(new)


def _common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many sizes the two have in common at their start; sizes that follow the batch are compared as text."""
    return [*(str(a) == str(b) for a, b in zip(one, other, strict=False)), False].index(False)


@rule("aten.slice")
def slicing(walk: Walk, node: Node) -> list[Dimension]:
    """A part of a dimension keeps the whole of it; all others pass, and so does a slice of everything."""
    start, end, step = (
        walk.argument(node, name, default) for name, default in (("start", 0), ("end", None), ("step", 1))
    )
    whole = start in (0, None) and end in (None, sys.maxsize) and step == 1
    return _cut(walk, node, set() if whole else {walk.argument(node, "dim", 0)})


@rule("aten.pad", "aten.constant_pad_nd")
def padding(walk: Walk, node: Node) -> list[Dimension]:
    """A padded dimension keeps its size; all others pass. `pad` counts from the last dimension, two numbers each."""
    pad = walk.argument(node, "pad")
    return _cut(walk, node, {-1 - at // 2 for at, amount in enumerate(pad) if amount != 0})


def _cut(walk: Walk, node: Node, cut: set[int]) -> list[Dimension]:
    dims = list(walk.dims(node.all_input_nodes[0]))
    for dim in cut:
        reason = f"cut or padded [{place(node)}]"
        walk.pin(dims[dim], reason)
        dims[dim] = reason if not isinstance(dims[dim], str) else dims[dim]
    return dims
