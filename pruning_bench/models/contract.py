"""What a model is to the suite: a builder with a name; or a function that gives a user's own, with its weights."""

from __future__ import annotations

import dataclasses
import inspect
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import torch
from torch import Tensor, nn

from pruning_bench.errors import ModelError, PruningBenchError, describe
from pruning_bench.registry import MODELS

F = TypeVar("F", bound=Callable[..., nn.Module])


@dataclass(frozen=True)
class ReferenceModel:
    """A model by name.

    Args:
        name: snake_case.
        build: `build(*, num_classes, in_channels, **options) -> nn.Module`; random weights.
        options: of `build`, which `ready` takes.
        ready: the model with the weights that it is measured with, in eval mode; None where a checkpoint has them.
        own: `build()` gives a model with the weights that are to be compressed; see `trained_model`.
        data: the name of the examples of such a model; None for the only ones there are.
        declared: the pyproject.toml that names it, if one does.
    """

    name: str
    build: Callable[..., nn.Module]
    options: Mapping[str, Any] = field(default_factory=dict)
    ready: Callable[[], nn.Module] | None = None
    own: bool = False
    data: str | None = None
    declared: Path | None = None


def reference_model(build: F) -> F:
    """Registers a builder under its function name; it takes keyword arguments `num_classes` and `in_channels`."""
    MODELS.add(build.__name__, ReferenceModel(build.__name__, build))
    return build


@overload
def trained_model(build: F) -> F: ...
@overload
def trained_model(*, data: str | Callable[..., object] | None = None) -> Callable[[F], F]: ...
def trained_model(build: F | None = None, *, data: str | Callable[..., object] | None = None) -> F | Callable[[F], F]:
    """Registers a function without arguments that gives your model with its weights, under its own name.

    The model takes the tensors of its examples as positional arguments and returns a tensor with the examples first;
    of a tuple, a mapping or a dataclass the first tensor counts. The function is called in every process that needs the
    model, with the random numbers of torch, numpy and Python seeded, and must give the same model each time.

    Args:
        data: the function (or its name) registered by `evaluation_data`; left out, the only one there is.
    """

    def decorate(build: F) -> F:
        add_trained_model(build, data if data is None or isinstance(data, str) else getattr(data, "__name__", ""))
        return build

    return decorate if build is None else decorate(build)


def add_trained_model(build: Callable[..., nn.Module], data: str | None, declared: Path | None = None) -> str:
    """Registers a model that a function gives with its weights; returns its name."""
    name = getattr(build, "__name__", "")
    MODELS.add(name, ReferenceModel(name, build, own=True, data=data, declared=declared))
    return name


def build_model(name: str, **options: Any) -> nn.Module:
    """A fresh model in eval mode: with random weights, or a user's own with its weights.

    Raises:
        UnknownNameError: not registered.
        ModelError: options that its builder does not take; a user's function that gives no model.
    """
    definition: ReferenceModel = MODELS[name]
    if definition.own:
        return own_model(definition, **options)
    build = definition.build
    try:
        inspect.signature(build).bind(**options)
    except TypeError as error:
        raise ModelError(name, f"options {options} ({error})", "those that its builder takes") from None
    return build(**options).eval()


def own_model(definition: ReferenceModel, *, first_output: bool = False) -> nn.Module:
    """What a user's function gives, in eval mode; raises `ModelError` where it fails or gives no module.

    Args:
        first_output: the model returns several tensors; see `FirstOutput`.
    """
    model = call_seeded(definition.build, ModelError)
    if not isinstance(model, nn.Module):
        found = f"{definition.name}() returns {type(model).__name__}"
        raise ModelError("model", found, "a torch.nn.Module with its weights", place_of(definition.build))
    return FirstOutput(model).eval() if first_output else model.eval()


class FirstOutput(nn.Module):
    """A model of which the first output counts."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *inputs: Tensor) -> Tensor:
        """The first tensor that the model returns."""
        first = first_tensor(self.inner(*inputs))
        assert first is not None
        return first


def first_tensor(output: object) -> Tensor | None:
    """The first tensor in what a model returns: itself, or inside tuples, lists, mappings and dataclasses.

    Example:
        >>> first_tensor({"loss": None, "logits": (torch.ones(2), torch.zeros(3))})
        tensor([1., 1.])
    """
    if isinstance(output, Tensor):
        return output
    parts: Iterable[object] = ()
    if isinstance(output, Mapping):
        parts = output.values()
    elif isinstance(output, (tuple, list)):
        parts = output
    elif dataclasses.is_dataclass(output):
        parts = [getattr(output, field.name) for field in dataclasses.fields(output)]
    return next((found for part in parts if (found := first_tensor(part)) is not None), None)


def fresh(inputs: Iterable[Any]) -> tuple[Any, ...]:
    """Copies of the tensors among inputs: a model may change its inputs in place, and the next is to see the same."""
    return tuple(value.clone() if isinstance(value, Tensor) else value for value in inputs)


def call_seeded(function: Callable[[], Any], error: type[PruningBenchError]) -> Any:
    """What a user's function returns, with all random numbers seeded; an exception, or an exit, becomes one line."""
    name, where = getattr(function, "__name__", "?"), place_of(function)
    try:
        with _seeded():
            return function()
    except PruningBenchError:
        raise
    except (Exception, SystemExit) as problem:
        found = f"{name}() raises {describe(problem)}"
        raise error("call", found, "its result", where) from problem


@contextmanager
def _seeded() -> Iterator[None]:
    """The global random numbers of torch, numpy and Python from a fixed seed, and afterwards as they were."""
    python, legacy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)


def place_of(function: Callable[..., object]) -> str:
    """`file:line` of a function, or what it is called."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else repr(function)
