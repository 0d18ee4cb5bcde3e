"""What a model costs on paper: parameters, nonzeros, multiply-accumulates (MACs); exact, the same on every machine.

MACs are counted on the operations that a forward pass of one example really dispatches, so groups, strides, dilation,
padding, transposed convolutions, attention and recurrent layers need no rule per module. A multiplication with a zero
of the padding counts, as is usual.

Counted are matrix products, convolutions, deformable ones too, recurrent layers, and a parameter that is multiplied
element by element where the very product is then summed, or averaged, over a dimension along which the parameter
varies: a matrix product spelt out. All other elementwise multiplications are none by convention: norms, gates, scales,
masks, interpolation. What else reads a weight of two dimensions or more along with activations is refused, unless it is
known only to move, select or normalise; so is an operator of another library that reads any weight along with
activations. Such an operator that reads activations alone counts nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from pruning_bench.errors import ModelError
from pruning_bench.models.contract import fresh

ATEN = torch.ops.aten
ACTIVATIONS = "(activations)"
KNOWN = "one whose multiplications are known"
# Position of the two factors among the arguments: out[..., n, m] = sum_k a[..., n, k] b[..., k, m].
_PRODUCTS: Mapping[Any, tuple[int, int]] = {
    ATEN.mm: (0, 1),
    ATEN.bmm: (0, 1),
    ATEN.mv: (0, 1),
    ATEN.dot: (0, 1),
    ATEN.vdot: (0, 1),
    ATEN.addmm: (1, 2),
    ATEN.baddbmm: (1, 2),
    ATEN.addbmm: (1, 2),
    ATEN.addmv: (1, 2),
}
_CONVOLUTIONS = (ATEN.convolution, ATEN._convolution)
_RECURRENT = (ATEN.mkldnn_rnn_layer,)
_DEFORMABLE = "torchvision.deform_conv2d"  # a name, as torchvision need not be there
_REFUSED = (
    *(ATEN._trilinear, ATEN._cudnn_rnn, ATEN.miopen_rnn, ATEN.quantized_lstm),
    *(ATEN._cdist_forward, ATEN._euclidean_dist, ATEN._pdist_forward),
)
_SUMS = (ATEN.sum, ATEN.mean)
# What may read a weight along with activations and multiplies nothing, besides views and what is elementwise.
_MOVES = (  # beginnings of their names
    *("copy", "cat", "stack", "where", "take", "gather", "scatter", "select_scatter", "slice_scatter", "masked_"),
    *("index", "_index", "_unsafe_", "embedding", "_embedding_bag", "searchsorted", "bucketize", "isin", "equal"),
    *("native_", "_native_batch_norm", "_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "_fused_rms_norm"),
    *("_prelu_kernel", "grid_sampler"),
)


@dataclass(frozen=True)
class LayerCost:
    """MACs of one weight.

    Args:
        name: parameter (or buffer) name; `(activations)` for products of two activations, as in attention.
        macs: all, for one example.
        macs_effective: those whose weight is not zero; equal to `macs` for products of two activations.
    """

    name: str
    macs: int
    macs_effective: int


@dataclass(frozen=True)
class Cost:
    """Cost of one model.

    Args:
        params: number of parameters, shared ones once; buffers do not count.
        nonzeros: those that are not zero.
        layers: MACs for one example by weight, in the order of first use.
    """

    params: int
    nonzeros: int
    layers: tuple[LayerCost, ...] = ()

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one example."""
        return sum(layer.macs for layer in self.layers)

    @property
    def macs_effective(self) -> int:
        """Multiply-accumulates of one example whose weight is not zero: what a perfect sparse kernel would run."""
        return sum(layer.macs_effective for layer in self.layers)


def count_cost(model: nn.Module, example_inputs: tuple[Any, ...]) -> Cost:
    """Parameters, nonzeros and MACs of `model` for one example.

    A product of a weight W [.., k, m] with n rows costs `n * numel(W)` and effectively `n * nonzeros(W)`; a convolution
    the same with n = output positions (input positions when transposed). Computed weights (W * mask, low-rank factors)
    count by the zeros of what is multiplied.

    Args:
        model: as it would be timed but in float; for a recipe that quantizes, the float model before it. Not changed.
        example_inputs: positional arguments of the forward, tensors batch first; a copy of the first example is run.
            Model and inputs may be on the device meta: sizes are all that is needed, and nothing counts as zero.
    Raises:
        ModelError: an operation that multiplies, or may do so with a weight, and that this count does not know.

    Example:
        >>> layer = nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=4)
        >>> count_cost(layer, (torch.zeros(5, 8, 32, 32),)).macs == 16 * 16 * 16 * (8 // 4) * 3 * 3
        True
    """
    params = list(model.parameters())
    first = fresh(x[:1] if isinstance(x, Tensor) and x.ndim else x for x in example_inputs)
    counter = _Counter(model)
    with _plain_kernels(), _eval(model), torch.no_grad(), counter:
        model(*first)
    return Cost(
        params=sum(p.numel() for p in params),
        nonzeros=sum(map(_nonzeros, params)),
        layers=tuple(LayerCost(name, *macs) for name, macs in counter.macs.items()),
    )


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts MACs of what is dispatched, and follows which tensors are weights or made of weights alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs: dict[str, tuple[int, int]] = {}
        self._weights: dict[int, tuple[str, Tensor]] = {}  # holds the tensor, so that its address is not given away
        self._products: dict[int, tuple[Tensor, Tensor]] = {}  # elementwise, with the parameter among its factors
        self._parameters = {name for name, _ in model.named_parameters()}
        for name, tensor in (*model.named_buffers(), *model.named_parameters()):
            self._weights[_address(tensor)] = (name, tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self._refuse_unknown(func, (args, kwargs))
        self._count(func.overloadpacket, args, out)
        self._follow((args, kwargs), out)
        return out

    def _count(self, op: Any, args: tuple[Any, ...], out: Any) -> None:
        if op in _PRODUCTS:
            a, b = (args[position] for position in _PRODUCTS[op])
            self._add(a.numel() * (b.shape[-1] if b.ndim > 1 else 1), a, b)
        elif op in _CONVOLUTIONS:
            inputs, weight, transposed = args[0], args[1], args[6]
            positions = inputs.shape[0] * math.prod((inputs if transposed else out).shape[2:])
            self._add(positions * weight.numel(), weight)
        elif op in _RECURRENT:
            for weight in args[1:3]:
                self._add(args[0].shape[0] * args[0].shape[1] * weight.numel(), weight)
        elif str(op) == _DEFORMABLE:
            self._add(out.shape[0] * math.prod(out.shape[2:]) * args[1].numel(), args[1])
        elif op in (ATEN.mul, ATEN.mul_):
            self._note_product(args[:2], out)
        elif op in _SUMS and (factor := self._summed(args)) is not None:
            self._add(args[0].numel(), factor)
        elif op in flop_registry or op in _REFUSED:
            raise ModelError("macs", f"operation {op}", KNOWN)

    def _refuse_unknown(self, func: Any, inputs: Any) -> None:
        """Raises `ModelError` where activations may be multiplied with a weight and nobody knows how often."""
        op = func.overloadpacket
        counted = op in _PRODUCTS or op in (*_CONVOLUTIONS, *_RECURRENT) or str(op) == _DEFORMABLE
        own = func.namespace == "aten"
        if counted or func.is_view or torch.Tag.pointwise in func.tags or (own and op.__name__.startswith(_MOVES)):
            return
        tensors = [x for x in tree_leaves(inputs) if isinstance(x, Tensor)]
        read = [x for x in tensors if _address(x) in self._weights]
        for weight in read if len(read) < len(tensors) else ():  # of weights alone, it makes a weight
            if sum(size > 1 for size in weight.shape) >= (2 if own else 1):
                raise ModelError("macs", f"operation {op}", KNOWN, self._weights[_address(weight)][0])

    def _note_product(self, factors: tuple[Any, ...], out: Tensor) -> None:
        known = [x for x in factors if isinstance(x, Tensor) and self._name(x) in self._parameters]
        if len(known) == 1 and isinstance(factors[1], Tensor):
            self._products[_address(out)] = (out, known[0])

    def _summed(self, args: tuple[Any, ...]) -> Tensor | None:
        """The parameter of a product that is summed over a dimension along which it varies."""
        product, factor = self._products.get(_address(args[0]), (None, None))
        if product is None or factor is None or _layout(args[0]) != _layout(product):
            return None
        dims = args[1] if len(args) > 1 and args[1] else range(product.ndim)
        strides = [*[0] * (product.ndim - factor.ndim), *factor.stride()]
        sizes = [*[1] * (product.ndim - factor.ndim), *factor.shape]
        return factor if any(strides[dim] and sizes[dim] > 1 for dim in dims) else None

    def _name(self, tensor: Tensor) -> str | None:
        return self._weights.get(_address(tensor), (None,))[0]

    def _add(self, macs: int, *factors: Tensor) -> None:
        weight = next((x for x in reversed(factors) if _address(x) in self._weights), None)
        name = ACTIVATIONS if weight is None else self._weights[_address(weight)][0]
        # Every element of a weight is used equally often, so the division leaves no rest.
        effective = macs if weight is None or not macs else macs // weight.numel() * _nonzeros(weight)
        before = self.macs.get(name, (0, 0))
        self.macs[name] = (before[0] + macs, before[1] + effective)

    def _follow(self, inputs: Any, out: Any) -> None:
        sources = [self._weights.get(_address(x)) for x in tree_leaves(inputs) if isinstance(x, Tensor)]
        if not sources or None in sources:
            return
        name = sources[0][0]  # type: ignore[index]
        for made in tree_leaves(out):
            if isinstance(made, Tensor):
                self._weights.setdefault(_address(made), (name, made))


def _nonzeros(tensor: Tensor) -> int:
    """Of a tensor without values, on the device meta, all count as not zero."""
    return tensor.numel() if tensor.is_meta else int(tensor.count_nonzero())


def _address(tensor: Tensor) -> int:
    """The same for a tensor and its views: where their storage is described, as the device meta has no memory."""
    return int(tensor.untyped_storage()._cdata)


def _layout(tensor: Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.stride(), tensor.storage_offset()


@contextmanager
def _plain_kernels() -> Iterator[None]:
    """Attention as the matrix products it is made of; the fused kernels hide their multiplications."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def _eval(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
