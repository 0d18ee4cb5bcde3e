"""What a training step is: the only kind of recipe step that trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar, runtime_checkable

from torch import nn

from pruning_bench.contracts import register_step

if TYPE_CHECKING:
    from pruning_bench.contracts import Context
    from pruning_bench.levels import LevelReader

C = TypeVar("C", bound=type)


@dataclass(frozen=True)
class StepTags:
    """Claims of a training step.

    Args:
        level: reads a level or raises `LevelError`, so that no recipe parses with one that is never taken; None: any.
        trains_weights: parameters change by gradient, so that the seed is the unit when accuracy is judged.
        needs_past: the step reads `context.past`, which the engine keeps for such a step alone.
        quantizes: the step gives a `QuantPlan`, so that it is the last one of its recipe.
        reference: the paper.
        expected_failures: check name -> reason; strict.
    """

    level: LevelReader | None = None
    trains_weights: bool = True
    needs_past: bool = False
    quantizes: bool = False
    reference: str = ""
    expected_failures: Mapping[str, str] = field(default_factory=dict)


@runtime_checkable
class TrainingStep(Protocol):
    """Implemented by a frozen dataclass whose fields are the recipe's options; see `training_step`.

    `run` changes `model` in place (the engine hands it a copy) and must keep what `plans` pruned at zero
    (`pruning.masks.keep_pruned`). `level` is what stands after the colon, a `levels.Level`. A step that prunes while it
    trains returns the plans of what it removed, which the engine applies and keeps like those of a method; one that
    quantizes leaves the model as it is and returns a `QuantPlan` with what it trained as `writes`.

    A class attribute `examples`, recipe texts, makes benchmark cases of the profile nightly.
    """

    name: ClassVar[str]
    tags: ClassVar[StepTags]

    def run(self, model: nn.Module, level: Any, plans: Sequence[Any], context: Context) -> Sequence[Any] | None:
        """Trains the model in place and keeps what was pruned at zero; returns what else it pruned, if anything."""


def training_step(cls: C) -> C:
    """Registers a training step under its `name`; raises `PluginError` if it does not keep the contract."""
    return register_step(cls, StepTags, "run")
