"""What a model is, as a digest: its classes, its plain attributes and functions, and the bytes of its tensors."""

from __future__ import annotations

import functools
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodDescriptorType, MethodType
from typing import Any

import torch
from torch import nn

from pruning_bench.build_entries import digest_tensors, tensors_of
from pruning_bench.errors import ModelError
from pruning_bench.functions import digest_code, held_by
from pruning_bench.records import digest_of
from pruning_bench.sources import installed_name

_PLAIN = (bool, int, float, str, type(None), torch.dtype)


def fingerprint(model: nn.Module) -> str:
    """Hex digest of a model: the same in every process, another one when a weight, a class or an attribute differs.

    Attributes are the public ones of every module that are plain values, or tuples and lists of such; what begins with
    an underscore is the library's own business. A text counts only where the class names it in `__constants__`, as
    torch's own do with `padding_mode` or `approximate`: any other may be a folder, which differs between machines.
    Functions count too: installed ones by their names, others by their code, which differs between Python versions.

    Raises:
        ModelError: a tensor without bytes of its own (on the meta device, lazy).
    Example:
        >>> fingerprint(nn.Dropout(0.1)) == fingerprint(nn.Dropout(0.1)) != fingerprint(nn.Dropout(0.2))
        True
    """
    rows = [[path, type(m).__qualname__, _attributes(m)] for path, m in model.named_modules(remove_duplicate=False)]
    try:
        return digest_of([rows, digest_tensors(tensors_of(model))])
    except (RuntimeError, NotImplementedError, ValueError) as problem:
        found = " ".join(str(problem).split())[:120]
        raise ModelError("fingerprint", f"a tensor that cannot be read ({found})", "weights that are there") from None


def _attributes(module: nn.Module) -> list[list[Any]]:
    constants = getattr(module, "__constants__", ())
    public = [(name, value) for name, value in sorted(vars(module).items()) if name[0] != "_"]
    rows = [[name, _spelt(value, texts=name in constants)] for name, value in public]
    return [row for row in rows if row[1] is not None]


def _spelt(value: object, texts: bool) -> Any:
    """A plain value or a function, or several; None for what does not count."""
    items = value if isinstance(value, (tuple, list)) else (value,)
    if all(_is_plain(item, texts) for item in items):
        return repr(value)
    spelt = [repr(item) if _is_plain(item, texts) else _function(item) for item in items]
    return None if None in spelt else spelt


def _is_plain(value: object, texts: bool) -> bool:
    return isinstance(value, _PLAIN) and (texts or not isinstance(value, str))


def _function(value: object, around: tuple[object, ...] = ()) -> Any:
    """What a function does, with the plain values and functions that it holds; None for anything else.

    Args:
        around: functions that hold it, which it may hold again.
    """
    if isinstance(value, functools.partial):
        function, bound = _function(value.func, around), [*value.args, *sorted(value.keywords.items())]
        return function and [function, *(_held(part, around) for part in bound)]
    if isinstance(value, MethodType):
        return _function(value.__func__, around)
    if isinstance(value, (BuiltinFunctionType, MethodDescriptorType)):
        return value.__name__
    if not isinstance(value, FunctionType):
        return None
    installed = installed_name(Path(value.__code__.co_filename))
    if installed and "<" not in value.__qualname__:  # a lambda's name tells nothing
        return f"{installed} {value.__qualname__}"
    parts = [] if value in around else held_by(value)
    return [value.__qualname__, digest_code(value.__code__), *(_held(part, (*around, value)) for part in parts)]


def _held(value: object, around: tuple[object, ...]) -> Any:
    """A part of a function; of what is neither plain nor a function, the type."""
    if isinstance(value, tuple):
        return [_held(item, around) for item in value]
    return repr(value) if _is_plain(value, texts=True) else _function(value, around) or type(value).__qualname__
