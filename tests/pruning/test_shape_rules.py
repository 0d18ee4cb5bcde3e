"""Channels that reshapes, splits, shuffles, groups and products move; wrong rules must fail the twin test."""

import copy
import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pruning_bench import graphs
from pruning_bench.conformance.plan_checks import check_twin
from pruning_bench.errors import ModelError, PlanError
from pruning_bench.pruning.coupling_rules import RULES
from pruning_bench.pruning.couplings import Couplings, collect, find_couplings
from pruning_bench.pruning.shrink import apply_channels
from pruning_bench.pruning.sizes import Size, following_sizes
from pruning_bench.pruning.walk import Walk

IMAGES = (torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(0)),)


class Net(nn.Module):
    """Two convolutions of 8 channels, a head, and a body that is given as a function."""

    def __init__(self, body: Callable[[Any, Tensor], Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 8, 1)
        self.second = nn.Conv2d(4, 8, 1) if "second" in body.__code__.co_names else nn.Identity()
        self.layers, self.head = nn.ModuleList(layers), nn.LazyConv2d(2, 1)
        self.body = body
        with torch.no_grad():
            self(*IMAGES)

    def forward(self, images: Tensor) -> Tensor:
        made: Tensor = self.head(self.body(self, images))
        return made


def excite(net: Any, images: Tensor) -> Tensor:
    features = net.first(images)
    batch, channels, _, _ = features.shape
    gate = functional.adaptive_avg_pool2d(features, 1).view(batch, channels)
    gate = net.layers[1](net.layers[0](gate).relu()).sigmoid().view(batch, channels, 1, 1)
    return features * gate


def shuffle(net: Any, images: Tensor) -> Tensor:
    features = torch.cat([net.first(images), net.second(images)], 1)
    batch, channels, height, width = features.size()
    features = features.view(batch, 4, channels // 4, height, width).transpose(1, 2).contiguous()
    return features.view(batch, channels, height, width)


def chunk(net: Any, images: Tensor) -> Tensor:
    one, other = net.first(images).chunk(2, dim=1)
    return torch.cat([one, net.layers[0](other)], 1)


def split(net: Any, images: Tensor) -> Tensor:
    features = net.first(images)
    one, other = features.split(features.shape[1] // 2, dim=1)
    return one * other.sigmoid()


def gated(net: Any, images: Tensor) -> Tensor:
    return functional.glu(net.first(images), 1)


def torch_shuffle(net: Any, images: Tensor) -> Tensor:
    return torch.channel_shuffle(net.first(images), 2)


def layers(net: Any, images: Tensor) -> Tensor:
    features = net.first(images)
    for layer in net.layers:
        features = layer(features)
    return features


def transformer(net: Any, images: Tensor) -> Tensor:
    tokens = net.first(images).flatten(2).transpose(1, 2)
    tokens = tokens + net.layers[1](net.layers[0](tokens).relu()) * net.layers[2].weight
    return net.layers[2](tokens).transpose(1, 2).unflatten(2, (6, 6))


def products(net: Any, images: Tensor) -> Tensor:
    one, other = net.first(images).flatten(2), net.second(images).flatten(2)
    mixed = (one.transpose(1, 2) @ other).softmax(-1)  # 36 x 36
    return (net.layers[0](images).flatten(2) @ mixed).unflatten(2, (6, 6))


def asserted(net: Any, images: Tensor) -> Tensor:
    one, other = net.first(images), net.second(images)
    assert one.shape == other.shape, "differ"
    return one + other.type_as(net.layers[0](images.mean((2, 3))))


def stacked(net: Any, images: Tensor) -> Tensor:
    return torch.stack([net.first(images), net.second(images)]).sum(0)


# Body, layers, and how many units each coupling has, by the module of its first producer.
NETS: dict[str, tuple[Callable[..., Tensor], list[nn.Module], dict[str, int]]] = {
    "excite": (excite, [nn.Linear(8, 6), nn.Linear(6, 8)], {"first": 8, "layers.0": 6}),
    "shuffle": (shuffle, [], {"first": 4}),
    "chunk": (chunk, [nn.Conv2d(4, 6, 1)], {"first": 4, "layers.0": 6}),
    "split": (split, [], {"first": 4}),
    "glu": (gated, [], {"first": 4}),
    "channel_shuffle": (torch_shuffle, [], {"first": 4}),
    "whole groups": (layers, [nn.Conv2d(8, 8, 3, padding=1, groups=4)], {"first": 4}),
    "places of groups": (layers, [nn.Conv2d(8, 8, 3, padding=1, groups=2)], {"first": 4}),
    "group_norm": (layers, [nn.GroupNorm(4, 8)], {"first": 4}),
    "instance_norm": (layers, [nn.InstanceNorm2d(8, affine=True)], {"first": 8}),
    "prelu": (layers, [nn.PReLU(8), nn.PReLU()], {"first": 8}),
    "transformer": (transformer, [nn.Linear(8, 12), nn.Linear(12, 8), nn.LayerNorm(8)], {"layers.0": 12}),
    "products": (products, [nn.Conv2d(4, 6, 1)], {"first": 8, "layers.0": 6}),
    "a comparison": (asserted, [nn.Linear(4, 3)], {"first": 8, "layers.0": 3}),
    "stack": (stacked, [], {"first": 8}),
}


def build(name: str) -> nn.Module:
    body, made, _ = NETS[name]
    return Net(body, *copy.deepcopy(made)).eval()


def halves(found: Couplings, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(len(units), generator=generator).argsort() >= len(units) // 2
        for name, units in found.groups.items()
    }


@pytest.mark.parametrize("name", NETS)
def test_the_model_shrinks_along_the_rule(name: str) -> None:
    model = build(name)
    found = find_couplings(model, IMAGES)
    sizes = {coupling: len(units) for coupling, units in found.groups.items()}
    assert sizes == NETS[name][2], f"{name}: units {sizes}, should be {NETS[name][2]}; untouched {found.untouched}"
    plan = found.plan(halves(found))
    check_twin(model, plan, IMAGES)
    check_twin(model.double(), plan, (IMAGES[0].double(),))


@pytest.mark.parametrize("name", ["excite", "shuffle", "chunk", "places of groups", "whole groups", "group_norm"])
def test_a_pruned_model_is_pruned_again(name: str) -> None:
    model = build(name)
    first = find_couplings(model, IMAGES)
    small = apply_channels(model, first.plan(halves(first)))
    second = find_couplings(small, IMAGES)
    assert second.groups, f"{name}: nothing left to prune, {second.untouched}"
    check_twin(small, second.plan(halves(second)), IMAGES)


# Rules that pair wrong channels, or none: each must be caught on the net that needs the right one.
MUTANTS: dict[str, tuple[str, Callable[[Walk, Any], Any]]] = {
    "chunk": ("aten.chunk", lambda w, n: _take(w, n, lambda c: (c[0::2], c[1::2]))),
    "glu": ("aten.glu", lambda w, n: _replaced(w, n, lambda c: c[4:])),
    "channel_shuffle": ("aten.channel_shuffle", lambda w, n: list(w.dims(n.all_input_nodes[0]))),
    "group_norm": ("aten.group_norm", RULES["aten.batch_norm"]),
    "prelu": ("aten.prelu", lambda w, n: list(w.dims(n.all_input_nodes[0]))),
    "stack": ("aten.stack", lambda w, n: ["stacked", *w.dims(n.all_input_nodes[0])]),
    "products": ("aten.matmul", lambda w, n: [w.dims(n.args[0])[0], w.dims(n.args[0])[1], w.dims(n.args[1])[2]]),
    "shuffle": ("aten.transpose", lambda w, n: _replaced(w, n, lambda c: np.roll(c, 1), swap=True)),
}


def _take(walk: Walk, node: Any, parts: Callable[[Any], Any]) -> Any:
    batch, channels, *others = walk.dims(node.all_input_nodes[0])
    return [[batch, part, *others] for part in parts(channels)]


def _replaced(walk: Walk, node: Any, change: Callable[[Any], Any], swap: bool = False) -> Any:
    dims = list(walk.dims(node.all_input_nodes[0]))
    at = 2 if swap else 1
    dims[at] = change(dims[at])
    if swap:
        dims[1], dims[2] = dims[2], dims[1]
    return dims


@pytest.mark.parametrize("name", MUTANTS)
def test_the_twin_test_rejects_a_wrong_rule(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, *MUTANTS[name])
    model = build(name)
    found = find_couplings(model, IMAGES)
    plan = found.plan(halves(found))
    with pytest.raises((AssertionError, PlanError), match=r"does not run|outputs differ|whole groups"):
        check_twin(model, plan, IMAGES)


def literal_shuffle(net: Any, images: Tensor) -> Tensor:
    features = net.first(images)
    return features.view(-1, 2, 4, 6, 6).transpose(1, 2).reshape(-1, 8, 6, 6)


def rounded_shape(net: Any, images: Tensor) -> Tensor:
    features = net.first(images)
    return features.view(-1, int(features.shape[1]), 36).unflatten(2, (6, 6))


def borrowed_size(net: Any, images: Tensor) -> Tensor:
    one, other = net.first(images), net.second(images)
    return other.view(-1, one.shape[1], 36).unflatten(2, (6, 6))


@pytest.mark.parametrize("operation", ["add", "sub", "mul", "floordiv", "mod", "truediv", "eq", "lt", "ge"])
def test_sizes_calculate_as_ints(operation: str) -> None:
    """With ints, floats, each other and torch's symbolic sizes, which take nothing but plain ints."""
    size, function = Size(6, ()), getattr(operator, operation)

    class Calculates(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            batch, plain, found = images.shape[0], 6, images.shape[1]
            one, other = function(batch, found), function(found, batch)
            if operation in ("lt", "ge"):  # these decide in the model's code
                return images * (2 if one else 3) * (5 if other else 7)
            return images * (one == function(batch, plain)) * (other == function(plain, batch))

    for other in (2, 4, 2.5, Size(4, ())):
        there, back = function(6, other), function(other, 6)
        assert function(size, other) == there, f"6 {operation} {other}: {function(size, other)}, should be {there}"
        assert function(other, size) == back, f"{other} {operation} 6: {function(other, size)}, should be {back}"
    model, images = Calculates(), torch.ones(4, 6, 2)
    with following_sizes(model):
        program = graphs.export(model, (images,))
    assert torch.equal(program.module()(images), model(images)), f"{operation} with a symbolic batch differs"


def scaled(net: Any, images: Tensor) -> Tensor:
    features = net.first(images)
    return features * features.shape[1] ** -0.5


def divided(net: Any, images: Tensor) -> Tensor:
    features = net.first(images)
    return features / features.size(dim=1)


def rooted(net: Any, images: Tensor) -> Tensor:
    return net.first(images) / math.sqrt(net.first.weight.shape[0])


def counted(net: Any, images: Tensor) -> Tensor:
    features = net.first(images)
    return features / (features.numel() / features.shape[0])


def cut_behind(net: Any, images: Tensor) -> Tensor:
    features = net.first(images)
    return torch.cat([features, net.second(images)[:, features.shape[1] // 2 :]], 1)


def decided(net: Any, images: Tensor) -> Tensor:
    features = net.first(images)
    return features * 2 if features.shape[1] > 6 else features


def compared(net: Any, images: Tensor) -> Tensor:
    one, other = net.first(images), net.second(images)
    return one * other.mean(1, keepdim=True) if one.shape[1] == other.shape[1] else one


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, features: Tensor) -> Tensor:
        tokens = features.flatten(2).transpose(1, 2)
        return self.inner(tokens, tokens, tokens, need_weights=False)[0].transpose(1, 2).unflatten(2, (6, 6))


class Unsaved(nn.Module):
    """A scale of channels that a checkpoint would lack."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.linspace(1, 2, 8)[:, None, None], persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        return features * self.scale


KEPT: dict[str, tuple[nn.Module, str, str]] = {
    "literals in a view": (Net(literal_shuffle), "first", "reshaped"),
    "a number that lost its origin": (Net(rounded_shape), "first", "the code computes with its size"),
    "a number of other channels": (Net(borrowed_size), "second", "its size follows that of other channels"),
    "a scale": (Net(scaled), "first", "the code computes with its size"),
    "a divisor": (Net(divided), "first", "the code computes with its size"),
    "a root": (Net(rooted), "first", "the code computes with its size"),
    "a shift": (Net(lambda n, x: n.first(x) * (n.first(x).shape[1] >> 1)), "first", "the code computes with its size"),
    "a remainder": (Net(lambda n, x: n.first(x) * divmod(n.first(x).shape[1], 3)[1]), "first", "the code computes"),
    "a cut": (Net(cut_behind), "first", "the code computes with its size"),
    "a count": (Net(counted), "first", "the code computes with its size"),
    "a decision": (Net(decided), "first", "the code computes with its size"),
    "a comparison of channels that part": (Net(compared), "first", "its size follows that of other channels"),
    "a buffer that is not saved": (Net(layers, Unsaved()), "first", "no state_dict holds"),
    "attention": (Net(layers, Attention()), "first", "the code of MultiheadAttention fixes its size"),
    "parts": (Net(lambda n, x: n.first(x).split(4, 1)[0]), "first", "the code gives the size of its parts"),
    "an index": (Net(lambda n, x: n.first(x)[:, 3:4]), "first", "cut or padded"),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_the_code_fixes_stays(name: str) -> None:
    model, layer, reason = KEPT[name]
    found = find_couplings(model.eval(), IMAGES)
    said = found.untouched.get(f"{layer}.weight, dimension 0", f"nothing; couplings {dict(found.producers)}")
    assert reason in said, f"{name}: {said!r}, should hold {reason!r}"
    if found.groups:
        check_twin(model, found.plan(halves(found)), IMAGES)


class Auxiliary(nn.Module):
    """A second head that only training runs, or that nothing runs."""

    def __init__(self, runs: bool) -> None:
        super().__init__()
        self.first, self.head, self.aux = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 2, 1), nn.Conv2d(8, 2, 1)
        self.runs = runs

    def forward(self, images: Tensor) -> Any:
        features = self.first(images)
        return (self.head(features), self.aux(features)) if self.runs and self.training else self.head(features)


def test_a_head_that_only_training_runs_shrinks_along() -> None:
    model = Auxiliary(True).eval()
    found = find_couplings(model, IMAGES)
    small = apply_channels(model, found.plan({"first": torch.arange(8) < 3}))
    main, second = small.train()(*IMAGES)
    assert small.aux.weight.shape == (2, 3, 1, 1), f"shape {tuple(small.aux.weight.shape)}, should be (2, 3, 1, 1)"
    assert main.shape == second.shape == (3, 2, 6, 6), f"outputs {main.shape}, {second.shape}"


def test_a_part_that_no_forward_reaches_is_named() -> None:
    with pytest.raises(ModelError, match=r"no forward reaches.*\[aux\.weight\]"):
        find_couplings(Auxiliary(False), IMAGES)


def work(depth: int) -> int:
    """Labels that a walk over a chain of residual blocks joins and pins."""
    blocks = [nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(depth)]

    def chain(net: Any, images: Tensor) -> Tensor:
        features = net.first(images)
        for block in net.layers:
            features = features + block(features)
        return features

    model = Net(chain, *blocks).eval()
    walk = Walk(model, RULES)
    walk.run(graphs.export(model, IMAGES))
    collect(walk)
    return walk.work


def test_the_cost_grows_linearly_with_the_graph() -> None:
    small, middle, large = work(4), work(8), work(16)
    assert large - middle == 2 * (middle - small) > 0, f"{small}, {middle}, {large}: steps should double with the depth"
