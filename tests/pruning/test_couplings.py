"""What goes together, what stays and why; wrong pairings must fail the twin test on every graph."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pruning_bench.conformance.plan_checks import check_twin
from pruning_bench.conformance.strategies import GraphSpec, graph_specs
from pruning_bench.errors import ModelError, PlanError
from pruning_bench.models.contract import build_model
from pruning_bench.models.image_classifier import image_classifier
from pruning_bench.models.resnet20 import resnet20
from pruning_bench.pruning import coupling_rules
from pruning_bench.pruning.contract import ChannelPlan
from pruning_bench.pruning.couplings import Couplings, find_couplings
from pruning_bench.pruning.shrink import apply_channels
from pruning_bench.pruning.walk import Dimension, Walk

REFERENCE = {"image_classifier": image_classifier, "resnet20": resnet20}
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)  # making a failing graph smaller takes minutes
graph_settings = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), phases=PHASES)
IMAGES = (torch.zeros(2, 4, 6, 6),)


def random_keep(found: Couplings, seed: int, share: float = 0.5) -> dict[str, Tensor]:
    """Keeps a random half of each coupling, at least one channel."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(len(units), generator=generator).argsort() >= min(len(units) - 1, int(share * len(units)))
        for name, units in found.groups.items()
    }


def wrong_pairings(plan: ChannelPlan, model: nn.Module) -> Iterator[tuple[str, ChannelPlan]]:
    """The plan with the kept input channels of one consumer shifted by one, for every consumer."""
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for name, dims in plan.kept.items():
        if 1 in dims:
            shifted = ((dims[1] + 1) % shapes[name][1]).sort().values
            yield name, ChannelPlan({**plan.kept, name: {**dims, 1: shifted}})


def rejects(model: nn.Module, plan: ChannelPlan, example_inputs: tuple[Tensor, ...]) -> bool:
    try:
        check_twin(model, plan, example_inputs)
    except AssertionError as error:
        return "shrunk and masked outputs differ" in str(error)
    return False


@graph_settings
@given(graph_specs(), st.integers(0, 1000))
def test_random_graphs_equal_their_twins_and_wrong_pairings_do_not(spec: GraphSpec, seed: int) -> None:
    subject = spec.build(seed)
    found = find_couplings(subject.model, subject.example_inputs)
    assume(found.groups)
    plan = found.plan(random_keep(found, seed))
    check_twin(subject.model, plan, subject.example_inputs, seed=seed)
    mutants = list(wrong_pairings(plan, subject.model))
    assert mutants, f"no consumer cut in {spec}, although {list(found.groups)} can be"
    exact, images = subject.model.double(), tuple(value.double() for value in subject.example_inputs)
    survivors = [name for name, mutant in mutants if not rejects(exact, mutant, images)]
    assert not survivors, f"wrong pairings at {survivors} pass on {spec}"


@pytest.mark.parametrize("name", sorted(REFERENCE))
def test_reference_models_equal_their_twins_and_wrong_pairings_do_not(name: str) -> None:
    model = build_model(name, num_classes=10, in_channels=1)
    images = (torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(0)),)
    found = find_couplings(model, images)
    assert list(found.untouched.values()) == ["the model's output"], f"untouched in {name}: {found.untouched}"
    plan = found.plan(random_keep(found, 0))
    check_twin(model, plan, images)
    check_twin(model.double(), plan, (images[0].double(),))
    mutants = list(wrong_pairings(plan, model))
    survivors = [
        layer for layer, mutant in mutants[:: max(1, len(mutants) // 4)] if not rejects(model.float(), mutant, images)
    ]
    assert not survivors, f"wrong pairings at {survivors} pass on {name}"


def sequential(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), *layers)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.head = nn.Conv2d(4, 6, 1), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        features += self.inner(features.relu())  # in place: an operator of its own in the graph
        return self.head(features).mean((2, 3))


class Concat(Residual):
    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.inner(torch.cat([images[:, :2], self.stem(images)[:, :4]], 1)))


class Shared(Residual):
    def forward(self, images: Tensor) -> Tensor:
        features = self.inner(self.inner(self.stem(images)).relu())
        return self.head(features)


class Gate(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return 1 - images.sigmoid()


PRODUCERS: dict[str, tuple[nn.Module, dict[str, list[str]]]] = {
    "plain": (sequential(nn.ReLU(), nn.Conv2d(6, 2, 1)), {"0": ["0.weight"]}),
    "batch_norm": (sequential(nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1)), {"0": ["0.weight"]}),
    "flatten": (sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 2)), {"0": ["0.weight"]}),
    "depthwise": (sequential(nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 2, 1)), {"0": ["0.weight", "1.weight"]}),
    "multiplied": (sequential(nn.Conv2d(6, 12, 3, groups=6), nn.Conv2d(12, 2, 1)), {"0": ["0.weight", "1.weight"]}),
    "grouped": (sequential(nn.Conv2d(6, 9, 3, groups=3), nn.Conv2d(9, 2, 1)), {"0": ["0.weight", "1.weight"]}),
    "transposed": (
        sequential(nn.ConvTranspose2d(6, 5, 2), nn.Conv2d(5, 2, 1)),
        {"0": ["0.weight"], "1": ["1.weight"]},
    ),
    "gate": (sequential(Gate(), nn.Conv2d(6, 2, 1)), {"0": ["0.weight"]}),
    "nearest": (sequential(nn.Upsample(scale_factor=2), nn.Conv2d(6, 2, 1)), {"0": ["0.weight"]}),
    "bilinear": (sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(6, 2, 1)), {"0": ["0.weight"]}),
    "residual": (Residual(), {"stem": ["stem.weight", "inner.weight"]}),
    "shared": (Shared(), {"stem": ["stem.weight", "inner.weight"]}),
}


@pytest.mark.parametrize("name", PRODUCERS)
def test_layers_that_make_one_channel_together(name: str) -> None:
    model, expected = PRODUCERS[name]
    found = find_couplings(model.eval(), IMAGES)
    producers = {coupling: [tensor for tensor, _ in makers] for coupling, makers in found.producers.items()}
    assert producers == expected, f"{name}: producers {producers}, should be {expected}"
    plan = found.plan(random_keep(found, 0))
    images = (torch.randn(4, 4, 6, 6, generator=torch.Generator().manual_seed(0)),)
    check_twin(model, plan, images)
    small = apply_channels(model, plan)
    assert small(*images).shape == model(*images).shape, f"{name}: the output changed its shape"


def test_a_whole_group_goes_or_none_of_it() -> None:
    model, _ = PRODUCERS["grouped"]
    found = find_couplings(model, IMAGES)
    assert len(found.groups["0"]) == 3, f"{len(found.groups['0'])} units, should be one for each of the 3 groups"
    plan = found.plan({"0": torch.tensor([True, False, True])})
    cut = {name: dims[min(dims)].tolist() for name, dims in plan.kept.items()}
    expected = {"0.weight": [0, 1, 4, 5], "1.weight": [0, 1, 2, 6, 7, 8], "2.weight": [0, 1, 2, 6, 7, 8]}
    assert {name: cut[name] for name in expected} == expected, f"kept {cut}, should be {expected}"
    assert apply_channels(model, plan)[1].groups == 2, "the convolution should have two groups left"


class NumberInCode(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.view(-1, 6 * 36)


class Cumulated(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.cumsum(1)


class OverChannels(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.softmax(1)


UNTOUCHED: dict[str, tuple[nn.Module, str]] = {
    "number": (sequential(NumberInCode(), nn.Linear(216, 2)), "the code gives its size as 216"),
    "layer_norm": (sequential(nn.LayerNorm([6, 6, 6]), nn.Conv2d(6, 2, 1)), "layer norm: removal would change"),
    "no_rule": (sequential(Cumulated(), nn.Conv2d(6, 2, 1)), "no rule for aten.cumsum [1: aten"),
    "one_group": (sequential(nn.GroupNorm(1, 6), nn.Conv2d(6, 2, 1)), "its channels go together: one unit of 6"),
    "softmax": (sequential(OverChannels(), nn.Conv2d(6, 2, 1)), "normalized over"),
    "output": (sequential(nn.ReLU()), "the model's output"),
    "cut": (Concat(), "cut or padded"),
}


@pytest.mark.parametrize("name", UNTOUCHED)
def test_what_cannot_go_says_why(name: str) -> None:
    model, reason = UNTOUCHED[name]
    found = find_couplings(model, IMAGES)
    first = "stem.weight" if name == "cut" else "0.weight"
    assert all((first, 0) not in makers for makers in found.producers.values()), (
        f"{name}: {dict(found.producers)} should not hold {first}"
    )
    said = found.untouched[f"{first}, dimension 0"]
    assert reason in said, f"{name}: reason {said!r}, should hold {reason!r}"
    plan = found.plan({})
    assert not plan.kept, f"{name}: an empty choice cuts {list(plan.kept)}"
    assert plan.untouched == found.untouched, f"{name}: the plan says {plan.untouched}, not {found.untouched}"


def over_time(*layers: nn.Module) -> nn.Sequential:
    """A linear layer over the last dimension of [N, 3, 12], then layers of which the first works along it."""
    return nn.Sequential(nn.Linear(12, 8), nn.ReLU(), *layers)


ALONG: dict[str, tuple[nn.Module, str]] = {
    "convolution": (over_time(nn.Conv1d(3, 5, 3, padding=1)), "places in an image or a sequence"),
    "places": (over_time(nn.Conv1d(3, 6, 1), nn.ReLU(), nn.Linear(8, 4)), "places in an image or a sequence"),
    "pooled after": (
        over_time(nn.Conv1d(3, 6, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(6, 4)),
        "places in an image or a sequence",
    ),
    "transposed": (over_time(nn.ConvTranspose1d(3, 5, 3)), "places in an image or a sequence"),
    "instance_norm": (over_time(nn.InstanceNorm1d(3, affine=True), nn.Linear(8, 4)), "normalized over"),
    "group_norm": (over_time(nn.GroupNorm(3, 3), nn.Linear(8, 4)), "normalized over"),
    "scaled": (over_time(nn.Upsample(scale_factor=2), nn.Linear(16, 4)), "pooled or scaled over"),
}


@pytest.mark.parametrize("name", ALONG)
def test_places_that_a_linear_layer_makes_stay_where_a_layer_works_along_them(name: str) -> None:
    model, reason = ALONG[name]
    found = find_couplings(model.eval(), (torch.zeros(1, 3, 12),))
    said = found.untouched["0.weight, dimension 0"]
    assert reason in said, f"{name}: reason {said!r}, should hold {reason!r}"


class Computed(nn.Module):
    """`product` of sigmoid(a(x)) and what `other` makes of `part`; of x too where that is a layer."""

    def __init__(self, product: Callable[[Tensor, Tensor], Tensor], part: Any, other: Callable[[Tensor], Tensor]):
        super().__init__()
        self.a, self.part, self.product, self.other = nn.Linear(6, 8), part, product, other

    def forward(self, x: Tensor) -> Tensor:
        value = self.part(x) if isinstance(self.part, nn.Module) else self.part
        return self.product(self.a(x).sigmoid(), self.other(value))


def dot(one: Tensor, other: Tensor) -> Tensor:
    return torch.bmm(one.unsqueeze(1), other.unsqueeze(2)).flatten(1)


def weight() -> nn.Parameter:
    return nn.Parameter(torch.ones(3, 8))


apply = nn.functional.linear
SUMS: dict[str, tuple[Computed, int]] = {
    "two computed": (Computed(dot, nn.Linear(6, 8), Tensor.sigmoid), 8),
    "a layer": (Computed(dot, nn.Linear(6, 8), Tensor.clone), 4),
    "a layer, rectified": (Computed(dot, nn.Linear(6, 8), Tensor.relu), 4),
    "a weight that is not zero at zero": (Computed(apply, weight(), Tensor.exp), 8),
    "a weight": (Computed(apply, weight(), Tensor.clone), 4),
    "a weight, scaled": (Computed(apply, weight(), lambda value: value * 0.5), 4),
    "a weight, transposed": (Computed(torch.matmul, weight(), Tensor.t), 4),
}


@pytest.mark.parametrize("name", SUMS)
def test_a_sum_over_channels_needs_a_side_that_is_zero_without_them(name: str) -> None:
    model, left = SUMS[name]
    inputs = (torch.randn(4, 6, generator=torch.Generator().manual_seed(0)),)
    found = find_couplings(model, inputs)
    plan = found.plan(random_keep(found, 0))
    if left == 8:
        assert "a" not in found.groups, f"{name}: {dict(found.groups)} may go"
        said = found.untouched["a.weight, dimension 0"]
        assert "a sum over products of computed values" in said, f"{name}: reason {said!r}"
    else:
        check_twin(model, plan, inputs)
    assert apply_channels(model, plan).a.out_features == left, f"{name}: should leave {left}"


class Attention(nn.Module):
    """q kT v by hand, the channels of each in heads as `split` makes them, [N, T, 16] -> [N, heads, T, channels]."""

    def __init__(self, split: Callable[[Tensor], Tensor], spoil: Callable[[Tensor], Any] = lambda value: None) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(8, 16)
        self.split, self.spoil, self.out = split, spoil, nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        projected = self.q(x)
        self.spoil(projected)
        q, k, v = self.split(projected), self.split(self.k(x).sigmoid()), self.split(self.v(x))
        mixed = (q @ k.transpose(-1, -2)) @ v
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2) if mixed.dim() == 4 else mixed)
        return out


class Fused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 48), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(x.shape[0], x.shape[1], 3, 4, -1).permute(2, 0, 3, 1, 4).unbind(0)
        out: Tensor = self.out(((q @ k.transpose(-1, -2)) @ v).transpose(1, 2).flatten(2))
        return out


ATTENTION: dict[str, tuple[nn.Module, str]] = {
    "plain": (Attention(Tensor.clone), "q.weight"),
    "view": (Attention(lambda t: t.view(t.shape[0], t.shape[1], 4, -1).transpose(1, 2)), "q.weight"),
    "unflatten": (Attention(lambda t: t.unflatten(-1, (4, -1)).transpose(1, 2)), "q.weight"),
    "sizes": (Attention(lambda t: t.view(-1, 5, 4, t.shape[-1] // 4).transpose(1, 2)), "q.weight"),
    "gelu": (Attention(nn.functional.gelu), "q.weight"),
    "fused": (Fused(), "qkv.weight"),
}


@pytest.mark.parametrize("name", ATTENTION)
def test_channels_of_attention_by_hand_go(name: str) -> None:
    model, made = ATTENTION[name]
    inputs = (torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)),)
    found = find_couplings(model.eval(), inputs)
    plan = found.plan(random_keep(found, 0))
    assert 0 in plan.kept.get(made, {}), f"{name}: {made} stays: {found.untouched}"
    check_twin(model, plan, inputs)


SPOILT: dict[str, Callable[[Tensor], Any]] = {
    "a part is set": lambda value: value[:, 0].fill_(1.0),
    "a part grows": lambda value: value[:, :2].add_(1.0),
    "all grows": lambda value: value.add_(1.0),
    "in place": lambda value: value.sigmoid_(),
}


@pytest.mark.parametrize("name", SPOILT)
def test_what_is_written_over_need_not_be_zero(name: str) -> None:
    model, inputs = Attention(Tensor.clone, SPOILT[name]), (torch.randn(2, 5, 8),)
    found = find_couplings(model.eval(), inputs)
    plan = found.plan(random_keep(found, 0))
    assert 0 not in plan.kept.get("q.weight", {}), f"{name}: {plan.kept.get('q.weight')}"
    check_twin(model, plan, inputs)


def test_the_twin_test_rejects_a_sum_that_joins_computed_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coupling_rules, "makers", lambda walk, node: [])
    model, inputs = SUMS["two computed"][0], (torch.randn(4, 6, generator=torch.Generator().manual_seed(0)),)
    found = find_couplings(model, inputs)
    with pytest.raises(AssertionError, match="outputs differ"):
        check_twin(model, found.plan(random_keep(found, 0)), inputs)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.again, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.stem = nn.Linear(3, 4)
        self.again.weight = self.inner.weight

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.again(self.inner(self.stem(inputs)).relu()).relu())


def test_tied_weights_are_one_tensor() -> None:
    model, inputs = Tied(), (torch.randn(5, 3, generator=torch.Generator().manual_seed(0)),)
    found = find_couplings(model, inputs)
    plan = found.plan(random_keep(found, 0))
    check_twin(model, plan, inputs)
    small = apply_channels(model, plan)
    assert small.inner.weight is small.again.weight, "the weights are no longer tied"
    assert small.inner.weight.shape == (2, 2), f"shape {tuple(small.inner.weight.shape)}, should be (2, 2)"


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"9": torch.ones(6, dtype=torch.bool)}, "one bool for every unit"),
        ({"0": torch.ones(5, dtype=torch.bool)}, "one bool for every unit"),
        ({"0": torch.zeros(6, dtype=torch.bool)}, "at least one"),
    ],
)
def test_choices_that_fit_no_coupling_are_refused(keep: Mapping[str, Tensor], message: str) -> None:
    found = find_couplings(PRODUCERS["plain"][0], IMAGES)
    with pytest.raises(PlanError, match=message):
        found.plan(keep)


def test_a_rule_of_the_wrong_size_is_loud(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(walk: Walk, node: torch.fx.Node) -> list[Dimension]:
        return [np.zeros(3, dtype=np.int64)] * 4

    monkeypatch.setitem(coupling_rules.RULES, "aten.relu", wrong)
    with pytest.raises(ModelError, match=r"1: aten\.relu\.default"):
        find_couplings(PRODUCERS["plain"][0], IMAGES)


MUTANT_RULES = {
    "aten.add_": lambda walk, node: list(walk.dims(node.all_input_nodes[0])),  # forgets to join the operands
    "aten.batch_norm": lambda walk, node: list(walk.dims(node.all_input_nodes[0])),  # leaves the norm's own tensors out
    "aten.flatten": lambda walk, node: [  # spreads channels as if they were the innermost dimension
        walk.dims(node.all_input_nodes[0])[0],
        np.tile(walk.dims(node.all_input_nodes[0])[1], 9),
    ],
}


@pytest.mark.parametrize("operator", MUTANT_RULES)
def test_the_twin_test_rejects_wrong_rules(operator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(coupling_rules.RULES, operator, MUTANT_RULES[operator])
    model = PRODUCERS[{"aten.add_": "residual", "aten.batch_norm": "batch_norm", "aten.flatten": "flatten"}[operator]][
        0
    ]
    images = (torch.randn(4, 4, 6, 6, generator=torch.Generator().manual_seed(0)),)
    found = find_couplings(model.eval(), images)
    plan = found.plan(random_keep(found, 0))
    with pytest.raises(AssertionError, match=r"does not run|outputs differ"):
        check_twin(model, plan, images)
