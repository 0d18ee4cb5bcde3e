"""Functions by what they do: equal code is equal in every process, and other code never is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from types import CellType, CodeType, FunctionType

import pytest
from torch import Tensor, nn

from pruning_bench.functions import digest_class, digest_code, held_by

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


def a_class(text: str) -> type:
    scope: dict[str, type] = {}
    exec(f"class Made:\n    {text}", scope)
    return scope["Made"]


@pytest.mark.parametrize(
    "kind",
    ["def f(x): return {}", "@staticmethod\n    def f(): return {}", "@property\n    def f(x): return {}"],
    ids=["method", "static", "property"],
)
def test_classes_of_one_name_differ_by_their_functions(kind: str) -> None:
    one, same, other = (a_class(kind.format(number)) for number in (1, 1, 2))
    assert digest_class(one) == digest_class(same), "equal ones differ"
    assert digest_class(one) != digest_class(other), "another function is not seen"
    derived, second = (type("Derived", (base,), {}) for base in (one, other))
    assert digest_class(derived) != digest_class(second), "a function of a base is not seen"


class Layer(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize("cls", [nn.LayerNorm, Layer])
def test_a_class_is_the_same_after_torch_has_patched_its_own(cls: type, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest_class(cls)
    monkeypatch.setattr(nn.Module, "__init__", lambda self: None)  # torch.compile does, when it is first used
    monkeypatch.setattr(nn.Module, "patched", False, raising=False)
    assert digest_class(cls) == before, "a model that holds a class has another key once anything was compiled"
    monkeypatch.setattr(Layer, "forward", lambda self, x: -x)
    assert (digest_class(cls) == before) is (cls is nn.LayerNorm), "a function of a user's own is not seen"


def test_classes_of_torch_that_share_a_name_differ() -> None:
    same = type("Linear", (nn.Module,), {"__module__": "torch.ao.nn.qat", "__qualname__": "Linear"})
    plain = type("Linear", (nn.Module,), {"__module__": "torch.nn.modules.linear", "__qualname__": "Linear"})
    assert digest_class(same) != digest_class(plain), "torch has several classes called Linear"


def test_a_function_holds_its_surroundings_and_defaults() -> None:
    around = 3

    def function(x: int = 1, *, y: int = 2) -> int:
        return x + y + around

    assert held_by(function) == [3, 1, ("y", 2)], held_by(function)  # type: ignore[arg-type]
    empty = FunctionType(function.__code__, {}, closure=(CellType(),))
    assert held_by(empty) == [None], held_by(empty)
