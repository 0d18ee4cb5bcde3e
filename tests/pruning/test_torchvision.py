"""Every classification model of torchvision, pruned to half width, equals its masked twin; wrong pairings do not."""

import pytest
import torchvision
from torch import Tensor, nn

from pruning_bench.conformance.torchvision_table import build, twin_errors
from pruning_bench.engine import compress
from pruning_bench.metrics.cost import count_cost
from pruning_bench.pruning.contract import ChannelPlan

LARGE = ("vit_h_14", "regnet_y_128gf")  # too large for a forward pass of both twins in two precisions
NAMES = [name for name in torchvision.models.list_models(module=torchvision.models) if name not in LARGE]
BARS = {"shufflenet": 0.6, "swin_v2": 0.73, "swin": 0.7, "vit": 0.7, "maxvit": 0.7, "convnext": 0.7}


def wrong_pairing(model: nn.Module, plan: ChannelPlan) -> ChannelPlan:
    """The plan with the kept inputs of its last consumer shifted by one."""
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    name = [name for name, dims in plan.kept.items() if 1 in dims][-1]
    index: Tensor = ((plan.kept[name][1] + 1) % shapes[name][1]).sort().values
    return ChannelPlan({**plan.kept, name: {**plan.kept[name], 1: index}})


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
    bar = next((bar for start, bar in BARS.items() if name.startswith(start)), 0.35)
    assert share <= bar, f"{name}: {share:.1%} of the MACs left, should be at most {bar:.0%}"
    wrong = twin_errors(model, wrong_pairing(model, plan), images)
    assert wrong[1] > 1e-10, f"{name}: a wrong pairing passes with an error of {wrong[1]}"
