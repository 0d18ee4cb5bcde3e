"""The rules of coupling, one small function per family of operators; an operator without a rule pins what it touches.

A rule is `rule(walk, node) -> dimensions of the node's value`, or None, before it has joined anything, where it does
not hold; `@rule("aten.name", ...)` enters it into the table.
A rule must hold for the *code* of the model run on fewer channels, not only for the traced shapes: a number in the
code (`view(-1, 2048)`) stays when channels go, so that such a dimension is pinned.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import nn
from torch.fx import Node
from torch.nn.modules.conv import _ConvNd

from pruning_bench.graphs import operator, place
from pruning_bench.pruning.walk import Dimension, Labels, Rule, Walk

FIXED = (nn.MultiheadAttention,)  # modules whose own code fixes sizes: what they touch is pinned
RULES: dict[str, Rule] = {}
SPATIAL = "no channels: places in an image or a sequence"
SINGLE = "a single channel"
MOVES = "view reshape _unsafe_view flatten unflatten permute transpose t numpy_T unsqueeze squeeze expand slice select"
PARTS = "split split_with_sizes chunk unbind getitem cat stack contiguous clone detach alias to _to_copy dropout"
ZERO_AT_ZERO = "relu relu6 leaky_relu elu selu celu gelu silu mish hardswish tanh neg abs square sqrt sin"
KEEPS_ZEROS = frozenset(" ".join((MOVES, PARTS, ZERO_AT_ZERO)).split())
MAKES = dict.fromkeys(("linear", "conv1d", "conv2d", "conv3d", "batch_norm"), 0)  # the dimension of the weight
MAKES |= dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), 1)


def rule(*operators: str, in_place: bool = False) -> Callable[[Rule], Rule]:
    """Enters a rule for these operators (names as `graphs.operator` gives them), with their in-place twins if asked."""

    def enter(function: Rule) -> Rule:
        for name in operators:
            RULES[name] = function
            if in_place:
                RULES[f"{name}_"] = function
        return function

    return enter


def pinned(walk: Walk, dimension: Dimension, reason: str) -> str:
    """The reason why a dimension keeps its size: the one that it has, or this one from now on."""
    walk.pin(dimension, reason)
    return dimension if isinstance(dimension, str) else reason


@rule("aten.conv1d", "aten.conv2d", "aten.conv3d")
def convolution(walk: Walk, node: Node) -> list[Dimension] | None:
    """Weight [out, in / groups, ...]: makes its dimension 0, reads its dimension 1; of groups, whole ones go."""
    source, weight = walk.argument(node, "input"), walk.argument(node, "weight")
    groups = walk.argument(node, "groups", 1)
    if len(walk.dims(source)) != len(walk.dims(weight)):  # an image without a batch
        return None
    batch, channels, *places = walk.dims(source)
    out, inner, *kernel = walk.dims(weight)
    if groups == 1:
        contract(walk, node, (source, channels), (weight, inner))
    else:
        out = _grouped(walk, node, out, channels, inner, groups)
    for dimension in (*places, *kernel):
        walk.pin(dimension, SPATIAL)
    return [batch, _made(walk, node, weight, 0, out), *[SPATIAL] * len(kernel)]


@rule("aten.conv_transpose1d", "aten.conv_transpose2d", "aten.conv_transpose3d")
def transposed_convolution(walk: Walk, node: Node) -> list[Dimension] | None:
    """Weight [in, out, ...]: makes its dimension 1, reads its dimension 0; with groups the rule does not hold."""
    source, weight = walk.argument(node, "input"), walk.argument(node, "weight")
    if walk.argument(node, "groups", 1) != 1 or len(walk.dims(source)) != len(walk.dims(weight)):
        return None
    batch, channels, *places = walk.dims(source)
    inner, out, *kernel = walk.dims(weight)
    for dimension in (*places, *kernel):
        walk.pin(dimension, SPATIAL)
    contract(walk, node, (source, channels), (weight, inner))
    return [batch, _made(walk, node, weight, 1, out), *[SPATIAL] * len(kernel)]


def contract(walk: Walk, node: Node, one: tuple[Node, Dimension], other: tuple[Node, Dimension]) -> None:
    """Two dimensions that a product sums over go together where one side is known to be zero in what is removed.

    A parameter is, and so is what a layer makes of its own weights. Of two other values neither need be, as sigmoid(0)
    is not: then both dimensions keep their size.
    """
    walk.join(one[1], other[1])
    options = [made for source, _ in (one, other) if (made := makers(walk, source)) is not None]
    if [] not in options:
        reason = f"a sum over products of computed values [{place(node)}]"
        for _, dimension in (one, other):
            walk.require_made(dimension, options, reason)


def makers(walk: Walk, node: Node) -> list[Labels] | None:
    """The channels with whose weights the value surely is zero: those that layers make; none for a tensor of the model,
    which is zero itself; None where it is not known.
    """
    if node not in walk.makers:
        walk.makers[node] = _makers(walk, node)
    return walk.makers[node]


def _makers(walk: Walk, node: Node) -> list[Labels] | None:
    if node.op == "placeholder":
        return [] if walk.owned(node) else None
    if _written(node):
        return None
    name, sources = _name(node), [source for source in node.all_input_nodes if walk.dims(source) or walk.parts(source)]
    if name == "pruning_bench.follow":  # of others it has the sizes alone
        return makers(walk, sources[0])
    if name in MAKES:
        weight, bias = walk.argument(node, "weight"), walk.argument(node, "bias")
        if weight is None or not all(one is None or walk.owned(one) for one in (weight, bias)):
            return None
        made = walk.dims(weight)[MAKES[name]]
        return None if isinstance(made, str) else [made]
    whole = [walk.shape(source)[1:] == walk.shape(node)[1:] for source in sources]  # else it is repeated
    found = [makers(walk, source) for source in sources]
    if name in ("mul", "div"):
        known = [one for one, same in zip(found, whole, strict=True) if same and one is not None]
        return known[0] if known and (name == "mul" or len(sources) == 1) else None
    if name not in KEEPS_ZEROS and not (name in ("add", "sub") and all(whole) and len(sources) == 2):
        return None
    if any(one is None for one in found) or len({bool(one) for one in found}) != 1:
        return None
    return [labels for one in found for labels in one or ()]


def _name(node: Node) -> str:
    return operator(node).removeprefix("aten.").rstrip("_")


def _written(node: Node) -> bool:
    """Does an operator in place change the value, or a part of it, to what need not be zero?"""
    for user in node.users:
        in_place = operator(user).endswith("_") and user.args[0] is node
        moves = _name(user) in KEEPS_ZEROS or _name(user) == "pruning_bench.follow"
        if (in_place and not moves) or (moves and _written(user)):
            return True
    return False


@rule("aten.linear")
def linear(walk: Walk, node: Node) -> list[Dimension]:
    """Weight [out, in]: makes its dimension 0, reads its dimension 1, passes all others on."""
    source, weight = walk.argument(node, "input"), walk.argument(node, "weight")
    *others, channels = walk.dims(source)
    out, inner = walk.dims(weight)
    contract(walk, node, (source, channels), (weight, inner))
    return [*others, _made(walk, node, weight, 0, out)]


def _made(walk: Walk, node: Node, weight: Node, dim: int, out: Dimension) -> Dimension:
    """The channels that a layer makes, its bias among them."""
    walk.produce(weight, dim)
    bias = walk.argument(node, "bias")
    return out if bias is None else walk.join(out, walk.dims(bias)[0])


def _grouped(walk: Walk, node: Node, out: Dimension, channels: Dimension, inner: Dimension, groups: int) -> Dimension:
    """Of a grouped convolution whole groups go, or the same place of every group: what leaves the finer choice.

    A group makes and reads its channels together, so that depthwise convolutions have groups of one.
    """
    if isinstance(out, str) or isinstance(channels, str) or not isinstance(walk.module(node), _ConvNd):
        reason = next(
            (one for one in (channels, out) if isinstance(one, str)), f"the code gives its groups [{place(node)}]"
        )
        for dimension in (out, channels, inner):
            walk.pin(dimension, reason)
        return reason
    makes, reads = out.reshape(groups, -1), channels.reshape(groups, -1)
    if makes.shape == reads.shape and groups < reads.shape[1] and walk.owned(walk.argument(node, "weight")):
        together(walk, makes.T)
        together(walk, reads.T)
        walk.join(makes[0], reads[0])
        walk.join(reads[0], inner)
        return out
    walk.pin(inner, f"the size of a group [{place(node)}]")
    together(walk, makes)
    together(walk, reads)
    walk.join(makes[:, 0], reads[:, 0])
    return out


def together(walk: Walk, rows: Labels) -> None:
    """Joins all labels of each row, [rows, labels]."""
    walk.join(rows[:, 1:].reshape(-1), np.repeat(rows[:, 0], rows.shape[1] - 1))


@rule("aten.batch_norm", "aten.prelu")
def per_channel(walk: Walk, node: Node) -> list[Dimension]:
    """Weight, bias and statistics go with dimension 1."""
    source = walk.argument(node, "input")
    dims = list(walk.dims(node.all_input_nodes[0] if source is None else source))
    for name in ("weight", "bias", "running_mean", "running_var"):
        tensor = walk.argument(node, name)
        if tensor is not None and len(dims) > 1 and walk.shape(tensor) == walk.shape(node)[1:2]:
            dims[1] = walk.join(dims[1], walk.dims(tensor)[0])
    return dims


@rule("aten.instance_norm")
def instance_norm(walk: Walk, node: Node) -> list[Dimension] | None:
    """As batch norm; without tensors of its own the layer keeps its number of channels."""
    owned = any(walk.argument(node, name) is not None for name in ("weight", "running_mean"))
    return _within_places(walk, node, per_channel(walk, node)) if owned else None


@rule("aten.group_norm")
def group_norm(walk: Walk, node: Node) -> list[Dimension]:
    """Normalizes in groups of channels, so that whole groups go; a removed channel would change the statistics."""
    dims = _within_places(walk, node, per_channel(walk, node))
    groups, owner = walk.argument(node, "num_groups"), walk.module(node)
    if isinstance(dims[1], str):
        return dims
    if not isinstance(owner, nn.GroupNorm) or not owner.affine:
        return [dims[0], pinned(walk, dims[1], f"the code gives its groups [{place(node)}]"), *dims[2:]]
    together(walk, dims[1].reshape(groups, -1))
    return dims


def _within_places(walk: Walk, node: Node, dims: list[Dimension]) -> list[Dimension]:
    """Statistics are taken over all dimensions behind the channels, which keep their size."""
    reason = f"normalized over [{place(node)}]"
    return [*dims[:2], *(pinned(walk, dimension, reason) for dimension in dims[2:])]


@rule("aten.layer_norm", "aten.rms_norm")
def layer_norm(walk: Walk, node: Node) -> list[Dimension]:
    """Passes what it does not normalize over; there zeros count in the statistics, so that removal is not exact."""
    dims = list(walk.dims(node.all_input_nodes[0]))
    reason = f"layer norm: removal would change its statistics [{place(node)}]"
    for tensor in node.all_input_nodes[1:]:
        walk.pin_all(tensor, reason)
    for dim in range(len(dims) - len(walk.argument(node, "normalized_shape")), len(dims)):
        dims[dim] = pinned(walk, dims[dim], reason)
    return dims


RECTIFIERS = "relu relu6 hardtanh leaky_relu elu selu celu gelu silu mish hardswish"
SQUASHERS = "hardsigmoid sigmoid tanh softplus log_sigmoid"
ARITHMETIC = (
    "exp log neg abs sqrt rsqrt square sin cos clamp clamp_min clamp_max pow add sub rsub mul div maximum minimum"
)
COMPARISONS = "eq ne lt le gt ge where masked_fill logical_and logical_or logical_not"
UNCHANGED = "dropout feature_dropout alpha_dropout contiguous clone detach alias _to_copy bernoulli"
MADE = "zeros_like ones_like empty_like rand_like randn_like full_like zero_ fill copy"
ELEMENTWISE = [
    f"aten.{name}" for name in " ".join((RECTIFIERS, SQUASHERS, ARITHMETIC, COMPARISONS, UNCHANGED, MADE)).split()
]


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


@rule("aten.to", "aten.type_as")
def conversion(walk: Walk, node: Node) -> list[Dimension]:
    """Another type, which may be that of a second tensor, whose dimensions have no part in it."""
    return walk.dims(node.all_input_nodes[0])


def _windows(spatial: int) -> Rule:
    """The rule of operators that work on the last `spatial` dimensions, channel by channel."""

    def windows(walk: Walk, node: Node) -> list[Dimension]:
        source = node.all_input_nodes[0]
        dims = walk.dims(source)
        for dimension in dims[-spatial:]:
            walk.pin(dimension, f"pooled or scaled over [{place(node)}]")
        return [*dims[:-spatial], *[SPATIAL] * spatial]

    return windows


for _spatial, _smooth in ((1, "linear"), (2, "bilinear"), (3, "trilinear")):
    _names = ("max_pool", "avg_pool", "adaptive_avg_pool", "upsample_nearest", f"upsample_{_smooth}")
    rule(*(f"aten.{name}{_spatial}d" for name in _names))(_windows(_spatial))


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
