"""What a reference model is: a builder with a name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

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
    """A fresh model with random weights, in eval mode; raises `UnknownNameError`."""
    model: nn.Module = MODELS[name].build(**options)
    return model.eval()
