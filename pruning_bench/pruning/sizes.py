"""Tells sizes that the code computes from a tensor's shape from literals, which look the same in an exported graph.

While a model runs in `following_sizes`, `x.shape` and `x.size()` give its code ints that remember where they come from,
also through products and exact division by literals. A reshape or split that is asked for such sizes gets the
operator `pruning_bench.follow` before it, whose arguments name the tensors and dimensions that each size came from.
Anything else that the code computes from a size (`c ** -0.5`, `c > 4`, `x / c`) is a constant of the graph: there the
operator `pruning_bench.hold` says which dimensions must stay, so that the code computes the same after pruning.
Not seen is what Python computes from an int without asking it (`math.log(c)`, `range(c)`, `x.shape.numel()`), nor
code that reads a layer's attribute (`conv.out_channels`), which shrinks with the layer.
"""

from __future__ import annotations

import operator
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, library, nn
from torch.overrides import TorchFunctionMode

_TORCH = str(Path(torch.__file__).parent) + os.sep  # torchvision lies beside it
_FOLLOWING = {"view": 1, "reshape": 1, "split": 1, "unflatten": 2}  # operator -> the first argument that is a size
_ASKING = ("size", "numel", "nelement", "__len__")
_SHAPE = Tensor.shape.__get__  # type: ignore[attr-defined]


@library.custom_op("pruning_bench::follow", mutates_args=())
def follow(x: Tensor, sources: list[Tensor], dims: list[int], places: list[int]) -> Tensor:
    """`x`, marked: the next operator's size at `places[i]` is a multiple of dimension `dims[i]` of `sources[i]`."""
    return x.clone()


@follow.register_fake
def _follow_fake(x: Tensor, sources: list[Tensor], dims: list[int], places: list[int]) -> Tensor:
    return x.clone()


@library.custom_op("pruning_bench::hold", mutates_args=())
def hold(tensors: list[Tensor], dims: list[int]) -> Tensor:
    """Says that the code computes with the size of dimension `dims[i]` of `tensors[i]`; of two, whether they differ."""
    return torch.empty(0)


@hold.register_fake
def _hold_fake(tensors: list[Tensor], dims: list[int]) -> Tensor:
    return torch.empty(0)


fx.node.has_side_effect(torch.ops.pruning_bench.hold.default)  # nobody uses what it gives, and it stays in the graph


class Size(int):
    """A size that remembers the dimensions of tensors that it is a constant multiple of."""

    sources: tuple[tuple[Tensor, int], ...]

    def __new__(cls, value: int, sources: tuple[tuple[Tensor, int], ...]) -> Size:
        """`value` with its sources."""
        made = super().__new__(cls, value)
        made.sources = sources
        return made

    def held(self) -> int:
        """The plain int; from here on nobody follows it, so that its dimensions stay."""
        for tensor, dim in self.sources:
            torch.ops.pruning_bench.hold([tensor], [dim])
        return _plain(self)

    def __mul__(self, other: Any) -> Any:
        """A product with an int has the sources of both."""
        if not isinstance(other, int):
            return self.held() * other
        more = other.sources if isinstance(other, Size) else ()
        return Size(_plain(self) * _plain(other), (*self.sources, *more))

    def __rmul__(self, other: Any) -> Any:
        """As `__mul__`."""
        return self * other

    def __floordiv__(self, other: Any) -> Any:
        """A quotient by a literal, where it is exact, has the same sources."""
        if type(other) is int and other and _plain(self) % other == 0:
            return Size(_plain(self) // other, self.sources)
        return self.held() // (other.held() if isinstance(other, Size) else other)

    def __int__(self) -> int:
        """A number like any other."""
        return self.held()

    def __float__(self) -> float:
        """A number like any other."""
        return float(self.held())

    def __neg__(self) -> int:
        """A number like any other."""
        return -self.held()

    def __pos__(self) -> int:
        """A number like any other."""
        return self.held()

    def __abs__(self) -> int:
        """A number like any other."""
        return self.held()

    def __invert__(self) -> int:
        """A number like any other."""
        return ~self.held()

    def __round__(self, digits: Any = None) -> int:
        """A number like any other."""
        return round(self.held(), digits)

    def __eq__(self, other: object) -> Any:
        """Two sizes of dimensions that go together stay equal, or different."""
        if isinstance(other, Size) and len(self.sources) == len(other.sources) == 1:
            tensors, dims = zip(*self.sources, *other.sources, strict=True)
            torch.ops.pruning_bench.hold(list(tensors), list(dims))
            return _plain(self) == _plain(other)
        return self.held() == (other.held() if isinstance(other, Size) else other)

    def __ne__(self, other: object) -> Any:
        """As `__eq__`."""
        return not self == other

    __hash__ = int.__hash__

    def __reduce__(self) -> tuple[type, tuple[int]]:
        """Copies are plain ints."""
        return int, (_plain(self),)


def _plain(size: int) -> int:
    """The same number, without sources."""
    return int.__add__(size, 0) if isinstance(size, Size) else size


def _computed(operation: Callable[[Any, Any], Any], reflected: bool) -> Callable[[Size, Any], Any]:
    """The operation on plain ints, which holds the dimensions: torch's symbolic sizes take no other."""

    def compute(size: Size, other: Any) -> Any:
        value = other.held() if isinstance(other, Size) else other
        return operation(value, size.held()) if reflected else operation(size.held(), value)

    return compute


for _name in ("add", "sub", "mod", "truediv", "pow"):
    setattr(Size, f"__{_name}__", _computed(getattr(operator, _name), False))
    setattr(Size, f"__r{_name}__", _computed(getattr(operator, _name), True))
Size.__rfloordiv__ = _computed(operator.floordiv, True)  # type: ignore[method-assign,assignment]
for _name in ("lshift", "rshift", "and_", "or_", "xor"):
    setattr(Size, f"__{_name.rstrip('_')}__", _computed(getattr(operator, _name), False))
    setattr(Size, f"__r{_name.rstrip('_')}__", _computed(getattr(operator, _name), True))
Size.__divmod__ = _computed(divmod, False)  # type: ignore[method-assign,assignment]
Size.__rdivmod__ = _computed(divmod, True)  # type: ignore[method-assign,assignment]
for _name in ("lt", "le", "gt", "ge"):
    setattr(Size, f"__{_name}__", _computed(getattr(operator, _name), False))


@contextmanager
def following_sizes(model: nn.Module) -> Iterator[None]:
    """Runs of the model inside the `with` block, as in an export, follow sizes; the model is as before afterwards."""
    active, run = _Following(), ExitStack()
    hooks = [
        model.register_forward_pre_hook(lambda *_: run.enter_context(active) and None, prepend=True),
        model.register_forward_hook(lambda *_: run.close(), always_call=True),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Following(TorchFunctionMode):
    """Gives out sizes and marks what is asked for them, outside of torch's own code."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Sizes for shapes, a mark before what is asked for sizes; other uses of a size hold its dimension."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _FOLLOWING and not _sizes_in(kwargs) and not _called_by_torch():
            return func(_marked(args[0], args[_FOLLOWING[name] :]), *_without_sources(args[1:]), **kwargs)
        for size in _sizes_in((args, kwargs)):
            size.held()
        args, kwargs = _without_sources(args), _without_sources(kwargs)
        made = func(*args, **kwargs)
        if (name not in _ASKING and func != _SHAPE) or _called_by_torch():
            return made
        tensor, ndim = args[0], args[0].dim()
        if name in ("numel", "nelement", "__len__"):
            for dim in range(ndim if name != "__len__" else 1):
                torch.ops.pruning_bench.hold([tensor], [dim])
            return made
        asked = args[1] if len(args) > 1 else kwargs.get("dim")
        if asked is not None:
            return Size(made, ((tensor, asked % ndim),)) if type(made) is int else made
        sizes = [Size(v, ((tensor, dim),)) if type(v) is int else v for dim, v in enumerate(made)]
        return torch.Size(sizes) if all(isinstance(size, int) for size in sizes) else tuple(sizes)


def _called_by_torch() -> bool:
    """Whether torch's own code called the operator that is being handled."""
    frame = sys._getframe(2)
    if frame.f_code.co_name == "handle_torch_function" and frame.f_back and frame.f_back.f_back:
        frame = frame.f_back.f_back  # past an operator that is written in Python
    return frame.f_code.co_filename.startswith(_TORCH)


def _without_sources(arguments: Any) -> Any:
    """Arguments with plain ints."""
    if isinstance(arguments, dict):
        return {name: _without_sources(argument) for name, argument in arguments.items()}
    if type(arguments) in (tuple, list, torch.Size):
        changed = [_without_sources(argument) for argument in arguments]
        return changed if isinstance(arguments, list) else tuple(changed)
    if isinstance(arguments, slice):
        return slice(*_without_sources((arguments.start, arguments.stop, arguments.step)))
    return _plain(arguments) if isinstance(arguments, Size) else arguments


def _sizes_in(arguments: Any) -> list[Size]:
    """All sizes among arguments."""
    if isinstance(arguments, Size):
        return [arguments]
    if isinstance(arguments, dict):
        arguments = tuple(arguments.values())
    if isinstance(arguments, slice):
        arguments = (arguments.start, arguments.stop, arguments.step)
    if type(arguments) in (tuple, list, torch.Size):
        return [size for argument in arguments for size in _sizes_in(argument)]
    return []


def _marked(x: Any, asked: tuple[Any, ...]) -> Any:
    sizes = asked[0] if len(asked) == 1 and isinstance(asked[0], (tuple, list)) else asked
    found = [(*source, at) for at, size in enumerate(sizes) if isinstance(size, Size) for source in size.sources]
    if not found or not isinstance(x, Tensor):
        return x
    sources, dims, places = zip(*found, strict=True)
    return torch.ops.pruning_bench.follow(x, list(sources), list(dims), list(places))
