"""Registries: name -> definition, one per kind; duplicates and unknown names are loud.

Definitions come in by decorator when their module is imported; `discover` imports the modules.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Generic, TypeVar

from pruning_bench.errors import DuplicateNameError, PluginError, PruningBenchError, UnknownNameError, closest, describe

T = TypeVar("T")
_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")


@dataclass(frozen=True)
class Family(Generic[T]):
    """Definitions made when they are asked for, by names `prefix:rest`; a registry lists none of them.

    Args:
        find: rest -> definition; raises `UnknownNameError`.
        names: all that `find` knows, for listings.
        about: one line for listings.
    """

    find: Callable[[str], T]
    names: Callable[[], Iterable[str]]
    about: str


class Registry(Generic[T]):
    """Definitions of one kind by name.

    Example:
        >>> shapes = Registry[str]("shape")
        >>> shapes.add("square", "four equal sides")
        >>> shapes["square"]
        'four equal sides'
        >>> shapes["sqare"]
        Traceback (most recent call last):
        ...
        pruning_bench.errors.UnknownNameError: shape: 'sqare', should be 'square' (known: square)
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}
        self.families: dict[str, Family[T]] = {}

    def add(self, name: str, item: T) -> None:
        """Registers `item`, in place of the same definition where its file was only run again.

        Raises:
            DuplicateNameError: the name is taken.
            PluginError: it is not snake_case.
        """
        if not isinstance(name, str) or not _NAME.match(name):
            raise PluginError(self.kind, f"name {name!r}", "snake_case (a-z, 0-9, _)", _origin(item))
        if name in self._items and not _again(item, self._items[name]):
            raise DuplicateNameError(
                self.kind,
                f"{name!r} defined twice",
                f"one definition, the first is in {_origin(self._items[name])}",
                _origin(item),
            )
        self._items[name] = item

    def add_family(self, prefix: str, family: Family[T]) -> None:
        """Registers all names `prefix:rest` at once; raises `DuplicateNameError` if the prefix is taken."""
        if prefix in self.families:
            found, origin = f"family {prefix!r} defined twice", _origin(family.find)
            raise DuplicateNameError(self.kind, found, "one definition", origin)
        self.families[prefix] = family

    def __getitem__(self, name: str) -> T:
        prefix, colon, rest = name.partition(":")
        if colon and prefix in self.families:
            return self.families[prefix].find(rest)
        if name not in self._items:
            families = [f"{prefix}:NAME" for prefix in self.families]
            raise UnknownNameError(self.kind, repr(name), closest(name, [*self._items, *families]))
        return self._items[name]

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._items))

    def __len__(self) -> int:
        return len(self._items)

    def ask(self, name: str, question: str, *arguments: Any) -> Any:
        """What a definition's method answers; its exceptions become a `PluginError` that names its distribution."""
        item = self[name]
        try:
            return getattr(item, question)(*arguments)
        except PruningBenchError:
            raise
        except Exception as problem:
            raise self.blame(name, f"{question}() raises {describe(problem)}", "an answer") from problem

    def blame(self, name: str, found: str, expected: str) -> PluginError:
        """The error for a definition that breaks its contract: names the place of its class and its distribution."""
        origin = _origin(self[name])
        names = importlib.metadata.packages_distributions().get(origin.partition(".")[0], [])
        return PluginError(f"{self.kind} {name}", found, expected, " of ".join([origin, *names[:1]]))

    @contextmanager
    def temporarily(self, name: str, item: T) -> Iterator[T]:
        """Registers `item` for the length of a `with` block (for tests)."""
        self.add(name, item)
        try:
            yield item
        finally:
            del self._items[name]


def _origin(item: object) -> str:
    """Where a definition was made: `module.qualname` of a class, a function or an instance's class."""
    named = item if hasattr(item, "__qualname__") else getattr(item, "build", type(item))
    return f"{getattr(named, '__module__', '?')}.{getattr(named, '__qualname__', '?')}"


def _again(item: object, before: object) -> bool:
    """Whether both are one definition, made by two runs of its file: pytest may import a conftest.py more than once."""
    one, other = _code_of(item), _code_of(before)
    if one is None or other is None or one.__globals__ is other.__globals__:
        return False
    places = [(f.__code__.co_filename, f.__code__.co_firstlineno, f.__qualname__) for f in (one, other)]
    return places[0] == places[1]


def _code_of(item: object) -> FunctionType | None:
    """A function that was made with a definition: itself, what it builds or loads with, or the first of its class."""
    found = [item, *(getattr(item, member, None) for member in ("build", "load"))]
    functions = [f for f in map(inspect.unwrap, filter(callable, found)) if isinstance(f, FunctionType)]
    cls = item if isinstance(item, type) else type(item)
    return next(iter([*functions, *(f for f in vars(cls).values() if isinstance(f, FunctionType))]), None)


STEPS: Registry[Any] = Registry("method")  # everything a recipe can name: pruning, quantization, training steps
MODELS: Registry[Any] = Registry("model")
DATASETS: Registry[Any] = Registry("dataset")
RUNTIMES: Registry[Any] = Registry("runtime")
METRICS: Registry[Any] = Registry("metric")
