"""Tells sizes that the code computes from a tensor's shape from literals, which look the same in an exported graph.

While a model runs in `following_sizes`, `x.shape` and `x.size()` give its code ints that remember where they come from,
also through products and exact division by literals. A reshape or split that is asked for such sizes gets the
operator `pruning_bench.follow` before it, whose arguments name the tensors and dimensions that each size came from.
Anything else that the code does to a size (`int(c)`, sums) makes it a literal: its channels stay, which is safe.
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
from torch import Tensor, library, nn
from torch.overrides import TorchFunctionMode

_TORCH = str(Path(torch.__file__).parent) + os.sep  # torchvision lies beside it
_FOLLOWING = {"view": 1, "reshape": 1, "split": 1, "unflatten": 2}  # operator -> the first argument that is a size
_SHAPE = Tensor.shape.__get__  # type: ignore[attr-defined]


@library.custom_op("pruning_bench::follow", mutates_args=())
def follow(x: Tensor, sources: list[Tensor], dims: list[int], places: list[int]) -> Tensor:
    """`x`, marked: the next operator's size at `places[i]` is a multiple of dimension `dims[i]` of `sources[i]`."""
    return x.clone()


@follow.register_fake
def _follow_fake(x: Tensor, sources: list[Tensor], dims: list[int], places: list[int]) -> Tensor:
    return x.clone()


class Size(int):
    """A size that remembers the dimensions of tensors that it is a constant multiple of."""

    sources: tuple[tuple[Tensor, int], ...]

    def __new__(cls, value: int, sources: tuple[tuple[Tensor, int], ...]) -> Size:
        """`value` with its sources."""
        made = super().__new__(cls, value)
        made.sources = sources
        return made

    def __mul__(self, other: Any) -> Any:
        """A product with an int has the sources of both."""
        value = int(self) * other
        more = other.sources if isinstance(other, Size) else ()
        return Size(int(value), (*self.sources, *more)) if isinstance(other, int) else value

    def __rmul__(self, other: Any) -> Any:
        """As `__mul__`."""
        return self * other

    def __floordiv__(self, other: Any) -> Any:
        """A quotient by a literal, where it is exact, has the same sources."""
        value = int(self) // other
        exact = type(other) is int and value * other == int(self)
        return Size(value, self.sources) if exact else value

    def __reduce__(self) -> tuple[type, tuple[int]]:
        """Copies are plain ints."""
        return int, (int(self),)


def _plain(operation: Callable[[Any, Any], Any], reflected: bool) -> Callable[[Size, Any], Any]:
    """The operation on a plain int: torch's symbolic sizes take no other."""
    if reflected:
        return lambda size, other: operation(other, int(size))
    return lambda size, other: operation(int(size), other)


for _name in ("add", "sub", "mod", "truediv", "pow"):
    setattr(Size, f"__{_name}__", _plain(getattr(operator, _name), False))
    setattr(Size, f"__r{_name}__", _plain(getattr(operator, _name), True))
Size.__rfloordiv__ = _plain(operator.floordiv, True)  # type: ignore[method-assign,assignment]
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(Size, f"__{_name}__", _plain(getattr(operator, _name), False))
Size.__hash__ = int.__hash__  # type: ignore[method-assign]


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
        """Sizes for shapes, a mark before what is asked for sizes; everything else as it is."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name not in _FOLLOWING and name not in ("__get__", "size"):
            return func(*args, **kwargs)
        if _called_by_torch():
            return func(*args, **kwargs)
        if name in _FOLLOWING:
            return func(_marked(args[0], args[_FOLLOWING[name] :]), *_without_sources(args[1:]), **kwargs)
        made = func(*args, **kwargs)
        if name == "size" and type(made) is int and len(args) == 2:
            return Size(made, ((args[0], args[1]),))
        if (name == "size" and len(args) == 1 and not kwargs) or func == _SHAPE:
            sizes = [Size(v, ((args[0], dim),)) if type(v) is int else v for dim, v in enumerate(made)]
            return torch.Size(sizes) if all(isinstance(size, int) for size in sizes) else tuple(sizes)
        return made


def _called_by_torch() -> bool:
    """Whether torch's own code called the operator that is being handled."""
    frame = sys._getframe(2)
    if frame.f_code.co_name == "handle_torch_function" and frame.f_back and frame.f_back.f_back:
        frame = frame.f_back.f_back  # past an operator that is written in Python
    return frame.f_code.co_filename.startswith(_TORCH)


def _without_sources(arguments: Any) -> Any:
    """Arguments with plain ints."""
    if isinstance(arguments, (tuple, list)):
        return [_without_sources(argument) for argument in arguments]
    return int(arguments) if isinstance(arguments, Size) else arguments


def _marked(x: Any, asked: tuple[Any, ...]) -> Any:
    sizes = asked[0] if len(asked) == 1 and isinstance(asked[0], (tuple, list)) else asked
    found = [(*source, at) for at, size in enumerate(sizes) if isinstance(size, Size) for source in size.sources]
    if not found or not isinstance(x, Tensor):
        return x
    sources, dims, places = zip(*found, strict=True)
    return torch.ops.pruning_bench.follow(x, list(sources), list(dims), list(places))
