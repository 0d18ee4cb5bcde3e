"""Fingerprints of a user's own model: the same wherever the weights lie, another one for another computation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pruning_bench import fingerprints
from pruning_bench.fingerprints import fingerprint


def net() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.GELU(), nn.Dropout(0.1))
    made.name_or_path = "/home/here/models/net"  # type: ignore[assignment]
    return made


def times(factor: float) -> Callable[[Tensor], Tensor]:
    return lambda x: x * factor


def again(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A function that holds itself."""

    def made(x: Tensor) -> Tensor:
        return function(x) if x.dim() else made(x[None])

    return made


def with_function(made: nn.Sequential, function: object) -> str:
    made.act = function  # type: ignore[assignment]
    return fingerprint(made)


FUNCTIONS: dict[str, tuple[object, object]] = {
    "torch's": (functional.relu, functional.silu),
    "built in": (functional.gelu, torch.relu),
    "methods": (Tensor.relu, Tensor.sigmoid),
    "lambdas": (lambda x: x, lambda x: -x),
    "closures": (times(0.5), times(2.0)),
    "partial": (partial(functional.gelu, approximate="tanh"), partial(functional.gelu, approximate="none")),
    "partial of another": (partial(functional.elu, alpha=1.0), partial(functional.celu, alpha=1.0)),
    "one of several": ([functional.relu, functional.relu], [functional.relu, functional.silu]),
    "inside another": (again(functional.relu), again(functional.silu)),
}


def check_functions(kind: str) -> None:
    one, other = FUNCTIONS[kind]
    assert with_function(net(), one) == with_function(net(), one), f"{kind}: equal ones differ"
    assert with_function(net(), one) != with_function(net(), other), f"{kind}: another function does not show"


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_another_function(kind: str) -> None:
    check_functions(kind)


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_functions_that_do_not_count_are_caught(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "_function", lambda *_: None)
    with pytest.raises(AssertionError, match="another function does not show"):
        check_functions(kind)


@pytest.mark.parametrize("kind", ["partial(nn.LayerNorm)", "text", "mixed"])
def test_what_is_neither_plain_nor_a_function_does_not_count(kind: str) -> None:
    """So that fingerprints of models that hold a class, as vit_tiny does, stay what they are."""
    held = {"partial(nn.LayerNorm)": partial(nn.LayerNorm, eps=1e-6), "text": ["/mnt/here"], "mixed": [1, "/mnt/here"]}
    assert with_function(net(), held[kind]) == fingerprint(net()), f"{kind} counts"


def test_a_functions_fingerprint_is_of_its_name_where_it_is_installed() -> None:
    """Its code differs between versions of torch and Python."""
    assert fingerprints._function(functional.relu) == "torch relu", fingerprints._function(functional.relu)


SAME: dict[str, Callable[[nn.Sequential], object]] = {
    "nothing": lambda m: None,
    "another folder": lambda m: setattr(m, "name_or_path", "/mnt/there/net"),
    "other folders": lambda m: setattr(m, "folders", ["/mnt/there", "/mnt/here"]),
    "private": lambda m: setattr(m, "_number", 3),
}
OTHER: dict[str, Callable[[nn.Sequential], object]] = {
    "weight": lambda m: m[0].weight.data.mul_(2),
    "number": lambda m: setattr(m[2], "p", 0.2),
    "flag": lambda m: setattr(m, "flag", True),
    "numbers": lambda m: setattr(m[0], "stride", (2, 2)),
    "padding": lambda m: setattr(m[0], "padding_mode", "circular"),
    "approximation": lambda m: setattr(m[1], "approximate", "tanh"),
    "class": lambda m: m.__setitem__(1, nn.ReLU()),
    "type": lambda m: setattr(m, "kind", torch.float16),
}


@pytest.mark.parametrize("change", SAME)
def test_the_same_model_elsewhere(change: str) -> None:
    other = net()
    SAME[change](other)
    assert fingerprint(other) == fingerprint(net()), f"{change}: the weights and the computation are the same"


@pytest.mark.parametrize("change", OTHER)
def test_another_model(change: str) -> None:
    other = net()
    OTHER[change](other)
    assert fingerprint(other) != fingerprint(net()), f"{change}: it does not show"
