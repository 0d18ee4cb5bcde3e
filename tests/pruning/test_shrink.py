"""Smaller models, their twins and the way back."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pruning_bench import compress
from pruning_bench.conformance.strategies import GraphSpec, Subject, graph_specs
from pruning_bench.errors import PlanError
from pruning_bench.pruning import shrink
from pruning_bench.pruning.contract import ChannelPlan, MaskPlan
from pruning_bench.pruning.couplings import find_couplings
from pruning_bench.pruning.masks import apply_masks, keep_pruned, prunable, select_global

PHASES = (Phase.explicit, Phase.reuse, Phase.generate)  # making a failing graph smaller takes minutes
SPEC = GraphSpec((("residual", 5), ("projected", 6), ("pool", 6)))


def halve(model: nn.Module, subject: Subject, seed: int) -> ChannelPlan:
    found = find_couplings(model, subject.example_inputs)
    generator = torch.Generator().manual_seed(seed)
    return found.plan(
        {name: torch.rand(len(u), generator=generator).argsort() >= len(u) // 2 for name, u in found.groups.items()}
    )


def thin(model: nn.Module, subject: Subject) -> MaskPlan:
    weights = prunable(model, subject.example_inputs)
    return MaskPlan(select_global({name: weight.detach().abs() for name, weight in weights.items()}, 0.5))


def train(model: nn.Module, subject: Subject, plans: list[Any]) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model.train()
    with keep_pruned(model, plans, optimizer):
        for _ in range(2):
            optimizer.zero_grad()
            model(*subject.example_inputs).square().mean().backward()
            optimizer.step()
    model.eval()


def same_state(found: nn.Module, expected: nn.Module) -> None:
    one, other = found.state_dict(), expected.state_dict()
    assert list(one) == list(other), f"names {list(one)}, should be {list(other)}"
    for name, value in other.items():
        assert torch.equal(one[name], value), f"{name} is {one[name]}, should be {value}"


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck), phases=PHASES)
@given(graph_specs(3), st.integers(0, 100))
def test_expanding_the_shrunk_model_gives_the_zeroed_one(spec: GraphSpec, seed: int) -> None:
    subject = spec.build(seed)
    plan = halve(subject.model, subject, seed)
    shrunk = shrink.apply_channels(subject.model, plan)
    same_state(shrink.expand(shrunk, subject.model, [plan]), shrink.zero_channels(subject.model, plan))


def takes_the_first(tensor: Tensor, kept: dict[int, Tensor]) -> Tensor:
    return tensor[tuple(slice(len(kept[dim])) if dim in kept else slice(None) for dim in range(tensor.dim()))].clone()


def test_the_comparison_rejects_a_shrink_that_takes_other_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = SPEC.build()
    plan = halve(subject.model, subject, 1)
    monkeypatch.setattr(shrink, "take", takes_the_first)
    shrunk = shrink.apply_channels(subject.model, plan)
    with pytest.raises(AssertionError, match="should be"):
        same_state(shrink.expand(shrunk, subject.model, [plan]), shrink.zero_channels(subject.model, plan))


def test_the_twin_after_several_prunings_and_training_equals_the_model() -> None:
    subject = SPEC.build()
    model, plans = copy.deepcopy(subject.model), []
    for step in (thin, lambda m, s: halve(m, s, 2), thin, lambda m, s: halve(m, s, 3)):
        plan = step(model, subject)
        model = apply_masks(model, plan) if isinstance(plan, MaskPlan) else shrink.apply_channels(model, plan)
        plans.append(plan)
        train(model, subject, plans)
    twin = shrink.expand(model, subject.model, plans)
    assert {n: t.shape for n, t in twin.state_dict().items()} == {
        n: t.shape for n, t in subject.model.state_dict().items()
    }, "the twin's shapes are not the dense ones"
    inputs = tuple(value.double() for value in subject.example_inputs)
    with torch.no_grad():
        found, expected = twin.double()(*inputs), copy.deepcopy(model).double()(*inputs)
    error = float((found - expected).abs().max() / expected.abs().max())
    assert error < 1e-10, f"twin and model differ by {error} of the output"
    kept = float(sum((t != 0).sum() for t in model.parameters())) - float(
        sum((t != 0).sum() for t in twin.parameters())
    )
    assert kept == 0, f"{kept} nonzero parameters more in the model than in its twin"


def test_the_twin_zeroes_what_an_earlier_mask_removed_even_if_training_revived_it() -> None:
    subject = SPEC.build()
    mask = thin(subject.model, subject)
    twin = shrink.expand(subject.model, subject.model, [mask])  # a model on which the mask did not hold
    same_state(twin, apply_masks(subject.model, mask))


def test_composed_plans_remove_what_both_remove_in_turn() -> None:
    subject = SPEC.build()
    first = halve(subject.model, subject, 0)
    middle = shrink.apply_channels(subject.model, first)
    second = halve(middle, subject, 1)
    one = shrink.apply_channels(subject.model, shrink.compose([first, second]))
    same_state(one, shrink.apply_channels(middle, second))


def test_shrinking_keeps_everything_but_the_sizes() -> None:
    subject = SPEC.build()
    model = copy.deepcopy(subject.model)
    model.stem[0].weight.requires_grad_(False)
    model.blocks[0].train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    small = shrink.apply_channels(model, halve(model, subject, 0))
    assert type(small) is type(model), f"class {type(small).__name__}, should be {type(model).__name__}"
    assert list(small.state_dict()) == list(before), f"names {list(small.state_dict())}, should be {list(before)}"
    assert not small.stem[0].weight.requires_grad, "a frozen weight thawed"
    assert all(p.is_leaf for p in small.parameters()), "a parameter is no leaf"
    assert [m.training for m in small.modules()] == [m.training for m in model.modules()], "training flags changed"
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), f"the given model's {name} changed"
    for path, module in small.named_modules():
        if isinstance(module, nn.Conv2d):
            said = (module.out_channels, module.in_channels // module.groups)
            assert said == module.weight.shape[:2], f"{path} says {said}, its weight is {tuple(module.weight.shape)}"
        elif isinstance(module, nn.BatchNorm2d):
            assert module.num_features == len(module.running_mean), f"{path} says {module.num_features} features"
        elif isinstance(module, nn.Linear):
            said = (module.out_features, module.in_features)
            assert said == module.weight.shape, f"{path} says {said}, its weight is {tuple(module.weight.shape)}"


@pytest.mark.parametrize("blocks", [(("depthwise", 5), ("projected", 6)), (("concat", 3), ("gate", 4))])
def test_a_dense_model_takes_the_shapes_and_the_state_of_a_shrunk_one(blocks: tuple[tuple[str, int], ...]) -> None:
    subject = GraphSpec(blocks).build(0)
    small = shrink.apply_channels(subject.model, halve(subject.model, subject, 0))
    state = small.state_dict()
    fresh = shrink.resize_to(
        GraphSpec(blocks).build(1).model, {name: list(value.shape) for name, value in state.items()}
    )
    fresh.load_state_dict(state)
    found, expected = fresh(*subject.example_inputs), small(*subject.example_inputs)
    assert torch.equal(found, expected), f"outputs differ by {float((found - expected).abs().max())}"


def shapes_of(model: nn.Module) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in model.state_dict().items()}


def layers() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6, 2))


NONSENSE: dict[str, tuple[Callable[[dict[str, list[int]]], Any], str]] = {
    "missing": (lambda s: s.pop("0.bias"), r"missing.*\[0\.bias\]"),
    "unknown": (lambda s: s.update({"9.weight": [1]}), r"unknown.*\[9\.weight\]"),
    "larger": (lambda s: s.update({"3.weight": [2, 7]}), r"\(2, 7\).*\[3\.weight\]"),
    "empty": (lambda s: s.update({"3.weight": [2, 0]}), r"\(2, 0\)"),
    "flat": (lambda s: s.update({"3.weight": [12]}), r"\(12,\)"),
    "disagree": (lambda s: s.update({"1.weight": [5]}), r"channels, should be"),
    "bias": (lambda s: s.update({"3.weight": [1, 6]}), r"bias of 2 channels, should be 1"),
    "half_a_group": (lambda s: s.update({"0.weight": [4, 2, 3, 3], "0.bias": [4]}), "whole groups of 3"),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_shapes_that_are_nonsense_are_refused(name: str) -> None:
    change, message = NONSENSE[name]
    shapes = shapes_of(layers())
    change(shapes)
    with pytest.raises(PlanError, match=message):
        shrink.resize_to(layers(), shapes)


def kept(*index: int) -> Tensor:
    return torch.tensor(index, dtype=torch.int64)


BAD_PLANS = {
    "no such tensor": ChannelPlan({"9.weight": {0: kept(0)}}),
    "one with that dimension": ChannelPlan({"0.bias": {1: kept(0)}}),
    "at least one": ChannelPlan({"0.bias": {0: kept()}}),
    "out of order": ChannelPlan({"0.bias": {0: kept(1, 0)}}),
    "repeated": ChannelPlan({"0.bias": {0: kept(1, 1)}}),
    r"in 0\.\.5": ChannelPlan({"0.bias": {0: kept(2, 6)}}),
    "sorted int64": ChannelPlan({"0.bias": {0: torch.tensor([0.0])}}),
    "bias of 1 channels": ChannelPlan({"0.bias": {0: kept(0)}}),
    "the kept shape": ChannelPlan({"0.bias": {0: kept(0, 1)}}, writes={"0.bias": torch.zeros(3)}),
}


@pytest.mark.parametrize("message", BAD_PLANS)
def test_plans_that_do_not_fit_are_refused(message: str) -> None:
    with pytest.raises(PlanError, match=message):
        shrink.apply_channels(layers(), BAD_PLANS[message])


def test_expand_refuses_a_model_that_the_plans_did_not_make() -> None:
    subject = SPEC.build()
    plan = halve(subject.model, subject, 0)
    with pytest.raises(PlanError, match="as the plans left it"):
        shrink.expand(subject.model, subject.model, [plan])


def test_composing_an_index_that_is_gone_is_refused() -> None:
    with pytest.raises(PlanError, match="below the 2 kept before"):
        shrink.compose([ChannelPlan({"w": {0: kept(0, 3)}}), ChannelPlan({"w": {0: kept(3)}})])


def test_values_that_the_plan_writes_stand_in_the_model_and_in_its_twin() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    index, written = kept(0, 2), torch.tensor([[5.0, 6.0]])
    dims = {"0.weight": {0: index}, "0.bias": {0: index}, "2.weight": {1: index}}
    plan = ChannelPlan(dims, writes={"2.weight": written, "2.bias": torch.tensor([7.0])})
    small, twin = shrink.apply_channels(model, plan), shrink.zero_channels(model, plan)
    assert torch.equal(small[2].weight, written), f"{small[2].weight}, should be {written}"
    expected = torch.tensor([[5.0, 0.0, 6.0]])
    assert torch.equal(twin[2].weight, expected), f"{twin[2].weight}, should be {expected}"
    same_state(shrink.expand(small, model, [plan]), twin)


class Tied(nn.Module):
    """One weight under the names of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.one, self.other = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.other.weight, self.head = self.one.weight, nn.Linear(6, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.other(self.one(self.first(inputs)).relu()).relu())
        return logits


@pytest.mark.parametrize("recipe", ["l1_filter:0.5+magnitude:0.3", "magnitude:0.3+l1_filter:0.5+rewind"])
def test_tied_weights_have_a_twin_and_rewind(recipe: str) -> None:
    inputs = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    made = compress(Tied(), recipe, example_inputs=(inputs,))
    assert made.model.one.weight is made.model.other.weight, "the tie is lost"
    found, expected = made.model(inputs), made.masked_twin(inputs)
    assert torch.allclose(found, expected, atol=1e-6), f"{found}, should be {expected}, as the twin computes"
