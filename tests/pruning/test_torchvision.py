"""Every classification model of torchvision, pruned to half width, equals its masked twin; wrong pairings do not."""

from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from pruning_bench.conformance.torchvision_table import LARGE, build, shapes_row, twin_errors
from pruning_bench.contracts import Context
from pruning_bench.engine import compress
from pruning_bench.errors import ModelError
from pruning_bench.metrics.cost import count_cost
from pruning_bench.pruning.contract import ChannelPlan
from pruning_bench.pruning.methods.l1_filter import L1Filter

TABLE = Path(__file__).parents[2] / "docs" / "torchvision.md"
NAMES = [name for name in torchvision.models.list_models(module=torchvision.models) if name not in LARGE]
BARS = {"shufflenet": 0.6, "swin_v2": 0.73, "swin": 0.7, "vit": 0.7, "maxvit": 0.7, "convnext": 0.7}


def wrong_pairing(model: nn.Module, plan: ChannelPlan) -> ChannelPlan:
    """The plan with the kept inputs of its last consumer shifted by one."""
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    name = [name for name, dims in plan.kept.items() if 1 in dims][-1]
    index: Tensor = ((plan.kept[name][1] + 1) % shapes[name][1]).sort().values
    return ChannelPlan({**plan.kept, name: {**plan.kept[name], 1: index}})


def bar_of(name: str) -> float:
    """The share of its multiply-accumulates that a model may have left."""
    return next((bar for start, bar in BARS.items() if name.startswith(start)), 0.35)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_models_equal_their_twins_and_wrong_pairings_do_not(name: str) -> None:
    check(name)


def check(name: str) -> None:
    model, images = build(name)
    made = compress(model, "l1_filter:0.5", example_inputs=images)
    plan = made.plans[0]
    assert isinstance(plan, ChannelPlan), f"{type(plan).__name__} is no channel plan"
    single, double = twin_errors(model, plan, images)
    assert single < 1e-4, f"{name}: an error of {single} in float32"
    assert double < 1e-10, f"{name}: an error of {double} in float64"
    share = count_cost(made.model, images).macs / count_cost(model, images).macs
    assert share <= bar_of(name), f"{name}: {share:.1%} of the MACs left, should be at most {bar_of(name):.0%}"
    wrong = twin_errors(model, wrong_pairing(model, plan), images)
    assert wrong[1] > 1e-10, f"{name}: a wrong pairing passes with an error of {wrong[1]}"


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_the_largest_models_end_at_their_share(name: str) -> None:
    row = shapes_row(name)
    assert row.macs <= bar_of(name), f"{name}: {row.macs:.1%} of the MACs left, should be at most {bar_of(name):.0%}"
    assert str(row) in TABLE.read_text(encoding="utf-8"), f"{row} should stand in {TABLE.name}"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "mobilenet_v3_small" else pytest.mark.slow) for name in NAMES]
)
def test_the_row_of_a_model_is_that_of_the_table(name: str) -> None:
    """Without values, shares and reasons are those of the model that was really pruned and run; errors it has none."""
    known = next(line for line in TABLE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| {name} |"))
    found, expected = (line.split(" | ") for line in (str(shapes_row(name)), known))
    assert [*found[:3], found[-1]] == [*expected[:3], expected[-1]], f"{found}, should be {expected}"
    assert found[3:5] == ["shapes only"] * 2, f"{found} claims an error"


def test_a_model_without_values_is_refused_by_a_method_in_one_line() -> None:
    with torch.device("meta"):
        model, inputs = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), (torch.ones(2, 3),)
    with pytest.raises(ModelError, match=r"weights on the device meta, should be tensors with values \[0.weight\]"):
        compress(model, "l1_filter:0.5", example_inputs=(torch.ones(2, 3),))
    with pytest.raises(ModelError, match=r"weights on the device meta, should be tensors with values \[0.weight\]"):
        L1Filter().plan(model, 0.5, Context(inputs, torch.Generator()))
