"""What a pruning method is: a frozen dataclass with one pure method, `plan`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from pruning_bench.contracts import register_step
from pruning_bench.errors import PlanError

if TYPE_CHECKING:
    from pruning_bench.contracts import Context
    from pruning_bench.levels import LevelReader

C = TypeVar("C", bound=type)


@dataclass(frozen=True)
class PruningTags:
    """Claims that switch checks on, and exemptions with reasons.

    Args:
        structure: what is removed: "element" (a `MaskPlan`) or "channel" (a `ChannelPlan`).
        level: reads a level or raises `LevelError`, so that no recipe parses with one that is never taken; None: any.
        nested: what a low level removes, every higher level removes too.
        random: the plan depends on the context's generator (and only then on the seed).
        needs_calibration: `plan` reads `context.calibration`.
        needs_batch_norm: channels are scored by batch norms; a model without any raises `ModelError`.
        needs_train: `plan` reads `context.train` (`pruning.gradients`).
        reference: the paper, `Author et al., title, venue year, arXiv id`.
        expected_failures: check name -> reason; strict: a check that passes all the same is an error.
    """

    structure: Literal["element", "channel"]
    level: LevelReader | None = None
    nested: bool = True
    random: bool = False
    needs_calibration: bool = False
    needs_batch_norm: bool = False
    needs_train: bool = False
    reference: str = ""
    expected_failures: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class MaskPlan:
    """Which single weights stay.

    Args:
        masks: parameter name -> bool tensor of the parameter's shape, True = kept.
        writes: parameter name -> replacement values of the parameter's shape that the method computed (often none); in
            layers that masks lie on.
        untouched: parameter name -> why the level does not fit it, so that it stayed as it was (often none).

    Example:
        >>> plan = MaskPlan({"weight": torch.tensor([True, False])})
        >>> plan.sparsity
        0.5
    """

    masks: Mapping[str, Tensor]
    writes: Mapping[str, Tensor] = field(default_factory=dict)
    untouched: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, mask in self.masks.items():
            if mask.dtype != torch.bool:
                raise PlanError("MaskPlan", f"mask of dtype {mask.dtype}", "torch.bool", name)

    @property
    def sparsity(self) -> float:
        """Share of the covered weights that is removed, in [0, 1]."""
        total = sum(mask.numel() for mask in self.masks.values())
        return 1 - sum(int(mask.sum()) for mask in self.masks.values()) / total if total else 0.0


@dataclass(frozen=True)
class ChannelPlan:
    """Which coupled channels stay, spelled out for every tensor they touch.

    Args:
        kept: tensor name (parameter or buffer) -> {dimension -> sorted indices kept, int64}.
        removed: coupling name -> (channels removed, channels there were); to explain the plan.
        exact: removal equals zeroing (it does not through a LayerNorm's statistics).
        writes: tensor name -> replacement values of the *kept* shape (often none); in layers that are cut.
        untouched: dimension that could not be pruned -> reason.
    """

    kept: Mapping[str, Mapping[int, Tensor]]
    removed: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    exact: bool = True
    writes: Mapping[str, Tensor] = field(default_factory=dict)
    untouched: Mapping[str, str] = field(default_factory=dict)


@runtime_checkable
class PruningMethod(Protocol):
    """Implemented by a frozen dataclass whose fields are the recipe's options; see `pruning_method`.

    A class attribute `examples`, recipe texts, makes benchmark cases of the profile nightly; with another,
    `example_models`, of these models alone.
    """

    name: ClassVar[str]
    tags: ClassVar[PruningTags]

    def plan(self, model: nn.Module, level: Any, context: Context) -> MaskPlan | ChannelPlan:
        """What to remove; never changes the model."""


def pruning_method(cls: C) -> C:
    """Registers a pruning method under its `name`; raises `PluginError` if it does not keep the contract."""
    return register_step(cls, PruningTags, "plan")
