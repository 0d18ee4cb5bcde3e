"""Functions by what they do: equal code is equal in every process, and other code never is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from types import CellType, CodeType, FunctionType

import pytest

from pruning_bench.functions import digest_code, held_by

WRITTEN = "lambda x: x + 1"
PAIRS = {  # what `WRITTEN` is not, and why
    "constant": "lambda x: x + 2",
    "type of a constant": "lambda x: x + 1.0",
    "operator": "lambda x: x - 1",
    "name": "lambda x: y + 1",
    "argument": "lambda x, y: x + 1",
    "only by keyword": "lambda *, x: x + 1",
    "inner function": "lambda x: (lambda: x + 1)",
}
NESTED = ["lambda x: (lambda: x in {'a', 'b', 'c'})", "lambda x: (lambda: x in {'a', 'b', 'd'})"]
Digest = Callable[[CodeType], str]


def code(text: str) -> CodeType:
    found: CodeType = eval(compile(text, "", "eval", dont_inherit=True)).__code__
    return found


def check(digest: Digest) -> None:
    assert digest(code(WRITTEN)) == digest(code(f"(\n{WRITTEN})")), "the line counts"
    for what, other in PAIRS.items():
        assert digest(code(WRITTEN)) != digest(code(other)), f"another {what} is not seen"
    assert digest(code(NESTED[0])) != digest(code(NESTED[1])), "another constant of an inner function is not seen"


def test_other_code_has_another_digest() -> None:
    check(digest_code)


MUTANTS: dict[str, Digest] = {
    "its name": lambda found: found.co_name,
    "instructions alone": lambda found: found.co_code.hex(),
    "names left out": lambda found: repr((found.co_code, found.co_varnames, found.co_consts)),
    "its place": lambda found: f"{digest_code(found)} {found.co_firstlineno}",
    "equal numbers": lambda found: repr((found.co_code, found.co_names, found.co_varnames, hash(found.co_consts))),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_digest_by_less_or_more_is_caught(mutant: str) -> None:
    with pytest.raises(AssertionError):
        check(MUTANTS[mutant])


def in_processes(expression: str) -> list[str]:
    """What an expression of a code is in two processes that order sets differently."""
    text = f"from pruning_bench.functions import digest_code; code = ({NESTED[0]}).__code__; print({expression})"
    run = [
        subprocess.run(
            [sys.executable, "-c", text],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        for seed in "12"
    ]
    return [done.stdout for done in run]


def test_every_process_gives_the_same_digest() -> None:
    one, other = in_processes("digest_code(code)")
    assert one == other, f"{one} and {other}"
    assert one.strip() == digest_code(code(NESTED[0])), f"{one}, here {digest_code(code(NESTED[0]))}"


def test_an_order_of_sets_that_counts_is_caught() -> None:
    """Mutant: constants as they are shown."""
    one, other = in_processes("[each.co_consts for each in code.co_consts if hasattr(each, 'co_consts')]")
    assert one != other, f"both processes show {one}"


def test_a_function_holds_its_surroundings_and_defaults() -> None:
    around = 3

    def function(x: int = 1, *, y: int = 2) -> int:
        return x + y + around

    assert held_by(function) == [3, 1, ("y", 2)], held_by(function)  # type: ignore[arg-type]
    empty = FunctionType(function.__code__, {}, closure=(CellType(),))
    assert held_by(empty) == [None], held_by(empty)
