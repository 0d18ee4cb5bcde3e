"""Text <-> steps: the grammar of recipes.

    recipe = "dense" | item { "+" item }
    item   = name [ ":" level ] { "," key "=" value } | "repeat(" count "," recipe ")"
    level  = fraction | N "of" M | "w" bits [ "a" bits ] | dtype | count

A recipe is identified by its canonical text: options at their default are left out, the others stand in the order
of the method's fields, numbers in their shortest spelling.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pruning_bench.errors import RecipeError
from pruning_bench.levels import WHO, Level, read_level, spell
from pruning_bench.options import kinds, ranges
from pruning_bench.registry import STEPS, Registry

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_LEVEL = re.compile(r"[^,+()=:\s]+")
_VALUE = re.compile(r"[A-Za-z0-9_.-]+")
_COUNT = re.compile(r"[0-9]+")
MOST_STEPS = 1000  # that a repeat may unroll to; more is a slip of the pen, and would fill the memory
_DEEPEST = 20  # repeats inside repeats; Python's own stack would end a much deeper recipe without a word about it


@dataclass(frozen=True)
class Step:
    """One method with its level and the options that differ from their defaults."""

    name: str
    level: Level | None = None
    options: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        level = "" if self.level is None else f":{self.level}"
        return self.name + level + "".join(f",{key}={spell(value)}" for key, value in self.options)

    def method(self, registry: Registry[Any] = STEPS) -> Any:
        """The registered method with these options."""
        return registry[self.name](**dict(self.options))


@dataclass(frozen=True)
class Repeat:
    """A recipe run `count` times in a row."""

    count: int
    recipe: Recipe

    @property
    def length(self) -> int:
        """How many steps it unrolls to."""
        return self.count * self.recipe.length

    def __str__(self) -> str:
        return f"repeat({self.count},{self.recipe})"


@dataclass(frozen=True)
class Recipe:
    """Steps in order; none is `dense`. Equal recipes print equally.

    Example:
        >>> str(Recipe())
        'dense'
    """

    items: tuple[Step | Repeat, ...] = ()

    @property
    def length(self) -> int:
        """How many steps it runs, without unrolling them."""
        return sum(item.length if isinstance(item, Repeat) else 1 for item in self.items)

    def __str__(self) -> str:
        return "+".join(map(str, self.items)) or "dense"

    def steps(self) -> Iterator[Step]:
        """All steps in the order they run, repeats unrolled."""
        for item in self.items:
            if isinstance(item, Repeat):
                for _ in range(item.count):
                    yield from item.recipe.steps()
            else:
                yield item


def parse(text: str, registry: Registry[Any] = STEPS) -> Recipe:
    """Reads a recipe; names and options are checked against the registry.

    Raises:
        RecipeError: it does not parse, or an option is unknown or of the wrong type (caret at the place).
        UnknownNameError: a method that is not registered.
        LevelError: a level that the method never takes.
    Example:
        >>> from dataclasses import dataclass
        >>> methods = Registry("method")
        >>> @dataclass(frozen=True)
        ... class Magnitude:
        ...     scope: str = "global"
        >>> methods.add("magnitude", Magnitude)
        >>> str(parse("magnitude:0.50,scope=global", methods))
        'magnitude:0.5'
        >>> parse("magnitude:0.5,scope", methods)
        Traceback (most recent call last):
        ...
        pruning_bench.errors.RecipeError: recipe: end of text, should be '='
          magnitude:0.5,scope
                             ^
    """
    return _Parser(text, registry).whole()


class _Parser:
    def __init__(self, text: str, registry: Registry[Any]) -> None:
        self.text, self.registry, self.at, self.depth = text, registry, 0, 0

    def whole(self) -> Recipe:
        if self.text == "dense":
            return Recipe()
        recipe = self.recipe()
        if self.at < len(self.text):
            raise self.error("'+', ',' or the end")
        return recipe

    def recipe(self) -> Recipe:
        items = [self.item()]
        while self.text.startswith("+", self.at):
            self.at += 1
            items.append(self.item())
        return Recipe(tuple(items))

    def item(self) -> Step | Repeat:
        if self.text.startswith("repeat(", self.at):
            return self.repeat()
        start = self.at
        name = self.take(_NAME, "a method name")
        if name == "dense":
            raise self.error("'dense' alone, or a method name", start)
        fields = {f.name: f for f in dataclasses.fields(self.registry[name])}
        level, options = None, {}
        if self.text.startswith(":", self.at):
            self.at += 1
            start = self.at
            level = read_level(self.take(_LEVEL, "a level"), self.text, start)
        while self.text.startswith(",", self.at):
            self.at += 1
            start = self.at
            key = self.take(_NAME, "an option name")
            if key not in fields:
                raise self.error(f"an option of {name} ({', '.join(fields) or 'it has none'})", start)
            if key in options:
                raise self.error(f"{key} given once", start)
            self.literal("=")
            start = self.at
            options[key] = self.value(name, self.registry[name], key, start)
        if read := getattr(getattr(self.registry[name], "tags", None), "level", None):
            read(name, level)
        kept = tuple((k, options[k]) for k, f in fields.items() if k in options and options[k] != f.default)
        return Step(name, level, kept)

    def repeat(self) -> Repeat:
        if self.depth == _DEEPEST:
            raise self.error(f"at most {_DEEPEST} repeats inside each other")
        self.depth += 1
        self.at += len("repeat(")
        start = self.at
        count = self.count(start)
        self.literal(",")
        repeat = Repeat(count, self.recipe())
        self.literal(")")
        if repeat.length > MOST_STEPS:
            raise self.error(f"at most {MOST_STEPS} steps, not {repeat.length}", start)
        self.depth -= 1
        return repeat

    def count(self, start: int) -> int:
        digits = self.take(_COUNT, "a count").lstrip("0")
        if not digits or len(digits) > len(str(MOST_STEPS)) or int(digits) > MOST_STEPS:
            raise self.error(f"a count in 1..{MOST_STEPS}", start)
        return int(digits)

    def value(self, name: str, cls: type, key: str, start: int) -> Any:
        word = self.take(_VALUE, "a value")
        kind = kinds(cls)[key]
        try:
            return _read(kind, word)
        except (KeyError, ValueError):
            raise self.error(f"{' or '.join(_choices(kind))} for {name}'s {key}", start) from None

    def take(self, pattern: re.Pattern[str], expected: str) -> str:
        match = pattern.match(self.text, self.at)
        if not match:
            raise self.error(expected)
        self.at = match.end()
        return match.group()

    def literal(self, sign: str) -> None:
        if not self.text.startswith(sign, self.at):
            raise self.error(repr(sign))
        self.at += len(sign)

    def error(self, expected: str, at: int | None = None) -> RecipeError:
        at = self.at if at is None else at
        rest = re.match(r"[^,+()=:]*.?", self.text[at:])
        found = repr(rest.group() if rest and at == self.at else self.text[at : self.at])
        return RecipeError(WHO, "end of text" if at >= len(self.text) else found, expected, self.text, at)


def _read(kind: Any, word: str) -> Any:
    """The value of an option of type `kind`; raises `KeyError` or `ValueError` when the word spells none."""
    if typing.get_origin(kind) is typing.Literal:
        return {spell(choice): choice for choice in typing.get_args(kind)}[word]
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        for arm in sorted(typing.get_args(kind), key=lambda arm: arm is not type(None)):
            try:
                return _read(arm, word)
            except (KeyError, ValueError):
                continue
        raise ValueError(word)
    if kind in (bool, type(None)):
        return {"true": True, "false": False}[word] if kind is bool else {"none": None}[word]
    value = getattr(kind, "__origin__", kind)(word)
    if (isinstance(value, float) and not math.isfinite(value)) or any(value not in allowed for allowed in ranges(kind)):
        raise ValueError(word)
    return value


def _choices(kind: Any) -> list[str]:
    """What `_read` takes, in words."""
    if typing.get_origin(kind) is typing.Literal:
        return [spell(choice) for choice in typing.get_args(kind)]
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return [word for arm in typing.get_args(kind) for word in _choices(arm)]
    words = {bool: ["true", "false"], type(None): ["none"]}
    named = getattr(kind, "__origin__", kind)
    return words.get(kind) or [" ".join([getattr(named, "__name__", str(named)), *map(str, ranges(kind))])]
