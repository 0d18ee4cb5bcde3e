"""Where the canonical plan quantizes."""

import math

import torch
from torch import Tensor, nn

from pruning_bench.conformance.quantization_checks import ExampleNet
from pruning_bench.graphs import export
from pruning_bench.models.image_classifier import image_classifier
from pruning_bench.models.resnet20 import resnet20
from pruning_bench.quantization.fold import fold_batch_norms
from pruning_bench.quantization.points import Points, find_points


def points_of(model: nn.Module, *shape: int) -> Points:
    x = torch.randn(2, *shape)
    return find_points(export(fold_batch_norms(model, (x,)), (x,)))


def test_names_of_the_example_net() -> None:
    points = points_of(ExampleNet(), 3, 8, 8)
    layers = ["conv3.conv2d", "mean.adaptive_avg_pool2d", "hidden.linear"]
    names = ["input", "conv1.conv2d", "conv2.conv2d", "add", *layers]
    assert list(points.values) == names, f"{list(points.values)}, should be {names}"
    weights = ["conv1.weight", "conv2.weight", "conv3.weight", "hidden.weight", "classifier.weight"]
    assert list(points.layers.values()) == weights, f"{list(points.layers.values())}, should be {weights}"


def test_the_point_stands_after_a_relu_that_reads_alone() -> None:
    points = points_of(ExampleNet(), 3, 8, 8)
    assert points.values["conv1.conv2d"].startswith("relu"), f"conv1's point stands at {points.values['conv1.conv2d']}"
    assert points.values["conv2.conv2d"] == "conv2d_1", f"conv2's point stands at {points.values['conv2.conv2d']}"
    assert points.producers[points.values["add"]] == "add", f"producers {points.producers}, should name the addition"


def test_operators_that_move_values_pass_the_parameters_on() -> None:
    points = points_of(image_classifier(), 1, 32, 32)
    for pool, layer in (("max_pool2d", "features.0.conv2d"), ("flatten", "features.9.conv2d")):
        assert points.name_at(pool) == layer, (
            f"{pool} has the parameters of {points.name_at(pool)}, should have {layer}"
        )
    assert "max_pool2d" not in points.values.values(), "max pool has a point of its own"


def test_counts_of_resnet20() -> None:
    points = points_of(resnet20(), 1, 32, 32)
    kinds = [name.rpartition(".")[2] for name in points.values]
    counted = {kind: kinds.count(kind) for kind in sorted(set(kinds))}
    expected = {"adaptive_avg_pool2d": 1, "add": 9, "conv2d": 21, "input": 1}
    assert counted == expected, f"{counted}, should be {expected}"
    assert len(points.layers) == 22, f"{len(points.layers)} layers, should be 22"


class Odd(nn.Module):
    """A ReLU with a reader beside it, an activation that is no ReLU, an addition of a number, a last convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = (nn.Conv2d(3, 3, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        z = self.second(torch.sigmoid(torch.relu(y) * y + 1.0))
        out: Tensor = self.last(z)
        return out


def test_what_a_layer_reads_gets_a_point_whatever_made_it() -> None:
    points = points_of(Odd(), 3, 4, 4)
    expected = ["input", "first.conv2d", "sigmoid", "second.conv2d", "last.conv2d"]
    assert list(points.values) == expected, f"{list(points.values)}, should be {expected}"
    assert points.values["first.conv2d"] == "conv2d", "a convolution with two readers is quantized before the ReLU"
    assert points.carried["relu"] == "conv2d", (
        f"carried {dict(points.carried)}, should hold the ReLU on quantized values"
    )


def test_a_last_linear_layer_gives_float() -> None:
    last = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2), nn.Dropout())
    points = points_of(last, 4)
    assert list(points.values) == ["input", "0.linear"], f"{list(points.values)}, should leave the output in float"
    both = nn.Sequential(nn.Linear(4, 4))
    assert list(points_of(both, 4).values) == ["input"], "a single linear layer should give float"


class Clamped(nn.Module):
    """Layers with a clamp of one kind behind each."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(6))
        self.six, self.hard = nn.ReLU6(inplace=True), nn.Hardtanh()

    def forward(self, x: Tensor) -> Tensor:
        x = self.six(self.layers[0](x))
        x = torch.clamp(self.layers[1](x), 0, 2)
        x = torch.clamp(self.layers[2](x), min=0)
        x = self.hard(self.layers[3](x))
        x = torch.clamp(self.layers[4](x), max=3)
        return self.layers[5](x).relu_()  # type: ignore[no-any-return]


def test_the_point_stands_after_a_clamp_from_zero() -> None:
    points = points_of(Clamped(), 3, 4, 4)
    tops = {points.name_at(clamp): top for clamp, top in points.tops.items()}
    expected = {"layers.0.conv2d": 6.0, "layers.1.conv2d": 2.0, "layers.2.conv2d": math.inf}
    expected["layers.5.conv2d"] = math.inf
    assert tops == expected, f"{tops}, should be {expected}"
    others = {name for name in points.values if name is not None} - set(expected)
    wanted = {"input", "layers.3.conv2d", "hard.hardtanh", "layers.4.conv2d", "clamp_2"}
    assert others == wanted, f"{others}, should be {wanted}"
    assert points.top_behind("conv2d") == 6.0, f"{points.top_behind('conv2d')}, should be where the ReLU6 ends"
    assert points.top_behind("conv2d_3") is None, "a Hardtanh from -1 was taken for a clamp from zero"


class Computed(nn.Module):
    """Two linear layers, of which one computes its bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.linear(x, self.first.weight, self.first.bias * 2)
        z: Tensor = self.second(y)
        return z


def test_a_layer_that_computes_its_bias_is_none() -> None:
    """No form puts anything in its place, so that no plan may name its weight."""
    found = find_points(export(Computed(), (torch.zeros(2, 3),)))
    assert list(found.layers.values()) == ["second.weight"], f"{found.layers}"
