"""What a function is made of, told by its code: all lambdas have one name, and so have functions of several files."""

from __future__ import annotations

import functools
import json
from types import CellType, CodeType, FunctionType
from typing import Any

from pruning_bench.records import digest_of

_CACHED = type(functools.lru_cache(len))


def held_by(function: FunctionType) -> list[Any]:
    """What a function holds besides its code: what it took from around it, and its defaults."""
    named = sorted((function.__kwdefaults__ or {}).items())
    return [*map(_content, function.__closure__ or ()), *(function.__defaults__ or ()), *named]


def _content(cell: CellType) -> Any:
    """None where it has none yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


@functools.lru_cache(maxsize=4096)
def digest_code(code: CodeType) -> str:
    """sha256 of what a function does: the same in every process of one Python version, wherever its file lies.

    Lines and columns do not count. What it calls by name counts by that name alone.

    Example:
        >>> one, same, other = (eval(text).__code__ for text in ("lambda x: x", "lambda x:  x", "lambda x: -x"))
        >>> digest_code(one) == digest_code(same) != digest_code(other)
        True
    """
    names = [list(each) for each in (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)]
    counts = [code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags]
    caught = getattr(code, "co_exceptiontable", b"")  # from Python 3.11 on
    return digest_of([code.co_code.hex(), caught.hex(), names, counts, *map(_constant, code.co_consts)])


def behind(value: object) -> list[Any]:
    """What an attribute of a class stands for: the functions of a descriptor, and what a decorator says that it wraps.

    Example:
        >>> [function.__name__ for function in behind(staticmethod(digest_code))]
        ['digest_code']
    """
    if isinstance(value, (staticmethod, classmethod)):
        return [value.__func__]
    if isinstance(value, property):
        return [value.fget, value.fset, value.fdel]
    if isinstance(value, functools.cached_property):
        return [value.func]
    if isinstance(value, functools.singledispatchmethod):
        return [value.func]
    if isinstance(value, functools.partialmethod):
        return [value.func, value.args, *sorted(value.keywords.items())]
    if isinstance(value, _CACHED):  # it has no closure to look into
        return [value.__wrapped__]
    return [value]


def _constant(value: object) -> Any:
    """A constant of code as JSON, with its type: 1, 1.0 and True are three."""
    if isinstance(value, CodeType):
        return ["code", digest_code(value)]
    if isinstance(value, tuple):
        return ["tuple", *map(_constant, value)]
    if isinstance(value, frozenset):  # the order of its items differs between processes
        return ["frozenset", *sorted(json.dumps(_constant(item)) for item in value)]
    return [type(value).__name__, repr(value)]
