"""What must hold for every plan once it is applied: checks that assert.

A check takes what it judges and returns nothing; a message holds the values and can be read without the source.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from pruning_bench.conformance.strategies import Subject, other_inputs, randomise
from pruning_bench.pruning.contract import ChannelPlan, MaskPlan
from pruning_bench.pruning.couplings import find_couplings
from pruning_bench.pruning.masks import apply_masks, keep_pruned, prunable
from pruning_bench.pruning.shrink import apply_channels, resize_to, zero_channels

Plan: TypeAlias = MaskPlan | ChannelPlan
Apply: TypeAlias = Callable[[nn.Module, Any], nn.Module]
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}  # of the difference between two inputs' outputs
OPTIMIZERS: Mapping[str, Callable[[Any], Optimizer]] = {
    "sgd_momentum": lambda parameters: SGD(parameters, lr=0.01, momentum=0.9),
    "adam": lambda parameters: Adam(parameters, lr=0.01),
    "adamw": lambda parameters: AdamW(parameters, lr=0.01, weight_decay=0.1),
    "lbfgs": lambda parameters: torch.optim.LBFGS(parameters, lr=0.1, max_iter=3),
}


def apply_plan(model: nn.Module, plan: Plan) -> nn.Module:
    """A copy of the model that the plan was applied to."""
    return apply_masks(model, plan) if isinstance(plan, MaskPlan) else apply_channels(model, plan)


def kept_entries(plan: Plan, model: nn.Module) -> dict[str, Tensor]:
    """Tensor name -> which of its entries stay."""
    if isinstance(plan, MaskPlan):
        return dict(plan.masks)
    kept = {}
    for name, tensor in model.state_dict().items():
        kept[name] = torch.ones(tensor.shape, dtype=torch.bool)
        for dim, index in plan.kept.get(name, {}).items():
            gone = torch.ones(tensor.shape[dim], dtype=torch.bool).index_fill(0, index, False)
            kept[name].index_fill_(dim, gone.nonzero().squeeze(1), False)
    return kept


def check_covers_only_prunable(plan: Plan, subject: Subject) -> None:
    """Masks lie on prunable weights, one on each; channels leave inputs and outputs of the model as they are.

    Writes are finite, and lie in the layers that masks or cuts touch.
    """
    touched = plan.masks if isinstance(plan, MaskPlan) else plan.kept
    layers = {name.rpartition(".")[0] for name in touched}
    besides = [name for name in plan.writes if name.rpartition(".")[0] not in layers]
    assert not besides, f"the plan writes {besides}, should be tensors of {sorted(layers)}, which it prunes"
    broken = [name for name, values in plan.writes.items() if not torch.isfinite(values).all()]
    assert not broken, f"the plan writes values that are not finite to {broken}"
    if isinstance(plan, MaskPlan):
        allowed = {name: tuple(p.shape) for name, p in prunable(subject.model, subject.example_inputs).items()}
        found = {name: tuple(mask.shape) for name, mask in plan.masks.items()}
        assert found == allowed, f"masks on {found}, should be on the prunable weights {allowed} of {subject.name}"
        return
    couplings = find_couplings(subject.model, subject.example_inputs)
    free = {unit for units in couplings.groups.values() for unit in units.tolist()}
    for name, dims in plan.kept.items():
        for dim, index in dims.items():
            units = couplings.units.get((name, dim))
            assert units is not None, f"the plan cuts {name}, dimension {dim}, which holds no channels"
            bound = [i for i, unit in enumerate(units.tolist()) if unit not in free and i not in set(index.tolist())]
            assert not bound, f"the plan removes {bound} of {name}, dimension {dim}, which must stay"


def check_pruned_stay_zero(
    plan: MaskPlan, subject: Subject, optimizer: str, keep: Callable[..., Any] = keep_pruned, steps: int = 3
) -> None:
    """Pruned weights are exactly zero after every training step, with optimizer state older than the mask."""
    model = copy.deepcopy(subject.model)
    trainer = OPTIMIZERS[optimizer](model.parameters())
    for _ in range(2):
        _step(model, trainer, subject)
    names, start = list(model.state_dict()), {name: p.detach().clone() for name, p in model.named_parameters()}
    with keep(model, [plan], trainer):
        for step in range(steps):
            _step(model, trainer, subject)
            for name, mask in plan.masks.items():
                alive = int((model.get_parameter(name)[~mask] != 0).sum())
                assert not alive, (
                    f"{alive} of {int((~mask).sum())} pruned weights of {name} alive, {optimizer} step {step}"
                )
    moved = any(bool((p.detach() != start[name])[plan.masks[name]].any()) for name, p in _masked(model, plan))
    assert moved or not any(mask.any() for mask in plan.masks.values()), f"{optimizer} moved no kept weight"
    assert list(model.state_dict()) == names, f"state_dict holds {list(model.state_dict())}, should be {names}"


def _masked(model: nn.Module, plan: MaskPlan) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if name in plan.masks]


def _step(model: nn.Module, optimizer: Optimizer, subject: Subject) -> None:
    def loss() -> Tensor:
        optimizer.zero_grad()
        value: Tensor = (model(*subject.example_inputs) - 1).square().mean()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[arg-type]


def check_state_dict_loads(plan: Plan, subject: Subject, apply: Apply = apply_plan) -> None:
    """The state of the finished model loads into a fresh one, dense or resized, which then computes the same."""
    finished = apply(subject.model, plan)
    state, dense = finished.state_dict(), subject.model.state_dict()
    assert list(state) == list(dense), f"state_dict holds {list(state)}, should be {list(dense)}"
    fresh = randomise(subject.model, subject.example_inputs, seed=1)
    if isinstance(plan, ChannelPlan):
        fresh = resize_to(fresh, {name: tensor.shape for name, tensor in state.items()})
    fresh.load_state_dict(state, strict=True)
    require_same(outputs(fresh, subject), outputs(finished, subject), f"{subject.name} loaded from its state_dict")


def check_deepcopy(plan: Plan, subject: Subject, apply: Apply = apply_plan) -> None:
    """The finished model can be copied before and after a forward; the copy computes the same."""
    finished = apply(subject.model, plan)
    try:
        early = copy.deepcopy(finished)
        output = finished(*subject.example_inputs)
        late = copy.deepcopy(finished)
    except RuntimeError as error:  # computed tensors left in the model
        raise AssertionError(f"{subject.name} cannot be copied: {error}") from error
    for name, twin in (("before", early), ("after", late)):
        require_same(outputs(twin, subject), output.detach(), f"{subject.name} copied {name} a forward")


def check_twin(
    model: nn.Module,
    plan: ChannelPlan,
    example_inputs: tuple[Tensor, ...],
    tolerance: float | None = None,
    seed: int = 0,
) -> None:
    """The shrunk model equals its masked twin, with every parameter and buffer randomised.

    Differences are measured against the difference between the outputs of two inputs, so that an output which hardly
    depends on the input proves nothing.

    Args:
        tolerance: None takes 1e-4 in float32 and 1e-10 in float64.
    """
    model = randomise(model, example_inputs, seed)
    subject = Subject("twin", model, example_inputs)
    noise = torch.Generator().manual_seed(seed + 7919)  # not the seed that may have made the example inputs
    other = Subject("twin", model, other_inputs(example_inputs, noise))
    small, twin = apply_channels(model, plan), zero_channels(model, plan)
    found, expected = outputs(small, subject), outputs(twin, subject)
    signals = (found - outputs(small, other), expected - outputs(twin, other))
    signal, size = max(float(one.abs().max()) for one in signals), float(expected.abs().max())
    assert signal > 1e-6 * size > 0, f"outputs of two inputs differ by {signal} of {size}: equality would prove nothing"
    error = float((found - expected).abs().max()) / signal if found.shape == expected.shape else float("inf")
    bound = TOLERANCE[expected.dtype] if tolerance is None else tolerance
    assert error <= bound, f"shrunk and masked outputs differ by {error} of the signal {signal}, should be <= {bound}"


def check_twins(plan: ChannelPlan, subject: Subject) -> None:
    """`check_twin` in float32 and in float64."""
    check_twin(subject.model, plan, subject.example_inputs)
    doubles = tuple(value.double() for value in subject.example_inputs)
    check_twin(copy.deepcopy(subject.model).double(), plan, doubles)


@torch.no_grad()
def outputs(model: nn.Module, subject: Subject) -> Tensor:
    """What the model gives for the subject's inputs, in eval mode."""
    try:
        output: Tensor = model.eval()(*subject.example_inputs)
    except RuntimeError as error:
        raise AssertionError(f"{subject.name}: the model does not run: {error}") from error
    return output


def require_same(found: Tensor, expected: Tensor, what: str) -> None:
    """Outputs that are equal bit by bit."""
    worst = float((found - expected).abs().max()) if found.shape == expected.shape else float("inf")
    assert torch.equal(found, expected), f"{what}: outputs differ by up to {worst}, should be equal"
