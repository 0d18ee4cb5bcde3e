"""Options: every number that a method takes has a range, which holds wherever the method is made or its text read."""

from __future__ import annotations

import dataclasses
import math
import typing
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning_bench.discover import discover
from pruning_bench.errors import OptionError, RecipeError
from pruning_bench.levels import spell
from pruning_bench.options import Checked, Count, Range, kinds, ranges
from pruning_bench.recipe import parse
from pruning_bench.registry import STEPS, Registry
from pruning_bench.training.loop import TrainConfig

discover()
MADE = [TrainConfig, *(STEPS[name] for name in STEPS if STEPS[name].__module__.startswith("pruning_bench."))]


def numbers(cls: type) -> dict[str, Any]:
    """The options that are numbers, with their types."""
    found = {field.name: kinds(cls)[field.name] for field in dataclasses.fields(cls)}
    return {name: kind for name, kind in found.items() if getattr(kind, "__origin__", kind) in (int, float)}


def outside(allowed: Range, whole: bool) -> list[float]:
    """Numbers just outside a range, and those that are in none."""
    low, high = map(float, allowed.text[1:-1].split(","))
    below = [low] if allowed.text.startswith("(") else [low - 1]
    above = [] if math.isinf(high) else [high] if allowed.text.endswith(")") else [high + 1]
    return [int(x) for x in below + above] if whole else [*below, *above, math.nan, math.inf]


def refusal(cls: Any, options: dict[str, Any]) -> str:
    """What making one says; "taken" where it says nothing."""
    try:
        cls(**options)
    except OptionError as problem:
        return str(problem)
    return "taken"


def check_ranges_hold(cls: Any) -> None:
    """Every number has a range, and nothing outside it can be made."""
    for name, kind in numbers(cls).items():
        allowed = ranges(kind)
        assert allowed, f"{cls.name}: {name} is a {kind} without a range"
        for value in outside(allowed[0], kind.__origin__ is int):
            says = refusal(cls, {name: value})
            assert says == f"{cls.name}: {name} {value}, should be {allowed[0]}", f"{name}={value}: {says}"


@pytest.mark.parametrize("cls", MADE, ids=lambda cls: cls.name)
def test_nothing_is_made_with_an_option_out_of_range(cls: Any) -> None:
    check_ranges_hold(cls)


@dataclass(frozen=True)
class Unchecked:
    name: ClassVar[str] = "unchecked"
    count: Count = 3


@dataclass(frozen=True)
class Boundless(Checked):
    name: ClassVar[str] = "boundless"
    count: int = 3


@pytest.mark.parametrize(("cls", "says"), [(Unchecked, "count=0: taken"), (Boundless, "without a range")])
def test_the_check_above_bites(cls: Any, says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        check_ranges_hold(cls)


@pytest.mark.parametrize("cls", MADE[1:], ids=lambda cls: cls.name)
def test_no_recipe_reads_an_option_out_of_range(cls: Any) -> None:
    for name, kind in numbers(cls).items():
        for value in outside(ranges(kind)[0], kind.__origin__ is int):
            with pytest.raises(RecipeError) as caught:
                parse(f"{cls.name},{name}={spell(value)}")
            problem = caught.value
            assert problem.text[problem.position :] == spell(value), str(problem)
            if math.isfinite(value):
                assert f"{kind.__origin__.__name__} {ranges(kind)[0]} for {cls.name}'s {name}" in str(problem)


def test_a_users_own_method_needs_no_check_of_its_own_for_recipes() -> None:
    methods: Registry[Any] = Registry("method")
    methods.add("unchecked", Unchecked)
    with pytest.raises(RecipeError, match=r"'0', should be int in \[1, 1e9\] for unchecked's count"):
        parse("unchecked,count=0", methods)
    assert str(parse("unchecked,count=2", methods)) == "unchecked,count=2"


@pytest.mark.parametrize("text", ["finetune:1,batch=", "finetune:1,shift=", "magnitude:0.5,block=", "rtn:w4,group="])
def test_no_number_is_too_large_for_torch(text: str) -> None:
    """Up to the upper end it works, see the tests of blocks and of shifts; beyond it the recipe is refused."""
    parse(f"{text}{10**9}")
    with pytest.raises(RecipeError, match=r"should be int in \[[01], 1e9\]"):
        parse(f"{text}{10**20}")


def test_words_are_checked_too() -> None:
    with pytest.raises(OptionError, match="train: schedule 'cosin', should be 'cosine' or 'linear' or 'constant'"):
        TrainConfig(schedule=typing.cast(Literal["cosine"], "cosin"))


@given(st.floats(allow_nan=True), st.floats(-9, 9), st.floats(-9, 9), st.sampled_from("[("), st.sampled_from("])"))
def test_a_range_holds_what_its_brackets_say(value: float, a: float, b: float, left: str, right: str) -> None:
    low, high = min(a, b), max(a, b)
    expected = (value > low or (left == "[" and value == low)) and (value < high or (right == "]" and value == high))
    assert (value in Range(f"{left}{low!r}, {high!r}{right}")) == expected
