"""What all recipe steps share: the context they are given and how they register."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from pruning_bench.errors import ModelError, PluginError
from pruning_bench.registry import STEPS

if TYPE_CHECKING:
    from pruning_bench.datasets.contract import Examples, Split

C = TypeVar("C", bound=type)


def _silent(message: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True)
class Past:
    """The model as it was after some step.

    Args:
        state: its `state_dict`, copied.
        plans: how many plans had been made.
    """

    state: Mapping[str, Tensor]
    plans: int


@dataclass(frozen=True)
class Context:
    """What a step may use besides the model.

    Args:
        example_inputs: positional arguments of the model's forward, batch first.
        generator: the only source of random numbers, on the CPU.
        calibration: batches of model inputs (each a tuple of positional arguments), or None.
        earlier: parameter name -> mask of what earlier steps keep, in the model's present shapes; a level is a share of
            what they left.
        train: examples for steps that train, or None.
        seed: the case's seed; `generator` was seeded with it.
        progress: called as `progress(message, done, total)`.
        past: for a step whose tags ask for it, the model that came in, then the model after each step so far.
        dense: the model that came in, to compute with: in evaluation mode, and not to be changed.
    """

    example_inputs: tuple[Tensor, ...]
    generator: torch.Generator
    calibration: Sequence[tuple[Tensor, ...]] | None = None
    train: Examples | None = None
    earlier: Mapping[str, Tensor] = field(default_factory=dict)
    seed: int = 0
    progress: Callable[[str, int, int], None] = _silent
    past: Sequence[Past] = ()
    dense: nn.Module | None = None

    def need_calibration(self, who: str) -> Sequence[tuple[Tensor, ...]]:
        """The calibration batches; raises `ModelError` when there are none, or one has no example."""
        if not self.calibration:
            raise ModelError(who, "no calibration data", "batches of model inputs given as calibration=")
        for number, batch in enumerate(self.calibration):
            if batch[0].dim() and not len(batch[0]):
                found = f"an empty batch of shape {list(batch[0].shape)}"
                raise ModelError(who, found, "at least one example", f"calibration batch {number}")
        return self.calibration

    def need_examples(self, who: str) -> Examples:
        """The training examples, of whatever kind; raises `ModelError` or `DataError` when there are none."""
        from pruning_bench.datasets.contract import check_not_empty

        if self.train is None:
            raise ModelError(who, "no training data", "labelled examples given as train=")
        check_not_empty(self.train, who)
        return self.train

    def need_dense(self, who: str) -> nn.Module:
        """The model that came in; raises `ModelError` when it is not given."""
        if self.dense is None:
            raise ModelError(who, "no dense model", "a step of a recipe, or a context with dense=")
        return self.dense

    def need_train(self, who: str) -> Split:
        """The training examples as labelled images; raises `ModelError` or `DataError` when there are none."""
        from pruning_bench.datasets.contract import labelled_images

        return labelled_images(self.need_examples(who), who)


def register_step(cls: C, tags: type, verb: str) -> C:
    """Registers a recipe step once its contract holds: frozen dataclass, `name`, `tags` of the right type, `verb`."""
    who = f"{cls.__module__}.{cls.__qualname__}"
    params = getattr(cls, "__dataclass_params__", None)
    if params is None or not params.frozen:
        raise PluginError(who, "not a frozen dataclass", "decorated by @dataclass(frozen=True) below the registration")
    if not isinstance(getattr(cls, "tags", None), tags):
        raise PluginError(who, f"tags {getattr(cls, 'tags', None)!r}", f"a {tags.__name__}")
    if not callable(getattr(cls, verb, None)):
        raise PluginError(who, f"no method {verb!r}", f"a method {verb}")
    for option in dataclasses.fields(cls):
        if option.default is dataclasses.MISSING:
            raise PluginError(who, f"option {option.name!r} without default", "a default for every option")
    STEPS.add(getattr(cls, "name", ""), cls)
    return cls
