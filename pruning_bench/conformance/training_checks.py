"""What must hold for every training step, on a tiny model and images of two classes: checks that assert.

A check takes the step's `run`, or a function of the same arguments `(model, level, plans, context)`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from pruning_bench.contracts import Context
from pruning_bench.datasets.contract import Split
from pruning_bench.levels import Number
from pruning_bench.pruning.contract import MaskPlan

Run: TypeAlias = Callable[[nn.Module, Any, Any, Context], Any]


def split_of(count: int = 64) -> Split:
    """Images of 8 x 8 that are brighter above (class 0) or below (class 1)."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (count,), generator=generator)
    images = torch.randint(0, 60, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    for index, label in enumerate(labels.tolist()):
        images[index, :, 4 * label : 4 * label + 4] += 150
    return Split(images, labels, torch.tensor([0.4]), torch.tensor([0.3]))


def context(seed: int = 0, train: Split | None = None) -> Context:
    """A context with training images, and the tiny model as the dense one."""
    inputs, generator = (torch.zeros(1, 1, 8, 8),), torch.Generator().manual_seed(seed)
    return Context(inputs, generator, train=train or split_of(), seed=seed, dense=tiny_model())


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


def check_keeps_pruned(run: Run, level: Any = Number(2)) -> None:  # noqa: B008  (frozen)
    """Pruned weights stay zero, kept ones train; the model ends plain, without gradients and in evaluation mode."""
    model, plan = masked_model()
    names = list(model.state_dict())
    before = copy.deepcopy(model.state_dict())
    run(model, level, (plan,), context())
    for name, mask in plan.masks.items():
        revived = int(model.get_parameter(name)[~mask].count_nonzero())
        assert revived == 0, f"{name}: {revived} of {int((~mask).sum())} pruned weights revived, should be 0"
        moved = int((model.get_parameter(name) != before[name])[mask].sum())
        assert moved > 0, f"{name}: {moved} kept weights changed, should train"
    assert list(model.state_dict()) == names, f"names {list(model.state_dict())}, should be {names}"
    assert not model.training, "training mode, should be evaluation mode"
    left = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert not left, f"gradients left on {left}, should be none"
    kinds = {type(parameter) for parameter in model.parameters()}
    assert kinds == {nn.Parameter}, f"parameters of type {kinds}, should be plain"


def check_deterministic(run: Run, level: Any = Number(1)) -> None:  # noqa: B008  (frozen)
    """Equal for equal generators, different for different ones, untouched by and without touch of the global one."""
    states = []
    for seed, noise in ((0, 3), (0, 4), (1, 3)):
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        model = tiny_model()
        run(model, level, (), context(seed))
        assert torch.equal(before, torch.get_rng_state()), "the global generator moved, should be as before"
        states.append(state(model))
    assert torch.equal(states[0], states[1]), f"differs by {(states[0] - states[1]).abs().max()}, should be equal"
    assert not torch.equal(states[0], states[2]), "generators 0 and 1 give equal results, should differ"
