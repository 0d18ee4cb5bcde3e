"""What must hold for every training step, on a tiny model and images of two classes: checks that assert.

A check takes the step. `checks_for_training` lists the checks that its tags ask for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from pruning_bench.conformance.traces import check_own_memory, differences, held, held_frame, leaves_no_trace
from pruning_bench.contracts import Context, Past
from pruning_bench.datasets.contract import Split
from pruning_bench.errors import LevelError, PluginError
from pruning_bench.levels import Bits, Level, NofM, Number
from pruning_bench.pruning.contract import ChannelPlan, MaskPlan
from pruning_bench.pruning.masks import current_masks
from pruning_bench.pruning.shrink import apply_channels
from pruning_bench.quantization.affine import fake_quantize
from pruning_bench.quantization.contract import QuantPlan
from pruning_bench.training.contract import TrainingStep

Check: TypeAlias = Callable[[TrainingStep], None]
LEVELS: tuple[tuple[Level | None, ...], ...] = (
    (Number(1), Number(2)),
    (Number(0.25), Number(0.5)),
    (Bits(8, 8), Bits(4, 4)),
    (Bits(8), Bits(4)),
    (NofM(2, 4), NofM(1, 4)),
    (None,),
)
MANY = 512  # images: several batches for every step, so that a level that counts them shows


def split_of(count: int = 64) -> Split:
    """Images of 8 x 8 that are brighter above (class 0) or below (class 1)."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (count,), generator=generator)
    images = torch.randint(0, 60, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    for index, label in enumerate(labels.tolist()):
        images[index, :, 4 * label : 4 * label + 4] += 150
    return Split(images, labels, torch.tensor([0.4]), torch.tensor([0.3]))


def context(seed: int = 0, train: Split | None = None, plans: Sequence[Any] = ()) -> Context:
    """A context after the plans, with training images, which also calibrate, and the tiny model as the dense one."""
    inputs, train, generator = (torch.zeros(1, 1, 8, 8),), train or split_of(), torch.Generator().manual_seed(seed)
    batches, earlier = [(train.inputs(slice(64)),)], current_masks(plans)
    return Context(inputs, generator, batches, train=train, earlier=earlier, seed=seed, dense=tiny_model())


def tiny_model() -> nn.Module:
    """Two convolutions with batch norm, dropout and a linear layer, in eval mode; the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        second = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        return nn.Sequential(first, second, nn.Flatten(), nn.Dropout(0.5), nn.Linear(256, 2)).eval()


def masked_model() -> tuple[nn.Module, MaskPlan]:
    """The tiny model with half of its weights pruned, and the plan that did it."""
    model = tiny_model()
    generator = torch.Generator().manual_seed(1)
    masks = {
        name: torch.rand(parameter.shape, generator=generator) < 0.5
        for name, parameter in model.named_parameters()
        if parameter.dim() > 1
    }
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
    return model, MaskPlan(masks)


def state(model: nn.Module) -> Tensor:
    """All numbers of a model, float64 [N]."""
    return torch.cat([tensor.detach().flatten().double() for tensor in model.state_dict().values()])


def compressed_model() -> tuple[nn.Module, tuple[MaskPlan, ChannelPlan]]:
    """The masked model without one of the channels of its first layer, and the two plans that did it."""
    model, masks = masked_model()
    kept = {0: torch.tensor([0, 1, 3])}
    made = ("0.0.weight", "0.0.bias", "0.1.weight", "0.1.bias", "0.1.running_mean", "0.1.running_var")
    channels = ChannelPlan({**dict.fromkeys(made, kept), "1.0.weight": {1: kept[0]}})
    return apply_channels(model, channels), (masks, channels)


def levels_of(step: TrainingStep) -> tuple[Level | None, ...]:
    """Two levels that the step's tags take, or the only one; a single 1 where the tags do not say what they take."""
    reads = step.tags.level
    if reads is None:
        return (Number(1),)
    for levels in LEVELS:
        try:
            for level in levels:
                reads(step.name, level)
        except LevelError:
            continue
        return levels
    refused = ", ".join(str(level) for levels in LEVELS for level in levels)
    raise PluginError(step.name, f"tags.level refuses {refused}", "a reader that takes one of them")


def check_keeps_pruned(step: TrainingStep) -> None:
    """Weights that masks pruned stay zero, also where channels went after them; if the tags say so, kept ones train."""
    model, plans = compressed_model()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    made = step.run(model, levels_of(step)[-1], plans, _given(step, plans=plans)) or ()
    after = _weights(model, made)
    for name, mask in current_masks(plans).items():
        revived = int(after[name][~mask].count_nonzero())
        assert revived == 0, f"{name}: {revived} of {int((~mask).sum())} pruned weights revived, should be 0"
        moved = int((after[name] != before[name])[mask].sum())
        assert moved > 0 or not step.tags.trains_weights, f"{name}: {moved} kept weights changed, should train"
    kinds = sorted(type(plan).__name__ for plan in made)
    quantizes = any(isinstance(plan, QuantPlan) for plan in made)
    assert quantizes == step.tags.quantizes, f"gives {kinds}, should be as tags.quantizes={step.tags.quantizes} says"


def check_leaves_no_trace(step: TrainingStep) -> None:
    """Of the model only values change: it ends in evaluation mode, without gradients, hooks and other settings, its
    parameters as trainable as before; nothing changes of a model that is quantized, nor of anything else."""
    model, plans = compressed_model()
    given = _given(step, plans=plans)
    look = held if step.tags.quantizes else held_frame
    with leaves_no_trace(
        f"{step.name}.run", lambda: {"model": look(model), **held({"context": given, "plans": plans})}
    ):
        made = step.run(model, levels_of(step)[0], plans, given)
    check_own_memory(step.name, made, {"model": model})


def check_deterministic(step: TrainingStep) -> None:
    """Equal for equal generators whatever the global one; where weights train, different for different ones."""
    results = []
    with torch.random.fork_rng(devices=[]):
        for seed, noise in ((0, 3), (0, 4), (1, 3)):
            torch.manual_seed(noise)
            results.append(_result(step, levels_of(step)[0], _given(step, seed)))
    different = differences(results[0], results[1])
    assert not different, f"{step.name}: two runs differ in {', '.join(different)}, should be equal"
    differs = bool(differences(results[0], results[2]))
    assert differs or not step.tags.trains_weights, "generators 0 and 1 give equal results, should differ"


def check_level_matters(step: TrainingStep) -> None:
    """Two levels give two results."""
    train, levels = split_of(MANY), levels_of(step)
    results = [_result(step, level, _given(step, train=train)) for level in levels]
    differs = bool(differences(results[0], results[1]))
    assert differs, f"{step.name}: levels {levels[0]} and {levels[1]} give equal results, should differ"


def checks_for_training(step: TrainingStep) -> list[tuple[str, Check]]:
    """(name, check) of every law that the step's tags ask for; each check is called with the step."""
    checks: list[Check] = [check_keeps_pruned, check_leaves_no_trace, check_deterministic]
    checks += [check_level_matters] if len(levels_of(step)) > 1 else []
    return [(check.__name__.removeprefix("check_"), check) for check in checks]


def _given(step: TrainingStep, seed: int = 0, train: Split | None = None, plans: Sequence[Any] = ()) -> Context:
    """A context with all that the step may ask for."""
    given = context(seed, train, plans)
    return replace(given, past=_past()) if step.tags.needs_past else given


def _past() -> list[Past]:
    """The tiny model, and what two steps may have made of it."""
    start = tiny_model().state_dict()
    return [Past({name: tensor + shift for name, tensor in start.items()}, 0) for shift in range(3)]


def _result(step: TrainingStep, level: Level | None, given: Context) -> object:
    """What becomes of the tiny model, and the plans that the step gives."""
    model = tiny_model()
    made = step.run(model, level, (), given)
    return {"model": dict(model.state_dict()), "plans": list(made or ())}


def _weights(model: nn.Module, made: Sequence[Any]) -> dict[str, Tensor]:
    """Parameter name -> its values, as a plan among those that were made rounds them."""
    values = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for plan in made:
        if isinstance(plan, QuantPlan):
            for name, coding in plan.weights.items():
                values[name] = fake_quantize(plan.writes.get(name, values[name]), coding)
    return values
