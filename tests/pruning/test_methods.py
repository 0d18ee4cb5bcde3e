"""The shipped methods pass every check; what is particular to one of them."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pruning_bench.conformance.pruning_checks import HIGHEST, check_counts, check_nested
from pruning_bench.conformance.runner import parametrize_with_checks
from pruning_bench.conformance.strategies import small_subjects, tied
from pruning_bench.contracts import Context
from pruning_bench.errors import LevelError, ModelError
from pruning_bench.pruning.channels import keep_channels
from pruning_bench.pruning.masks import pruned_count
from pruning_bench.pruning.methods.l1_filter import L1Filter
from pruning_bench.pruning.methods.magnitude import Magnitude
from pruning_bench.pruning.methods.random import Random


@parametrize_with_checks([Random(), Magnitude(), L1Filter()])
def test_shipped_methods(method: Any, check: Any) -> None:
    check(method)


@pytest.mark.parametrize("method", [Random(scope="layer"), Magnitude(scope="layer"), L1Filter(scope="global")])
def test_the_other_scope_counts_and_nests(method: Any) -> None:
    plain, residual = small_subjects()
    check_counts(method, residual, HIGHEST[method.tags.structure])
    check_counts(method, tied(plain), 0.29)
    check_nested(method, residual)


def context() -> Context:
    return Context((torch.zeros(2, 4),), torch.Generator().manual_seed(0))


def layers() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[2].weight.fill_(0.1)
    return model


def test_global_scope_takes_from_the_layer_of_small_weights_layer_scope_from_both() -> None:
    globally = Magnitude().plan(layers(), 0.5, context()).masks
    each = Magnitude(scope="layer").plan(layers(), 0.5, context()).masks
    assert not (~globally["0.weight"]).any(), "the layer of large weights lost some"
    assert int((~globally["2.weight"]).sum()) == 27, f"{int((~globally['2.weight']).sum())} of 54 gone, should be 27"
    assert [int((~mask).sum()) for mask in each.values()] == [12, 15], "each layer should lose its own half"


def test_l1_scores_add_up_over_coupled_filters_and_compare_means_globally() -> None:
    model = layers()
    with torch.no_grad():
        model[0].weight[3] = 0.5  # mean |w| 0.5, still above the 0.1 of the second layer
    removed = L1Filter(scope="global").plan(model, 0.3, context()).removed
    assert removed == {"0": (0, 6), "2": (3, 5)}, f"removed {removed}, should be from the layer of smaller means"
    kept = L1Filter().plan(model, 0.17, context()).kept["0.weight"][0].tolist()
    assert kept == [0, 1, 2, 4, 5], f"kept {kept}, should leave out the smallest filter, 3"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.floats(0, 1, exclude_max=True), st.integers(0, 99))
def test_channels_are_counted_exactly_and_one_of_each_coupling_stays(sizes: list[int], level: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = {str(at): torch.randint(0, 4, (size,), generator=generator).double() for at, size in enumerate(sizes)}
    each = {name: int((~mask).sum()) for name, mask in keep_channels(scores, level, "layer").items()}
    expected = {str(at): min(pruned_count(size, level), size - 1) for at, size in enumerate(sizes)}
    assert each == expected, f"{each} gone at {level}, should be {expected}"
    together = sum(int((~mask).sum()) for mask in keep_channels(scores, level, "global").values())
    total = min(pruned_count(sum(sizes), level), sum(sizes) - len(sizes))
    assert together == total, f"{together} of {sizes} gone at {level}, should be {total}"


@pytest.mark.parametrize("level", [1, 1.0, -0.5, "2of4", "w8a8", None])
@pytest.mark.parametrize("method", [Random(), L1Filter()])
def test_levels_that_are_no_sparsity_are_refused_by_the_methods_name(method: Any, level: Any) -> None:
    with pytest.raises(LevelError, match=f"^{method.name}: "):
        method.plan(layers(), level, context())


def test_l1_filter_says_why_nothing_can_go() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Softmax(1), nn.Linear(6, 2))
    with pytest.raises(ModelError, match="normalized over"):
        L1Filter().plan(model, 0.5, context())
