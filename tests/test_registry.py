"""Registries: duplicates and unknown names are loud, and say where and what instead."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning_bench.errors import DuplicateNameError, PluginError, UnknownNameError, closest
from pruning_bench.registry import Registry

names = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)


@dataclass(frozen=True)
class Thing:
    size: int = 1


@dataclass(frozen=True)
class OtherThing:
    size: int = 2


def filled(*present: str) -> Registry[type]:
    registry: Registry[type] = Registry("thing")
    for name in present:
        registry.add(name, Thing)
    return registry


@given(present=st.sets(names, max_size=8))
def test_holds_what_was_added_in_the_order_of_names(present: set[str]) -> None:
    registry = filled(*present)
    assert list(registry) == sorted(present), f"{list(registry)}, should be {sorted(present)}"
    assert len(registry) == len(present), f"{len(registry)} names, should be {len(present)}"
    for name in present:
        assert name in registry, f"{name!r} should be there"
        assert registry[name] is Thing, f"{name!r} gives {registry[name]}"


def test_duplicates_name_both_origins() -> None:
    registry = filled("one")
    with pytest.raises(DuplicateNameError) as caught:
        registry.add("one", OtherThing)
    message = str(caught.value)
    for part in ("'one' defined twice", ".Thing", ".OtherThing"):
        assert part in message, f"{message!r} should say {part}"
    assert registry["one"] is Thing, "the first definition should stay"


SOURCE = """
def build(): ...

@dataclass(frozen=True)
class Method:
    def plan(self): ...
"""


def ran(source: str, file: str = "conftest.py") -> dict[str, Any]:
    """What a file defines, run anew."""
    made: dict[str, Any] = {"dataclass": dataclass, "__name__": "conftest"}
    exec(compile(source, file, "exec"), made)
    return made


@pytest.mark.parametrize("kind", ["build", "Method"])
def test_a_file_that_is_run_again_defines_nothing_twice(kind: str) -> None:
    first, second = ran(SOURCE)[kind], ran(SOURCE)[kind]
    registry = Registry[Any]("thing")
    registry.add("one", first)
    registry.add("one", second)
    assert registry["one"] is second, "the definition of the later run should count"
    for other in (ran(SOURCE, "other.py")[kind], ran("\n" + SOURCE)[kind]):
        with pytest.raises(DuplicateNameError):
            registry.add("one", other)
    with pytest.raises(DuplicateNameError):  # a file that says it twice by itself
        registry.add("one", second)


@pytest.mark.parametrize("name", ["", "One", "1one", "one-two", "one two", "_one", "one\n", "ünder", None, 1])
def test_names_that_are_not_snake_case(name: object) -> None:
    registry = filled()
    with pytest.raises(PluginError, match="snake_case"):
        registry.add(name, Thing)  # type: ignore[arg-type]
    assert len(registry) == 0, f"{list(registry)} should be empty"


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ("magnitud", "thing: 'magnitud', should be 'magnitude' (known: l1_filter, magnitude, random)"),
        ("l1filter", "thing: 'l1filter', should be 'l1_filter' (known: l1_filter, magnitude, random)"),
        ("xyz", "thing: 'xyz', should be a registered name (known: l1_filter, magnitude, random)"),
    ],
)
def test_unknown_names_show_the_closest(wrong: str, expected: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        filled("random", "magnitude", "l1_filter")[wrong]
    assert str(caught.value) == expected, f"{str(caught.value)!r}, should be {expected!r}"


def test_an_empty_registry_says_so() -> None:
    with pytest.raises(UnknownNameError, match="known: none"):
        filled()["anything"]


def test_closest_puts_the_nearest_first() -> None:
    found = closest("static8", ["dynamic", "statics", "static"])
    assert found == "'static' or 'statics' (known: dynamic, static, statics)", found


def test_temporary_names_go_even_after_an_error() -> None:
    registry = filled("one")
    seen = []
    with contextlib.suppress(RuntimeError), registry.temporarily("two", Thing):
        seen += registry
        raise RuntimeError
    assert seen == ["one", "two"], f"{seen} inside the block, should be ['one', 'two']"
    assert list(registry) == ["one"], f"{list(registry)}, should be ['one']"


def test_a_temporary_name_must_be_free() -> None:
    registry = filled("one")
    with pytest.raises(DuplicateNameError), registry.temporarily("one", OtherThing):
        pass
    assert registry["one"] is Thing, "the definition that was there should stay"
