"""Channel methods: the order in which channels go, computed by hand, and options that all of them share."""

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from pruning_bench import compress
from pruning_bench.conformance.pruning_checks import check_counts, check_nested
from pruning_bench.conformance.runner import label, parametrize_with_checks
from pruning_bench.conformance.strategies import small_subjects, tied
from pruning_bench.contracts import Context
from pruning_bench.datasets.contract import Tensors
from pruning_bench.errors import LevelError, ModelError
from pruning_bench.pruning.channel_scores import filter_norms, filter_scores, norm_scales, unit_sums
from pruning_bench.pruning.channels import ChannelOptions, keep_channels, plan_channels
from pruning_bench.pruning.contract import ChannelPlan, PruningTags
from pruning_bench.pruning.couplings import Couplings
from pruning_bench.pruning.gradients import mean_gradients
from pruning_bench.pruning.methods.bn_scale import BnScale
from pruning_bench.pruning.methods.fpgm import Fpgm
from pruning_bench.pruning.methods.group_norm import GroupNorm
from pruning_bench.pruning.methods.l1_filter import L1Filter
from pruning_bench.pruning.methods.l2_filter import L2Filter
from pruning_bench.pruning.methods.random_filter import RandomFilter
from pruning_bench.pruning.methods.taylor import Taylor
from pruning_bench.pruning.selection import pruned_count

METHODS = [L2Filter(), Fpgm(), GroupNorm(), BnScale(), Taylor(), RandomFilter()]


@parametrize_with_checks(METHODS)
def test_shipped_methods(method: Any, check: Any) -> None:
    check(method)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_the_other_scope_counts_and_nests(method: Any) -> None:
    other = replace(method, scope="global" if method.scope == "layer" else "layer")
    residual = small_subjects()[1]
    check_counts(other, residual, 0.7)
    check_counts(other, tied(residual), 0.29)
    check_nested(other, residual)


class Added(nn.Module):
    """Three channels that two layers make together, `one` and `two`; batch norms scale each; `out` reads them."""

    def __init__(self, one: Any, two: Any, scales: Any = ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0)), out: Any = (1, 1, 1)):
        super().__init__()
        rows = [torch.tensor(weight, dtype=torch.float32) for weight in (one, two)]
        self.one, self.two = (nn.Linear(rows[0].shape[1], 3, bias=False) for _ in rows)
        self.norm1, self.norm2 = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
        self.out = nn.Linear(3, 2)
        for layer, weight in zip((self.one, self.two), rows, strict=True):
            layer.weight.data = weight
        for norm, scale in zip((self.norm1, self.norm2), scales, strict=True):
            norm.weight.data = torch.tensor(scale)
        self.out.weight.data = torch.tensor([out, (0, 0, 0)], dtype=torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.out(torch.relu(self.norm1(self.one(x)) + self.norm2(self.two(x))))
        return made


@dataclass(frozen=True)
class Mutant(ChannelOptions):
    """A method of another score."""

    rule: Callable[[nn.Module, Couplings], Mapping[str, Tensor]] = lambda model, couplings: {}
    name: ClassVar[str] = "mutant"
    tags: ClassVar[PruningTags] = PruningTags(structure="channel")

    def plan(self, model: nn.Module, level: Any, context: Context) -> ChannelPlan:
        return plan_channels(self, model, level, context, lambda found: self.rule(model, found))


def context(width: int = 2, seed: int = 0) -> Context:
    return Context((torch.zeros(2, width),), torch.Generator().manual_seed(seed))


def order_of(method: Any, model: nn.Module) -> list[int]:
    """The channels of `one` in the order in which they go."""
    width = model.get_parameter("one.weight").shape[1]
    kept = []
    for level in (0.34, 0.67):
        plan = method.plan(model.eval(), level, context(width))
        kept.append(plan.kept["one.weight"][0].tolist())
    first = ({0, 1, 2} - set(kept[0])).pop()
    return [first, (set(kept[0]) - set(kept[1])).pop(), kept[1][0]]


def first_producer(power: float) -> Callable[[nn.Module, Couplings], Mapping[str, Tensor]]:
    def rule(model: nn.Module, couplings: Couplings) -> Mapping[str, Tensor]:
        alone = {name: made[:1] for name, made in couplings.producers.items()}
        return filter_norms(model, replace(couplings, producers=alone), power)

    return rule


def signed_scales(model: nn.Module, couplings: Couplings) -> Mapping[str, Tensor]:
    return unit_sums(couplings, {(name, 0): scale for name, scale in norm_scales(model).items()})


def last_scale(model: nn.Module, couplings: Couplings) -> Mapping[str, Tensor]:
    return unit_sums(couplings, {("norm2.weight", 0): model.get_parameter("norm2.weight").abs()})


ONE, TWO = ((3, 4), (1, 0), (2, 2)), ((0, 0.5), (0, 5.5), (2, 2))
# sums of |w|: 7.5, 6.5, 8; of w^2: 25.25, 31.25, 16
FILTERS = Added(ONE, TWO)
# distances within `one`: 6, 5, 9; within `two`: 6.5, 7, 12.5; their sums: 12.5, 12, 21.5; of w^2: 85, 66.25, 80
MEDIANS = Added(((9,), (8,), (4,)), ((2,), (1.5,), (8,)))
# mean |gamma|: 0.5, 0.6, 0.45; signed: 0.1, 0.6, 0.45; of `norm2` alone: 0.1, 1.0, 0.4
SCALES = Added(ONE, TWO, scales=((-0.9, 0.2, 0.5), (0.1, 1.0, 0.4)))
# squares of `one` and `two` and `out` and both norms: 25.25 + 0 + 2, 31.25 + 0 + 2, 16 + 49 + 2
READ = Added(ONE, TWO, out=(0, 0, 7))
# with the norms: 25.25 + 81 + 1, 31.25 + 1 + 1, 16 + 1 + 1
SCALED = Added(ONE, TWO, scales=((9.0, 1.0, 1.0), (1.0, 1.0, 1.0)), out=(0, 0, 0))

ORDERS = [
    (L1Filter(), FILTERS, [1, 0, 2], L2Filter()),
    (L1Filter(), FILTERS, [1, 0, 2], Mutant(rule=first_producer(1))),
    (L2Filter(), FILTERS, [2, 0, 1], L1Filter()),
    (L2Filter(), FILTERS, [2, 0, 1], Mutant(rule=first_producer(2))),
    (Fpgm(), MEDIANS, [1, 0, 2], L2Filter()),
    (BnScale(), SCALES, [2, 0, 1], Mutant(rule=signed_scales)),
    (BnScale(scope="layer"), SCALES, [2, 0, 1], Mutant(rule=last_scale)),
    (GroupNorm(), READ, [0, 1, 2], L2Filter()),
    (GroupNorm(), SCALED, [2, 1, 0], L2Filter()),
    (GroupNorm(p=1), FILTERS, [1, 0, 2], GroupNorm()),
    (GroupNorm(p=1), Added(ONE, TWO, out=(0, 3, 0)), [0, 2, 1], L1Filter()),
]


@pytest.mark.parametrize(("method", "model", "expected", "mutant"), ORDERS)
def test_channels_go_in_the_order_of_their_scores(method: Any, model: nn.Module, expected: Any, mutant: Any) -> None:
    found, wrong = order_of(method, model), order_of(mutant, model)
    assert found == expected, f"{method.name}: {found} go, should be {expected}"
    assert wrong != expected, f"{mutant.name} gives {wrong} too: the case proves nothing"


def distances_within_the_first_layer(model: nn.Module, couplings: Couplings) -> Mapping[str, Tensor]:
    weight = model.get_parameter("one.weight").detach()
    return {"one": torch.cdist(weight, weight).sum(1)}


def test_distances_of_coupled_layers_are_summed() -> None:
    model = Added(((9,), (8,), (4,)), ((0,), (5,), (8,)))  # 6, 5, 9 and 13, 8, 11: 19, 13, 20
    assert order_of(Fpgm(), model) == [1, 0, 2], f"{order_of(Fpgm(), model)} go, should be [1, 0, 2]"
    model = Added(((9,), (8,), (4,)), ((3,), (0,), (4,)))  # 6, 5, 9 and 4, 7, 5: 10, 12, 14
    assert order_of(Fpgm(), model) == [0, 1, 2], f"{order_of(Fpgm(), model)} go, should be [0, 1, 2]"
    alone = order_of(Mutant(rule=distances_within_the_first_layer), model)
    assert alone == [1, 0, 2], f"{alone} go by the first layer alone: the case proves nothing"


def test_random_channels_follow_the_generator_and_nothing_else() -> None:
    orders = {seed: RandomFilter().plan(FILTERS, 0.34, context(seed=seed)).kept for seed in range(8)}
    gone = [({0, 1, 2} - set(kept["one.weight"][0].tolist())).pop() for kept in orders.values()]
    counts = [gone.count(channel) for channel in range(3)]
    assert min(counts) >= 1, f"of 8 seeds {counts} remove channels 0, 1 and 2; L1 removes 1 alone"


def stacked(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for read, made in zip((4, *widths), widths, strict=False):
        layers += [nn.Linear(read, made), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 2))


@pytest.mark.parametrize("method", [L1Filter(), L2Filter(), Fpgm(), GroupNorm(), GroupNorm(p=1)])
def test_global_scores_do_not_grow_with_the_size_of_filters(method: Any) -> None:
    """The second layer's filters are larger in number of weights and smaller in each: sums would spare it."""
    model = stacked(8, 32, 8)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for at, scale in ((0, 1.0), (2, 1.0), (4, 0.5), (6, 1.0)):
            model[at].weight.copy_(scale * torch.randn(model[at].weight.shape, generator=generator))
    removed = replace(method, scope="global").plan(model, 0.1, context(4)).removed
    shares = {name: gone / size for name, (gone, size) in removed.items()}
    assert max(shares, key=shares.__getitem__) == "4", f"{method.name} removes {shares}, most should go of layer 4"


def test_a_coupling_without_batch_norm_stays_whole_and_is_named() -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([3.0, 0.1, 2.0, 0.2]))
    plan = BnScale().plan(model.eval(), 0.5, context())
    assert plan.removed == {"0": (2, 4)}, f"removed {plan.removed}, should be two of layer 0"
    assert plan.kept["0.weight"][0].tolist() == [0, 2], f"kept {plan.kept['0.weight']}, should be the large scales"
    assert plan.untouched["3"] == "no batch norm scales it", f"untouched {plan.untouched}, should name layer 3"


def test_a_model_without_batch_norm_has_nothing_to_slim() -> None:
    with pytest.raises(ModelError, match=r"bn_scale: no batch norm, should be batch norms that scale .* \[0, 2\]"):
        BnScale().plan(stacked(4, 3), 0.5, context(4))


EMPTYING: list[tuple[Any, float, float, str]] = [
    (
        L1Filter(),
        0.9,
        0.8333,
        "0.9 leaves none of the 3 channels of 0, should be at most 0.8333, which leaves one, or ",
    ),
    (L1Filter(), 0.99, 0.8333, "0.99 leaves none of the 3 channels of 0 nor any of 1 other couplings, should be "),
    (L1Filter("global"), 0.96, 0.9347, "0.96 leaves 1 of all 23 channels, should be at most 0.9347, which leaves one "),
]


def refuses_to_empty(method: Any, level: float, highest: float, message: str) -> None:
    """The level is refused, with a higher one than any that works."""
    with pytest.raises(LevelError, match=f"^l1_filter: {re.escape(message)}"):
        method.plan(stacked(3, 20), level, context(4))
    left = [size - gone for gone, size in method.plan(stacked(3, 20), highest, context(4)).removed.values()]
    assert min(left) == 1, f"{left} left at {highest}, should be a single channel of one"
    with pytest.raises(LevelError):
        method.plan(stacked(3, 20), round(highest + 1e-4, 4), context(4))


@pytest.mark.parametrize(("method", "level", "highest", "message"), EMPTYING)
def test_a_level_that_would_empty_a_layer_is_refused(method: Any, level: float, highest: float, message: str) -> None:
    refuses_to_empty(method, level, highest, message)


def test_the_test_of_emptying_levels_rejects_a_method_that_leaves_one() -> None:
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        refuses_to_empty(L1Filter(round_to=2), *EMPTYING[0][1:])


@pytest.mark.parametrize(
    ("method", "level", "removed"),
    [
        (L1Filter(), 0.8, {"0": (2, 3), "2": (16, 20)}),
        (L1Filter("global"), 0.9, {"0": (2, 3), "2": (19, 20)}),
        (L1Filter(round_to=2), 0.9, {"0": (1, 3), "2": (18, 20)}),
        (L1Filter("global", round_to=2), 0.96, {"0": (1, 3), "2": (18, 20)}),
    ],
)
def test_levels_that_leave_a_channel_of_each_layer_work(method: Any, level: float, removed: Any) -> None:
    found = method.plan(stacked(3, 20), level, context(4)).removed
    assert found == removed, f"{label(method)}:{level} removes {found}, should remove {removed}"


def test_a_global_level_never_empties_the_layer_of_the_smallest_weights() -> None:
    model = stacked(3, 20)
    with torch.no_grad():
        model[0].weight.mul_(1e-6)
    for level in (0.2, 0.5, 0.9):
        removed = L1Filter("global").plan(model, level, context(4)).removed
        assert removed["0"] == (2, 3), f"{removed} gone at {level}, should be all but one of the smallest"
        assert sum(gone for gone, _ in removed.values()) == pruned_count(23, level), f"{removed} gone at {level}"


def test_the_only_channel_of_a_layer_stays_and_the_plan_says_so() -> None:
    plan = L1Filter().plan(stacked(1, 20), 0.9, context(4))
    assert plan.removed == {"2": (18, 20)}, f"removed {plan.removed}, should be of the wide layer alone"
    assert plan.untouched["0.weight, dimension 0"] == "a single channel", f"untouched {plan.untouched}"
    assert "2.weight, dimension 0" not in plan.untouched, f"untouched {plan.untouched}, should not name a pruned layer"


def absolute(model: nn.Module, couplings: Couplings) -> Mapping[str, Tensor]:
    """Sums |dL/dw * w| instead of squaring the sum: products of opposite sign no longer cancel."""
    found = mean_gradients(model, taylor_context(), "absolute")
    products = {name: gradient * model.get_parameter(name) for name, gradient in found.items()}
    return filter_scores(products, couplings, lambda filters: filters.abs().sum(1))


def taylor_context() -> Context:
    train = Tensors((torch.tensor([[1.0, 1.0]] * 4),), torch.tensor([0, 0, 0, 0]))
    return Context((torch.zeros(2, 2),), torch.Generator(), train=train)


def test_taylor_squares_the_sum_over_the_filter() -> None:
    """At equal logits dL/dlogit is (-1/2, 1/2), so that dL/dh is minus the half difference of the readers' weights.

    dL/dw * w sums to g (3 - 2) = g for the first channel and to 2 g for the second, where g = -1/2; absolute values
    would sum to 5/2 and 1.
    """
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, -2.0], [1.0, 1.0]]))
        model[2].weight.copy_(torch.tensor([[0.5, 0.5], [-0.5, -0.5]]))
        model[2].bias.copy_(torch.tensor([-1.5, 1.5]))
    plan = Taylor(scope="layer").plan(model.eval(), 0.5, taylor_context())
    assert plan.kept["0.weight"][0].tolist() == [1], f"kept {plan.kept}, should be the second channel"
    wrong = Mutant(rule=absolute).plan(model, 0.5, taylor_context())
    assert wrong.kept["0.weight"][0].tolist() == [0], f"kept {wrong.kept}: the case proves nothing"


def test_taylor_needs_examples() -> None:
    with pytest.raises(ModelError, match="taylor: no training data"):
        Taylor().plan(FILTERS, 0.5, context())


def nothing_finite(model: nn.Module, couplings: Couplings) -> Mapping[str, Tensor]:
    return {name: torch.full((len(units),), float("nan")) for name, units in couplings.groups.items()}


def test_scores_that_are_not_finite_are_one_clear_error() -> None:
    with pytest.raises(ModelError, match=r"3 of 3 scores NaN or infinite, should be all finite \[0\]"):
        Mutant(rule=nothing_finite).plan(stacked(3), 0.5, context(4))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_bad_levels_are_refused_by_the_methods_name(method: Any) -> None:
    for level in (1, -0.5, "2of4", None):
        with pytest.raises(LevelError, match=f"^{method.name}: "):
            method.plan(FILTERS, level, context())


def test_a_recipe_takes_the_options() -> None:
    model = stacked(24, 24)
    made = compress(model, "l2_filter:0.45,budget=params,round_to=8", example_inputs=(torch.zeros(1, 4),))
    widths = [made.model[at].out_features for at in (0, 2)]
    assert widths == [16, 16], f"widths {widths}, should be the multiples of 8 that fit"


def test_a_multiple_above_the_width_removes_nothing_and_says_so() -> None:
    subject = small_subjects()[0]
    plan = L1Filter(round_to=64).plan(subject.model, 0.5, subject.context())
    assert not plan.kept, f"{plan.kept} removed, should be nothing"
    said = [reason for reason in plan.untouched.values() if "rounded up to a multiple of 64" in reason]
    assert len(said) == len(plan.removed), f"{plan.untouched} should name all of {list(plan.removed)}"


@pytest.mark.parametrize("big", [1e9, 1e30])
def test_the_last_channel_stays_however_large_the_scores(big: float) -> None:
    scores = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([big, big])}
    gone = sum(int((~mask).sum()) for mask in keep_channels(scores, 0.5, "global").values())
    assert gone == 2, f"{gone} of 4 gone at 0.5, should be 2"


class Empty(nn.Module):
    """A layer of no outputs beside others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 6), nn.Linear(6, 2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.none = nn.Linear(6, 0)

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.first(inputs).relu()
        logits: Tensor = self.head(features) + self.none(features).sum(1, keepdim=True)
        return logits


@pytest.mark.parametrize("method", [GroupNorm(), L1Filter(budget="macs")], ids=["group_norm", "macs"])
def test_a_layer_of_no_outputs_is_no_obstacle(method: Any) -> None:
    plan = method.plan(Empty(), 0.5, Context((torch.zeros(2, 4),), torch.Generator()))
    assert plan.removed == {"first": (3, 6)}, f"{plan.removed}, should be half of the first layer"
