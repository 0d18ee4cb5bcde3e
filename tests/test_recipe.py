"""Recipes: what prints reads back, one spelling a recipe, and a caret under every mistake."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning_bench import recipe as grammar
from pruning_bench.errors import LevelError, RecipeError, UnknownNameError
from pruning_bench.levels import DTYPES, Bits, DType, NofM, Number, as_level, bits_of, count_of, sparsity_of
from pruning_bench.recipe import Recipe, Repeat, Step, parse
from pruning_bench.registry import Registry


@dataclass(frozen=True)
class Magnitude:
    scope: Literal["global", "layer"] = "global"


@dataclass(frozen=True)
class Tuned:
    count: int = 3
    rate: float = 0.1
    nested: bool = True
    word: str = "mean"
    group: int | None = None
    of: Literal["macs", 2] = "macs"


@dataclass(frozen=True)
class Plain:
    pass


METHODS: Registry[Any] = Registry("method")
METHODS.add("magnitude", Magnitude)
METHODS.add("tuned", Tuned)
METHODS.add("plain_2", Plain)

numbers = st.one_of(
    st.integers(0, 10**20).map(float),
    st.floats(0, 1e300, allow_nan=False),
    st.floats(0, 1, exclude_max=True),
)
levels = st.one_of(
    st.none(),
    numbers.map(Number),
    st.integers(1, 64).flatmap(lambda m: st.integers(1, m).map(lambda n: NofM(n, m))),
    st.builds(Bits, st.integers(0, 999), st.none() | st.integers(0, 999)),
    st.sampled_from(DTYPES).map(DType),
)
values = {
    "scope": st.sampled_from(["global", "layer"]),
    "count": st.integers(-(10**9), 10**9),
    "rate": st.floats(allow_nan=False, allow_infinity=False),
    "nested": st.booleans(),
    "word": st.text("abcXYZ019._-", min_size=1, max_size=8).filter(lambda word: word != "none"),
    "group": st.none() | st.integers(1, 256),
    "of": st.sampled_from(["macs", 2]),
}


@st.composite
def steps(draw: st.DrawFn) -> Step:
    name = draw(st.sampled_from(list(METHODS)), label="method")
    options = []
    for option in dataclasses.fields(METHODS[name]):
        value = draw(st.just(option.default) | values[option.name], label=option.name)
        if value != option.default:
            options.append((option.name, value))
    return Step(name, draw(levels, label="level"), tuple(options))


def recipes(of: st.SearchStrategy[Any]) -> st.SearchStrategy[Recipe]:
    return st.lists(of, min_size=1, max_size=3).map(lambda items: Recipe(tuple(items)))


nested = st.recursive(steps(), lambda inner: st.builds(Repeat, st.integers(1, 99), recipes(inner)), max_leaves=5)
nested = nested.filter(lambda item: isinstance(item, Step) or item.length <= grammar.MOST_STEPS)


def check_round_trip(recipe: Recipe, spell: Callable[[Recipe], str] = str) -> None:
    text = spell(recipe)
    back = parse(text, METHODS)
    assert back == recipe, f"{text!r} reads back as {back}, should be {recipe}"
    assert spell(back) == text, f"{text!r} prints as {spell(back)!r} the second time"


@settings(max_examples=150, deadline=None)
@given(recipe=st.just(Recipe()) | recipes(nested))
def test_what_prints_reads_back(recipe: Recipe) -> None:
    check_round_trip(recipe)


def twelve_digits(recipe: Recipe) -> str:
    """Mutant: the numbers of one step as `format(value, ".12g")` prints them."""
    (step,) = recipe.items
    return f"{step.name}:{step.level.value:.12g}"  # type: ignore[union-attr]


def options_forgotten(recipe: Recipe) -> str:
    """Mutant: options are not printed."""
    return "+".join(str(dataclasses.replace(step, options=())) for step in recipe.steps())


@pytest.mark.parametrize(
    ("mutant", "step"),
    [
        (twelve_digits, Step("magnitude", Number(0.1234567890123))),
        (twelve_digits, Step("magnitude", Number(1e12))),
        (options_forgotten, Step("magnitude", Number(0.5), (("scope", "layer"),))),
    ],
    ids=["digits lost", "a plus in a number", "options lost"],
)
def test_round_trip_rejects(mutant: Callable[[Recipe], str], step: Step) -> None:
    check_round_trip(Recipe((step,)))
    with pytest.raises((AssertionError, RecipeError)):
        check_round_trip(Recipe((step,)), mutant)


@settings(max_examples=100, deadline=None)
@given(recipe=recipes(nested))
def test_id_characters_are_safe_for_k_and_case_ids(recipe: Recipe) -> None:
    text = str(recipe)
    bad = set(text) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_:.,=+-()")
    assert not bad, f"{text!r} has {sorted(bad)}, should have none of them"


@settings(max_examples=100, deadline=None)
@given(recipe=recipes(steps()))
def test_options_make_the_method(recipe: Recipe) -> None:
    for step in recipe.steps():
        method = step.method(METHODS)
        kept = {f.name: getattr(method, f.name) for f in dataclasses.fields(method)}
        expected = {f.name: f.default for f in dataclasses.fields(method)} | dict(step.options)
        assert kept == expected, f"{step} makes {kept}, should be {expected}"


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("dense", "dense"),
        ("magnitude:0.90", "magnitude:0.9"),
        ("magnitude:.9", "magnitude:0.9"),
        ("magnitude:9e-1", "magnitude:0.9"),
        ("magnitude:2.0", "magnitude:2"),
        ("magnitude:1e16", "magnitude:1e16"),
        ("magnitude:1000000000000", "magnitude:1000000000000"),
        ("magnitude:0.9,scope=global", "magnitude:0.9"),
        ("magnitude:0.9,scope=layer", "magnitude:0.9,scope=layer"),
        ("magnitude", "magnitude"),
        ("magnitude:02of04", "magnitude:2of4"),
        ("magnitude:w08a8", "magnitude:w8a8"),
        ("magnitude:w4", "magnitude:w4"),
        ("magnitude:bf16", "magnitude:bf16"),
        ("tuned:1,rate=0.10,count=3", "tuned:1"),
        ("tuned:1,rate=2,count=4", "tuned:1,count=4,rate=2"),
        ("tuned,group=none,nested=true", "tuned"),
        ("tuned,nested=false,group=32,of=2", "tuned,nested=false,group=32,of=2"),
        ("repeat(05,magnitude:0.370+plain_2:1)", "repeat(5,magnitude:0.37+plain_2:1)"),
        ("repeat(0001000,plain_2)", "repeat(1000,plain_2)"),
        ("repeat(2,repeat(3,plain_2)+plain_2)+plain_2", "repeat(2,repeat(3,plain_2)+plain_2)+plain_2"),
    ],
)
def test_one_spelling(text: str, canonical: str) -> None:
    assert str(parse(text, METHODS)) == canonical, f"{text!r} prints {str(parse(text, METHODS))!r}, not {canonical!r}"


BAD = {
    "": 0,
    " ": 0,
    "+": 0,
    ":0.5": 0,
    "Magnitude:0.5": 0,
    "magnitude:0.5 ": 13,
    "magnitude :0.5": 9,
    "magnitude:": 10,
    "magnitude:,scope=layer": 10,
    "magnitude:-0.5": 10,
    "magnitude:nan": 10,
    "magnitude:inf": 10,
    "magnitude:1e999": 10,
    "magnitude:0.5.5": 10,
    "magnitude:0,5": 12,
    "magnitude:4of2": 10,
    "magnitude:0of2": 10,
    "magnitude:2of": 10,
    "magnitude:w8a": 10,
    "magnitude:a8": 10,
    "magnitude:int8": 10,
    "magnitude:0.5%": 10,
    "magnitude:½": 10,
    "magnitude:٠.٥": 10,
    "magnitude:0.5:0.5": 13,
    "magnitude:0.5,": 14,
    "magnitude:0.5,scope": 19,
    "magnitude:0.5,scope=": 20,
    "magnitude:0.5,scope=model": 20,
    "magnitude:0.5,scope=layer,scope=layer": 26,
    "magnitude:0.5,depth=2": 14,
    "plain_2,depth=2": 8,
    "tuned,count=1.5": 12,
    "tuned,count=many": 12,
    "tuned,rate=nan": 11,
    "tuned,rate=inf": 11,
    "tuned,rate=1e999": 11,
    "tuned,nested=yes": 13,
    "tuned,nested=True": 13,
    "tuned,group=big": 12,
    "tuned,of=3": 9,
    "magnitude:0.5+": 14,
    "magnitude:0.5++plain_2": 14,
    "magnitude:0.5)": 13,
    "magnitude:0.5\nplain_2": 13,
    "dense+magnitude:0.5": 0,
    "magnitude:0.5+dense": 14,
    "dense:0.5": 0,
    "repeat(": 7,
    "repeat()": 7,
    "repeat(0,plain_2)": 7,
    "repeat(two,plain_2)": 7,
    "repeat(2)": 8,
    "repeat(2,)": 9,
    "repeat(2,dense)": 9,
    "repeat(2,plain_2": 16,
    "repeat(2,plain_2))": 17,
    "repeat(2,plain_2)plain_2": 17,
    "repeat(2,plain_2):0.5": 17,
    f"repeat({'9' * 5000},plain_2)": 7,
    "repeat(1001,plain_2)": 7,
    "repeat(1000000000,plain_2)": 7,
    "repeat(1e9,plain_2)": 8,
    "repeat(00000000,plain_2)": 7,
    "repeat(501,plain_2+plain_2)": 7,
    "repeat(2,repeat(501,plain_2))": 7,
    "plain_2+repeat(32,repeat(32,plain_2))": 15,
    "repeat(1," * 21 + "plain_2" + ")" * 21: 180,
}


def caret_of(message: str) -> int:
    """Where the caret stands under the text, both indented by two."""
    return len(message.splitlines()[-1]) - len("  ^")


@pytest.mark.parametrize("text", BAD, ids=lambda text: repr(text[:40]))
def test_bad_recipes(text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse(text, METHODS)
    error = caught.value
    assert (error.text, error.position) == (text, BAD[text]), f"{error!r} at {error.position}, not at {BAD[text]}"
    message = str(error)
    assert "should be" in message.splitlines()[0], f"{message!r} does not say what should be there"
    if text and "\n" not in text:
        assert message.splitlines()[-2] == f"  {text}", f"{message!r} does not show the text"
        assert caret_of(message) == BAD[text], f"{message!r} has its caret at {caret_of(message)}, not {BAD[text]}"
    assert str(pickle.loads(pickle.dumps(error))) == message, "a recipe error should survive another process"


def test_unknown_method_names_the_closest() -> None:
    with pytest.raises(
        UnknownNameError, match=r"'magnitud', should be 'magnitude' \(known: magnitude, plain_2, tuned\)"
    ):
        parse("plain_2+magnitud:0.5", METHODS)


def test_repeats_unroll_in_order() -> None:
    names = [str(step) for step in parse("repeat(2,plain_2:1+repeat(2,plain_2:2))+plain_2:3", METHODS).steps()]
    expected = [f"plain_2:{n}" for n in (1, 2, 2, 1, 2, 2, 3)]
    assert names == expected, f"steps run as {names}, should be {expected}"


def check_length(length: Callable[[Recipe], int]) -> None:
    for text in ("dense", "plain_2", "repeat(2,plain_2+repeat(3,plain_2))+plain_2", "repeat(5,repeat(4,plain_2))"):
        recipe = parse(text, METHODS)
        unrolled = len(list(recipe.steps()))
        assert length(recipe) == unrolled, f"{text} has length {length(recipe)}, should be {unrolled}"


def test_the_length_is_that_of_the_unrolled_steps() -> None:
    check_length(lambda recipe: recipe.length)


def test_check_length_rejects_mutant_items_as_written() -> None:
    with pytest.raises(AssertionError, match="should be"):
        check_length(lambda recipe: len(recipe.items))


@pytest.mark.parametrize("of", [sparsity_of, count_of, bits_of])
def test_a_missing_level_is_called_so(of: Callable[[str, Any], Any]) -> None:
    with pytest.raises(LevelError, match="step: no level, should be"):
        of("step", None)


def test_an_option_may_not_be_none_when_its_type_says_so() -> None:
    with pytest.raises(RecipeError, match=r"should be int for tuned's count"):
        parse("tuned,count=none", METHODS)


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (0.9, Number(0.9)),
        (2, Number(2.0)),
        ("2of4", NofM(2, 4)),
        ("w8a8", Bits(8, 8)),
        (None, None),
        (DType("bf16"),) * 2,
    ],
)
def test_levels_from_python(level: Any, expected: Any) -> None:
    assert as_level(level) == expected, f"{level!r} is {as_level(level)}, should be {expected}"


@pytest.mark.parametrize("level", [True, float("nan"), float("inf"), [0.5], b"0.5", object], ids=repr)
def test_levels_that_are_none(level: Any) -> None:
    with pytest.raises(LevelError, match="should be"):
        as_level(level)


@pytest.mark.parametrize("level", [1, 1.5, -0.1, "w8a8", "2of4", None])
def test_sparsity_outside_its_range(level: Any) -> None:
    with pytest.raises(LevelError, match=r"in \[0, 1\)"):
        sparsity_of("magnitude", level)


@pytest.mark.parametrize("level", [0, 0.0, -0.0, 0.999999, "0.5"])
def test_sparsity_inside_its_range(level: Any) -> None:
    value = sparsity_of("magnitude", level)
    assert value == float(level), f"sparsity {value}, should be {level}"


@pytest.mark.parametrize("level", [0, 1.5, -1, "bf16", None])
def test_counts_that_are_none(level: Any) -> None:
    with pytest.raises(LevelError, match="whole number >= 1"):
        count_of("finetune", level)


@pytest.mark.parametrize("level", [0.5, "w1a8", "w8a9", "w16", None])
def test_bits_that_are_none(level: Any) -> None:
    with pytest.raises(LevelError, match="bits"):
        bits_of("static", level)


def test_zero_has_one_spelling() -> None:
    assert str(Number(-0.0)) == "0", f"minus zero prints {Number(-0.0)}, should be 0"
