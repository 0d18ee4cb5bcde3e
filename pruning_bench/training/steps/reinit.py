"""Fresh weights: what lottery tickets start from, and the control that trains a pruned architecture from scratch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from pruning_bench.errors import LevelError, ModelError
from pruning_bench.pruning.masks import current_masks
from pruning_bench.training.contract import StepTags, training_step

if TYPE_CHECKING:
    from pruning_bench.contracts import Context


def no_level(who: str, level: Any) -> None:
    """Raises `LevelError` for any level."""
    if level is not None:
        raise LevelError(who, f"level {level}", "no level")


@training_step
@dataclass(frozen=True)
class Reinit:
    """Draws all weights anew, as each module's own `reset_parameters` does, parents last. Takes no level.

    What was pruned stays zero.

    Raises:
        ModelError: a module holds parameters and cannot draw them; names it.
    """

    name: ClassVar[str] = "reinit"
    tags: ClassVar[StepTags] = StepTags(
        level=no_level, reference="Liu et al., Rethinking the Value of Network Pruning, ICLR 2019, arXiv 1810.05270"
    )

    def run(self, model: nn.Module, level: Any, plans: Sequence[Any], context: Context) -> None:
        """Replaces the weights of `model` in place."""
        no_level(self.name, level)
        seed = int(torch.randint(2**62, (), generator=context.generator))
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.default_generator.manual_seed(seed)
            for path, module in reversed(list(model.named_modules())):  # parents last: they may draw for children
                reset = getattr(module, "reset_parameters", getattr(module, "_reset_parameters", None))
                if callable(reset):
                    reset()
                elif any(True for _ in module.parameters(recurse=False)):
                    where = f"{path or 'model'} ({type(module).__name__})"
                    raise ModelError(self.name, "parameters without reset_parameters", "modules that have it", where)
            for name, mask in current_masks(plans).items():
                parameter = model.get_parameter(name)
                parameter.masked_fill_(~mask.to(parameter.device), 0)
