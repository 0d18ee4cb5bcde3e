"""Budgets: what the plan leaves is counted on the shrunk model, by a count that knows nothing of plans."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from pruning_bench.conformance.pruning_checks import check_budget, check_nested
from pruning_bench.conformance.runner import checks_for
from pruning_bench.conformance.strategies import GraphSpec, graph_specs, small_subjects
from pruning_bench.contracts import Context
from pruning_bench.discover import discover
from pruning_bench.errors import LevelError
from pruning_bench.metrics.cost import count_cost
from pruning_bench.models.contract import build_model
from pruning_bench.pruning.budgets import Price, fit_budget, price_of, removal_order
from pruning_bench.pruning.contract import ChannelPlan
from pruning_bench.pruning.methods.l1_filter import L1Filter
from pruning_bench.pruning.methods.random_filter import RandomFilter
from pruning_bench.pruning.shrink import apply_channels

BUDGETS: list[Any] = ["macs", "params"]
MIXED = GraphSpec((("residual", 6), ("depthwise", 6), ("concat", 4), ("gate", 4), ("pool", 5)), head="hidden")


def check_price(price: Price, model: nn.Module, inputs: Any, plan: ChannelPlan, budget: str) -> None:
    """Exactly the shrunk model's, but for products of two activations: they count as in the whole model, so no less."""
    cost, found = count_cost(apply_channels(model, plan), inputs), price.of(plan)
    expected = cost.params
    if budget == "macs":
        expected = price.fixed + sum(layer.macs for layer in cost.layers if layer.name in price.shapes)
        assert expected >= cost.macs, f"{cost.macs} macs in the shrunk model, more than {expected}"
    assert found == expected, f"{found} {budget} left by the price, should be {expected}, those of the shrunk model"


@pytest.mark.parametrize("budget", BUDGETS)
@settings(max_examples=6, deadline=None)
@given(graph_specs(most_blocks=3), st.integers(0, 99))
@example(GraphSpec((("attention", 2),)), 0)
def test_the_price_is_the_cost_of_the_shrunk_model(budget: Any, spec: GraphSpec, seed: int) -> None:
    subject = spec.build(seed)
    price = price_of(subject.model, subject.example_inputs, budget)
    plan = RandomFilter().plan(subject.model, 0.5, subject.context(seed))
    check_price(price, subject.model, subject.example_inputs, plan, budget)


def forgets_what_reads(price: Price, plan: ChannelPlan) -> ChannelPlan:
    return ChannelPlan(
        {name: {dim: index for dim, index in dims.items() if dim == 0} for name, dims in plan.kept.items()}
    )


def test_a_price_that_forgets_the_layers_that_read_is_caught() -> None:
    subject = MIXED.build()
    price = price_of(subject.model, subject.example_inputs, "macs")
    plan = L1Filter().plan(subject.model, 0.5, subject.context())

    @dataclass(frozen=True)
    class Half(Price):
        def of(self, plan: ChannelPlan | None = None) -> int:
            return price.of(plan and forgets_what_reads(price, plan))

    with pytest.raises(AssertionError, match="those of the shrunk model"):
        check_price(Half(price.shapes, price.uses), subject.model, subject.example_inputs, plan, "macs")


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_budget_is_met_and_nests(budget: Any, scope: Any) -> None:
    subject, method = MIXED.build(), L1Filter(scope, budget)
    for level in (0.0, 0.5):
        check_budget(method, subject, level)
    check_nested(method, subject, (0.3, 0.6))


def test_no_channel_goes_in_vain() -> None:
    """Without the last channel that went, the budget would not be met."""
    subject = MIXED.build()
    price = price_of(subject.model, subject.example_inputs, "macs")
    left = [price.of(L1Filter("layer", "macs").plan(subject.model, at, subject.context())) for at in (0.3, 0.5)]
    single = price.of() * 0.12  # no channel of this network takes that much with it
    for level, found in zip((0.3, 0.5), left, strict=True):
        bound = (1 - level) * price.of()
        assert bound - single < found <= bound, f"{found} left at {level}, should be just below {bound}"


class Loose(L1Filter):
    """Takes the level for a share of the channels, whatever the budget."""

    def plan(self, model: nn.Module, level: Any, context: Context) -> ChannelPlan:
        return L1Filter().plan(model, 0.3 * level, context)


@pytest.mark.parametrize("method", [Loose(budget="macs"), Loose(round_to=4)], ids=["budget", "round_to"])
def test_the_check_of_budgets_rejects(method: Any) -> None:
    with pytest.raises(AssertionError, match=r"leaves|multiples"):
        check_budget(method, MIXED.build(), 0.5)


def test_the_options_choose_the_check() -> None:
    for method in (L1Filter(budget="params"), L1Filter(round_to=2)):
        names = dict(checks_for(method))
        assert "budget" in names, f"checks {sorted(names)} of {method}, should look at the budget"
        assert "counts" not in names, f"checks {sorted(names)} of {method}, should not count channels by the level"
        names["budget"](method)


def test_a_budget_that_cannot_be_met_names_the_closest_that_can() -> None:
    subject = small_subjects()[1]
    with pytest.raises(LevelError, match=r"^l1_filter: 0\.999 of the macs, should be at most 0\.\d+, which") as caught:
        L1Filter(budget="macs").plan(subject.model, 0.999, subject.context())
    closest = float(caught.value.expected.split()[2].rstrip(","))
    plan = L1Filter(budget="macs").plan(subject.model, closest, subject.context())
    sizes = {name: size - removed for name, (removed, size) in plan.removed.items()}
    assert set(sizes.values()) == {1}, f"{sizes} left at the closest level {closest}, should be one of each"
    with pytest.raises(LevelError, match="of the macs"):
        L1Filter(budget="macs").plan(subject.model, closest + 1e-4, subject.context())
    with pytest.raises(LevelError, match=r"should be at most 0\.0, which"):
        L1Filter(budget="macs", round_to=64).plan(subject.model, 0.5, subject.context())


def test_products_of_activations_are_part_of_the_whole() -> None:
    discover()
    model, inputs = build_model("vit_tiny").eval(), (torch.zeros(1, 1, 32, 32),)
    price, cost = price_of(model, inputs, "macs"), count_cost(model, inputs)
    assert price.of() == cost.macs, f"{price.of()} MACs by the price, should be {cost.macs}"
    assert price.fixed > 0, f"{price.fixed} MACs of attention, should be some"


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.sampled_from(["layer", "global"]),
    st.integers(1, 4),
    st.integers(0, 18).map(lambda share: share / 20),
    st.integers(0, 99),
)
def test_the_fewest_channels_that_are_enough(
    sizes: list[int], scope: Any, multiple: int, level: float, seed: int
) -> None:
    """Bisection finds what trying every count in turn finds."""
    generator = torch.Generator().manual_seed(seed)
    scores = {str(at): torch.randint(0, 4, (size,), generator=generator).double() for at, size in enumerate(sizes)}
    prices = {name: 1 + int(torch.randint(0, 5, (), generator=generator)) for name in scores}

    def cost(kept: Mapping[str, int]) -> int:
        return sum(prices[name] * count for name, count in kept.items())

    whole = {name: len(values) for name, values in scores.items()}
    expected, left = None, dict(whole)
    names = list(scores)
    order = removal_order(scores, scope).tolist()
    for name in [None, *(names[at] for at in order)]:
        if name is not None:
            left[name] -= 1
        rounded = {n: min(whole[n], -(-count // multiple) * multiple) for n, count in left.items()}
        if cost(rounded) <= (1 - level) * cost(whole) + 1e-9:
            expected = rounded
            break
    try:
        found = fit_budget("test", level, "cost", scores, scope, multiple, cost)
    except LevelError:
        found = None
    assert found == expected, f"{found} kept of {whole} at {level}, should be {expected}"
