"""MACs against closed forms worked out here from the layers' own numbers, and against torch's own counter."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, library, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import DeformConv2d

from pruning_bench.errors import ModelError
from pruning_bench.metrics import cost
from pruning_bench.metrics.cost import ACTIVATIONS, Cost, LayerCost, count_cost


@st.composite
def convolutions(draw: st.DrawFn, transposed: bool = False) -> tuple[nn.Module, tuple[int, ...]]:
    """A convolution in one to three dimensions with some weights zero, and a fitting input shape without the batch."""
    dims, groups = draw(st.integers(1, 3), label="dims"), draw(st.sampled_from([1, 2, 3]), label="groups")
    kind = [[nn.Conv1d, nn.Conv2d, nn.Conv3d], [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]]
    layer = kind[transposed][dims - 1](
        groups * draw(st.integers(1, 3), label="in"),
        groups * draw(st.integers(1, 3), label="out"),
        kernel_size=draw(st.integers(1, 3), label="kernel"),
        stride=draw(st.integers(1, 3), label="stride"),
        padding=draw(st.integers(0, 1), label="padding"),
        dilation=draw(st.integers(1, 2), label="dilation"),
        groups=groups,
        bias=draw(st.booleans(), label="bias"),
    )
    zero_some(layer, draw(st.integers(0, 99), label="seed"))
    size = draw(st.integers(6, 9), label="size")
    return layer, (layer.in_channels, *[size] * dims)


def zero_some(layer: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.1)
            parameter.mul_(torch.rand(parameter.shape, generator=generator) > 0.5)


def closed_form(layer: nn.Module, shape: tuple[int, ...]) -> int:
    """MACs by the textbook: outputs times inputs they see; for a transposed one, inputs times outputs they reach."""
    kernel = math.prod(layer.kernel_size)
    if layer.transposed:
        return math.prod(shape) * layer.out_channels // layer.groups * kernel
    size, stride, padding, dilation = shape[1], layer.stride[0], layer.padding[0], layer.dilation[0]
    out = (size + 2 * padding - dilation * (layer.kernel_size[0] - 1) - 1) // stride + 1
    return layer.out_channels * out ** (len(shape) - 1) * layer.in_channels // layer.groups * kernel


def effective_by_running(layer: nn.Module, shape: tuple[int, ...]) -> int:
    """Effective MACs by running the layer on ones, with its nonzero weights set to one and ones for the padding."""
    sizes = [
        size + 2 * padding * (not layer.transposed) for size, padding in zip(shape[1:], layer.padding, strict=True)
    ]
    ones = torch.ones(1, shape[0], *sizes, dtype=torch.float64)
    counting = type(layer)(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        stride=layer.stride,
        dilation=layer.dilation,
        groups=layer.groups,
        bias=False,
    ).double()
    with torch.no_grad():
        counting.weight.copy_((layer.weight != 0).double())
        return int(counting(ones).sum().round())


Counter = Callable[[nn.Module, tuple[Tensor, ...]], Cost]


def check_convolution(count: Counter, layer: nn.Module, shape: tuple[int, ...], batch: int = 1) -> None:
    cost = count(layer, (torch.zeros(batch, *shape),))
    expected = closed_form(layer, shape), effective_by_running(layer, shape)
    assert (cost.macs, cost.macs_effective) == expected, f"{cost.layers}, should be {expected} for {layer} on {shape}"


@settings(max_examples=60, deadline=None)
@given(st.booleans().flatmap(lambda transposed: convolutions(transposed)), st.integers(1, 3))
def test_convolutions(drawn: tuple[nn.Module, tuple[int, ...]], batch: int) -> None:
    check_convolution(count_cost, *drawn, batch)


def ignores_groups(model: nn.Module, inputs: tuple[Tensor, ...]) -> Cost:
    """Mutant: every output sees every input channel."""
    (layer,) = count_cost(model, inputs).layers
    factor = model.groups
    return Cost(0, 0, (LayerCost("weight", layer.macs * factor, layer.macs_effective * factor),))


def ignores_stride(model: nn.Module, inputs: tuple[Tensor, ...]) -> Cost:
    """Mutant: as many outputs as inputs."""
    positions = math.prod(inputs[0].shape[2:])
    weight = model.weight
    return Cost(0, 0, (LayerCost("", positions * weight.numel(), positions * int(weight.count_nonzero())),))


def ignores_zeros(model: nn.Module, inputs: tuple[Tensor, ...]) -> Cost:
    """Mutant: all MACs are effective."""
    layers = count_cost(model, inputs).layers
    return Cost(0, 0, tuple(LayerCost(layer.name, layer.macs, layer.macs) for layer in layers))


def counts_the_batch(model: nn.Module, inputs: tuple[Tensor, ...]) -> Cost:
    """Mutant: the batch is not divided out."""
    (layer,) = count_cost(model, inputs).layers
    batch = len(inputs[0])
    return Cost(0, 0, (LayerCost("", layer.macs * batch, layer.macs_effective * batch),))


@pytest.mark.parametrize("mutant", [ignores_groups, ignores_stride, ignores_zeros, counts_the_batch])
def test_convolutions_reject(mutant: Counter) -> None:
    layer = nn.Conv2d(4, 6, 3, stride=2, dilation=2, groups=2)
    zero_some(layer, 0)
    check_convolution(count_cost, layer, (4, 9, 9), 2)
    with pytest.raises(AssertionError):
        check_convolution(mutant, layer, (4, 9, 9), 2)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 4), min_size=0, max_size=3), st.integers(1, 6), st.integers(1, 6), st.booleans(), st.data()
)
def test_linear_of_any_rank(middle: list[int], n_in: int, n_out: int, bias: bool, data: st.DataObject) -> None:
    layer = nn.Linear(n_in, n_out, bias=bias)
    zero_some(layer, data.draw(st.integers(0, 99), label="seed"))
    cost = count_cost(layer, (torch.zeros(3, *middle, n_in),))
    rows = math.prod(middle)
    expected = rows * n_in * n_out, rows * int((layer.weight != 0).sum())
    assert (cost.macs, cost.macs_effective) == expected, f"{cost.layers}, should be {expected}"
    stored = sum(p.numel() for p in layer.parameters()), sum(int((p != 0).sum()) for p in layer.parameters())
    assert (cost.params, cost.nonzeros) == stored, f"{cost.params} and {cost.nonzeros}, should be {stored}"


def pruned_encoder(fast: bool = True) -> nn.TransformerEncoderLayer:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=not fast)
    with torch.no_grad():
        layer.self_attn.in_proj_weight[:8] = 0  # all of the queries'
        layer.linear1.weight[0] = 0
    return layer


@pytest.mark.parametrize("fast", [True, False])
def test_attention_counts_products_of_activations(fast: bool) -> None:
    length, width, hidden = 5, 8, 16
    cost = count_cost(pruned_encoder(fast), (torch.zeros(2, length, width),))
    found = {layer.name: (layer.macs, layer.macs_effective) for layer in cost.layers}
    projected = length * width * width
    expected = {
        "self_attn.in_proj_weight": (3 * projected, 2 * projected),
        ACTIVATIONS: (2 * length * length * width,) * 2,
        "self_attn.out_proj.weight": (projected, projected),
        "linear1.weight": (length * width * hidden, length * width * (hidden - 1)),
        "linear2.weight": (length * width * hidden,) * 2,
    }
    assert found == expected, f"{found}, should be {expected}"


def test_fast_path_is_off_only_while_counting() -> None:
    before = torch.backends.mha.get_fastpath_enabled()
    count_cost(pruned_encoder(), (torch.zeros(1, 5, 8),))
    assert torch.backends.mha.get_fastpath_enabled() == before, "the fast path should be as it was"


@pytest.mark.parametrize("make", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("batch_first", [True, False])
def test_recurrent_layers(make: type[nn.RNNBase], batch_first: bool) -> None:
    layer = make(3, 4, batch_first=batch_first)
    with torch.no_grad():
        layer.weight_hh_l0[0] = 0
    steps = 5
    cost = count_cost(layer, (torch.zeros(1, steps, 3) if batch_first else torch.zeros(1, 1, 3),))
    steps = steps if batch_first else 1
    rows = layer.weight_hh_l0.shape[0]
    expected = steps * rows * (3 + 4), steps * (rows * 3 + (rows - 1) * 4)
    assert (cost.macs, cost.macs_effective) == expected, f"{cost.layers}, should be {expected}"


class Masked(nn.Module):
    """Multiplies with a weight that it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 6))
        self.register_buffer("mask", torch.tensor([1.0, 0, 0, 1, 1, 1]).repeat(4, 1))
        self.left, self.right = nn.Parameter(torch.ones(4, 2)), nn.Parameter(torch.ones(2, 6))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight * self.mask) + functional.linear(x, self.left @ self.right)


def test_computed_weights_count_by_what_is_multiplied() -> None:
    cost = count_cost(Masked(), (torch.zeros(1, 6),))
    expected = (LayerCost("weight", 24, 16), LayerCost("right", 4 * 2 * 6, 4 * 2 * 6), LayerCost("left", 24, 24))
    assert cost.layers == expected, f"{cost.layers}, should be {expected}"


class Reused(nn.Module):
    """Runs one layer twice, and ties another parameter to it."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(5, 5, bias=False)
        self.tied = nn.Linear(5, 5, bias=False)
        self.tied.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.tied(self.one(self.one(x)))


def test_a_shared_weight_is_stored_once_and_runs_each_time() -> None:
    cost = count_cost(Reused(), (torch.zeros(1, 5),))
    assert (cost.params, cost.macs) == (25, 75), f"{cost}, should have 25 parameters and 75 MACs"
    assert len(cost.layers) == 1, f"{cost.layers}, should be one weight"


def test_agrees_with_the_counter_of_torch() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8, stride=2),
        nn.ConvTranspose2d(8, 4, 2, stride=2),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 10),
    ).eval()
    inputs = torch.zeros(2, 3, 16, 16)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(inputs)
    cost = count_cost(net, (inputs,))
    assert cost.macs == counter.get_total_flops() / 4, f"{cost.macs}, torch counts {counter.get_total_flops() / 4}"


def test_counting_leaves_the_model_as_it_was() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout())
    net[2].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    count_cost(net, (torch.ones(2, 1, 5, 5),))
    modes = [module.training for module in net.modules()]
    assert modes == [True, True, True, False], f"training flags {modes}, should be as before"
    changed = [name for name, value in net.state_dict().items() if not torch.equal(value, before[name])]
    assert not changed, f"{changed} should be as before"
    assert all(p.grad is None and p.requires_grad for p in net.parameters()), "gradients should be as before"


class Deformed(nn.Module):
    """A deformable convolution with computed offsets."""

    def __init__(self) -> None:
        super().__init__()
        self.o, self.deform = nn.Conv2d(4, 18, 3, padding=1), DeformConv2d(4, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.deform(x, self.o(x))


class Spelt(nn.Module):
    """Multiplies with a matrix of which one weight is zero, by any function."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.w, self.function = nn.Parameter(torch.ones(shape or (6, 4))), function
        self.register_buffer("mask", torch.ones(1, 6))
        with torch.no_grad():
            self.w.view(-1)[0] = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.w)


Written = Callable[[Tensor, Tensor], Tensor]
PRODUCTS: dict[str, Written] = {
    "as a product": lambda x, w: x @ w,
    "as a sum": lambda x, w: (x[..., None] * w).sum(-2),
    "as a sum of all": lambda x, w: (x[..., None] * w).sum().view(1, 1),
    "the other way round": lambda x, w: (w * x[..., None]).sum(1),
    "as a mean": lambda x, w: (x[..., None] * w).mean(1) * 6,
    "in place": lambda x, w: x[..., None].repeat(1, 1, 4).mul_(w).sum(1),
    "by an expanded weight": lambda x, w: (x[..., None] * w.expand(1, 6, 4)).sum(1),
    "by a computed weight": lambda x, w: (x[..., None] * w.relu()).sum(1),
    "over several dimensions": lambda x, w: (x[..., None] * w).sum((1, 2))[:, None],
}
NO_PRODUCTS: dict[str, tuple[Written, tuple[int, ...]]] = {
    "scale": (lambda x, w: x * w[0] * w[1], (2, 6)),
    "scale of channels, then a mean over places": (lambda x, w: (x.view(1, 3, 2) * w).mean(2), (3, 1)),
    "the same, expanded": (lambda x, w: (x.view(1, 3, 2) * w.expand(3, 2)).mean(2), (3, 1)),
    "gate": (lambda x, w: x.view(1, 3, 2) * w.sigmoid(), (3, 2)),
    "gate, then something else, then a sum": (lambda x, w: (x.view(1, 3, 2) * w).relu().sum(1), (3, 2)),
    "mean of another product": (lambda x, w: (x.view(1, 3, 2) * w).view(-1), (3, 2)),
    "position": (lambda x, w: x.view(1, 3, 2) + w, (3, 2)),
    "token": (lambda x, w: torch.cat([w.view(1, 3, 2), x.view(1, 3, 2)], 1), (3, 2)),
    "stack": (lambda x, w: torch.stack([w.view(1, 6), x]), (3, 2)),
    "embedding": (lambda x, w: functional.embedding(x.long(), w), (3, 2)),
    "bag": (lambda x, w: functional.embedding_bag(x.long(), w), (3, 2)),
    "index": (lambda x, w: w[x.long()], (3, 2)),
    "gather": (lambda x, w: w.gather(1, x.long()), (3, 6)),
    "where": (lambda x, w: torch.where(x > 0, x, w), (3, 6)),
    "layer norm": (lambda x, w: functional.layer_norm(x.view(1, 3, 2), (3, 2), w, w), (3, 2)),
    "writes": (lambda x, w: x.new_zeros(3, 6).copy_(w) + x, (3, 6)),
    "grid": (lambda x, w: functional.grid_sample(x.view(1, 1, 2, 3), w, align_corners=False), (1, 2, 2, 2)),
}
REFUSED: dict[str, Written] = {
    "distances": lambda x, w: torch.cdist(x, w.T),
    "distances to many": lambda x, w: torch.cdist(x, w.T.repeat(9, 1)),
    "distances of activations": lambda x, w: torch.cdist(x, x),
    "of another library": lambda x, w: torch.ops.made_up.dot(x, w[:, 1]),
    "cross": lambda x, w: torch.linalg.cross(x[:, :3].expand(4, 3), w[:3].T),
}


@library.custom_op("made_up::dot", mutates_args=())
def dot(x: Tensor, w: Tensor) -> Tensor:
    return x @ w


def check_product(count: Counter, kind: str) -> None:
    cost = count(Spelt(PRODUCTS[kind]), (torch.ones(2, 6),))
    expected = (LayerCost("w", 24, 23),)
    assert cost.layers == expected, f"{kind}: {cost.layers}, should be {expected}"


def check_no_product(count: Counter, kind: str) -> None:
    function, shape = NO_PRODUCTS[kind]
    cost = count(Spelt(function, *shape), (torch.ones(2, 6),))
    assert not cost.layers, f"{kind}: {cost.layers}, should be none"


@pytest.mark.parametrize("kind", PRODUCTS)
def test_a_product_costs_the_same_however_it_is_written(kind: str) -> None:
    check_product(count_cost, kind)


@pytest.mark.parametrize("kind", NO_PRODUCTS)
def test_what_only_scales_adds_or_moves_costs_nothing(kind: str) -> None:
    check_no_product(count_cost, kind)


def test_a_masked_mean_is_no_product() -> None:
    class Masked(Spelt):
        def forward(self, x: Tensor) -> Tensor:
            return (x * self.mask).sum(1)

    assert not count_cost(Masked(torch.add), (torch.ones(1, 6),)).layers, "a buffer that masks counts"


def test_a_deformable_convolution_costs_what_a_plain_one_does() -> None:
    found = {layer.name: layer.macs for layer in count_cost(Deformed(), (torch.zeros(2, 4, 9, 9),)).layers}
    expected = {"o.weight": 81 * 18 * 4 * 9, "deform.weight": 81 * 8 * 4 * 9}
    assert found == expected, f"{found}, should be {expected}"


@pytest.mark.parametrize("kind", REFUSED)
def test_what_may_multiply_is_refused(kind: str) -> None:
    with pytest.raises(ModelError, match=r"macs: operation .*, should be one whose multiplications are known"):
        count_cost(Spelt(REFUSED[kind]), (torch.ones(1, 6),))


def never(*_: Any) -> None:
    """Sees nothing."""


def every_product(counter: Any, args: tuple[Any, ...]) -> Any:
    return counter._products.get(cost._address(args[0]), (None, None))[1]


MUTANTS: dict[str, tuple[str, Callable[..., Any], Callable[[], None]]] = {
    "sums are passed over": ("_summed", never, lambda: check_product(count_cost, "as a sum")),
    "every product that is summed counts": (
        "_summed",
        every_product,
        lambda: check_no_product(count_cost, "scale of channels, then a mean over places"),
    ),
    "an expanded scale varies": ("_summed", every_product, lambda: check_no_product(count_cost, "the same, expanded")),
    "unknown operations count nothing": (
        "_refuse_unknown",
        never,
        lambda: test_what_may_multiply_is_refused("of another library"),
    ),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_count_by_a_wrong_rule_is_caught(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, wrong, check = MUTANTS[mutant]
    check()
    monkeypatch.setattr(cost._Counter, name, wrong)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check()


@pytest.mark.parametrize("kind", ["cat", "embedding", "native_layer_norm"])
def test_a_list_of_harmless_operations_that_lacks_one_is_caught(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "_MOVES", tuple(name for name in cost._MOVES if not kind.startswith(name)))
    named = {"cat": "token", "native_layer_norm": "layer norm"}
    with pytest.raises(ModelError, match=rf"macs: operation aten.{kind}, .* \[w\]"):
        check_no_product(count_cost, named.get(kind, kind))


def test_every_harmless_operation_is_one_of_torchs() -> None:
    there = [name.removeprefix("aten::") for name in torch._C._dispatch_get_all_op_names()]
    unknown = [beginning for beginning in cost._MOVES if not any(name.startswith(beginning) for name in there)]
    assert not unknown, f"{unknown}: torch has no such operators"


def test_what_cannot_be_counted_is_refused() -> None:
    with pytest.raises(ModelError, match="_trilinear"):
        count_cost(nn.Bilinear(2, 3, 4), (torch.zeros(1, 2), torch.zeros(1, 3)))


def test_a_model_without_products_costs_nothing() -> None:
    cost = count_cost(nn.ReLU(), (torch.zeros(1, 2),))
    assert cost == Cost(0, 0), f"{cost}, should be nothing"


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)), (2, 2, 4, 4)),
        (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (2, 5, 8)),
    ],
    ids=["convolution", "attention"],
)
def test_sizes_are_all_that_a_count_needs(model: nn.Module, shape: tuple[int, ...]) -> None:
    """On the device meta, where all tensors lie at the same address, each weight counts under its own name."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1)
    expected = count_cost(model, (torch.ones(shape),))
    found = count_cost(model.to("meta"), (torch.ones(shape, device="meta"),))
    assert found == expected, f"{found}, should be {expected}"
