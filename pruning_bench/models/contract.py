"""What a reference model is: a builder with a name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from pruning_bench.errors import ModelError
from pruning_bench.registry import MODELS

F = TypeVar("F", bound=Callable[..., nn.Module])


@dataclass(frozen=True)
class ReferenceModel:
    """A model by name.

    Args:
        name: snake_case.
        build: `build(*, num_classes, in_channels, **options) -> nn.Module`; random weights.
    """

    name: str
    build: Callable[..., nn.Module]


def reference_model(build: F) -> F:
    """Registers a builder under its function name; it takes keyword arguments `num_classes` and `in_channels`."""
    MODELS.add(build.__name__, ReferenceModel(build.__name__, build))
    return build


def build_model(name: str, **options: Any) -> nn.Module:
    """A fresh model with random weights, in eval mode.

    Raises:
        UnknownNameError: not registered.
        ModelError: options that its builder does not take.
    """
    build: Callable[..., nn.Module] = MODELS[name].build
    try:
        inspect.signature(build).bind(**options)
    except TypeError as error:
        raise ModelError(name, f"options {options} ({error})", "those that its builder takes") from None
    return build(**options).eval()
