"""Models whose code is unusual, and legitimate: every form of them computes what they compute."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pruning_bench import compress
from pruning_bench.discover import discover
from pruning_bench.engine import Compressed
from pruning_bench.errors import ModelError
from pruning_bench.graphs import operator
from pruning_bench.quantization import lower, points
from pruning_bench.quantization.blocked import round_blocks
from pruning_bench.quantization.pooling import PlainAverage, Pooling
from pruning_bench.quantization.simulation import simulate
from pruning_bench.registry import RUNTIMES

ROUNDED = 0.1  # of the largest output: 8 bits, with room
SAME = 1e-5
ONE_CODE = 0.03


class Net(nn.Module):
    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **parts: Any) -> None:
        super().__init__()
        self._forward = forward
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


class NormThenRelu(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(super().forward(x))


class IgnoresItsBias(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.weight, None, self.stride, self.padding)


class WeightAlone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 3, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.weight, padding=1)


class ForgetsLaterBiases(nn.Conv2d):
    """Has no bias, and would not read one."""

    def __init__(self) -> None:
        super().__init__(3, 8, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.weight, None, self.stride, self.padding)


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


def conv(inputs: int, outputs: int, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)


def hooked() -> nn.Module:
    norm = nn.BatchNorm2d(8)
    norm.register_forward_hook(lambda module, inputs, output: functional.relu(output))
    return norm


def normed(first: nn.Module, norm: nn.Module) -> Net:
    return Net(lambda net, x: net.last(net.norm(net.first(x))), first=first, norm=norm, last=conv(8, 4))


def between(operation: Callable[[Tensor], Tensor]) -> Net:
    return Net(lambda net, x: net.last(operation(net.first(x))), first=conv(3, 8), last=conv(8, 4))


def added(add: Callable[[Tensor, Tensor], Tensor]) -> Net:
    two = {"first": conv(3, 8), "second": conv(3, 8), "last": conv(8, 4)}
    return Net(lambda net, x: net.last(add(net.first(x), net.second(x))), **two)


def squeezed(net: Any, x: Tensor) -> Tensor:
    y = net.first(x)
    out: Tensor = net.last(y + net.gate(functional.adaptive_avg_pool2d(y, 1)))
    return out


MODELS: dict[str, Callable[[], Net]] = {
    "a norm that does more": lambda: normed(conv(3, 8), NormThenRelu(8)),
    "a hook on a norm": lambda: normed(conv(3, 8), hooked()),
    "a bias that nobody reads": lambda: normed(IgnoresItsBias(3, 8, 3, padding=1), nn.BatchNorm2d(8)),
    "a bias that nobody would read": lambda: normed(ForgetsLaterBiases(), nn.BatchNorm2d(8)),
    "a layer without the attribute bias": lambda: normed(WeightAlone(), nn.BatchNorm2d(8)),
    "a norm whose weight is read elsewhere": lambda: Net(
        lambda net, x: net.last(net.norm(net.first(x))) * net.norm.weight.mean(),
        first=conv(3, 8),
        norm=nn.BatchNorm2d(8),
        last=conv(8, 4),
    ),
    "a scaled addition": lambda: added(lambda a, b: torch.add(a, b, alpha=2)),
    "a scaled addition in place": lambda: added(lambda a, b: a.add_(b, alpha=-1)),
    "an addition that broadcasts": lambda: Net(squeezed, first=conv(3, 8), gate=conv(8, 8, 1), last=conv(8, 4)),
    "the same the other way round": lambda: added(lambda a, b: a.mean(1, keepdim=True) + b),
    "a weight that is a buffer": lambda: Net(
        lambda net, x: net.last(functional.conv2d(net.first(x), net.blur, groups=8, padding=1)),
        first=conv(3, 8),
        blur=torch.ones(8, 1, 3, 3) / 9,
        last=conv(8, 4),
    ),
    "a layer that reads a parameter": lambda: Net(
        lambda net, x: net.last(net.first(x)) + net.side(net.query)[..., None, None],
        first=conv(3, 8),
        last=conv(8, 4),
        side=nn.Linear(6, 4),
        query=nn.Parameter(torch.ones(1, 6)),
    ),
    "a module named as an operator": lambda: Net(
        lambda net, x: net.last(net.add(net.first(x)) + net.second(x)),
        first=conv(3, 8),
        second=conv(3, 8),
        add=Inner(),
        last=conv(8, 4),
    ),
    "an operator named as an attribute": lambda: between(lambda y: y.to(torch.float64).to(torch.float32)),
    "an average over padding": lambda: between(lambda y: functional.avg_pool2d(y, 3, 2, 1)),
    "an average beside padding": lambda: between(lambda y: functional.avg_pool2d(y, 3, 2, 1, count_include_pad=False)),
    "an average that hangs over": lambda: between(lambda y: functional.avg_pool2d(y, 3, 2, ceil_mode=True)),
    "an average of padding that hangs over": lambda: between(
        lambda y: functional.avg_pool2d(y, 3, 2, 1, ceil_mode=True)
    ),
    "an average with a divisor": lambda: between(lambda y: functional.avg_pool2d(y, 2, divisor_override=3)),
}
FAST = {"a norm that does more", "an average over padding", "an average that hangs over"}
BATCH = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def registered() -> None:
    discover()


def made(model: nn.Module, recipe: str, batch: Tensor = BATCH) -> Compressed:
    compressed: Compressed = compress(model, recipe, example_inputs=(batch[:1],), calibration=[(batch,)])
    return compressed


def off(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
            nn.init.normal_(module.bias)
            nn.init.uniform_(module.weight, 0.5, 2)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_rounding_leaves_an_unusual_model_what_it_is(name: str) -> None:
    model = built(name)
    with torch.inference_mode():
        expected = model(BATCH)
        for recipe in ("static:w8a8", "rtn:w8"):
            error = off(made(model, recipe).model(BATCH), expected)
            assert error < ROUNDED, f"{recipe} of {name}: off by {error:.3f} of the largest output"


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in MODELS],
)
def test_a_runtime_computes_an_unusual_model(name: str, runtime: str) -> None:
    engine, model = RUNTIMES[runtime], built(name)
    if reason := engine.available():
        pytest.skip(reason)
    dense, quantized = made(model, "dense"), made(model, "static:w7a8")
    plan = quantized.quant_plan
    assert plan is not None
    with torch.inference_mode():
        expected = model(BATCH)
        simulated = simulate(plan, quantized.float_model, quantized.example_inputs, engine.rules)(BATCH)
    error = off(engine.build(dense, (BATCH[:1],)).run(BATCH), expected)
    assert error < SAME, f"{name} in float on {runtime}: off by {error:.1e} of the largest output"
    error = off(engine.build(quantized, (BATCH[:1],)).run(BATCH), simulated)
    assert error < (SAME if runtime == "onnxruntime" else ONE_CODE), f"{name} on {runtime}: off by {error:.1e}"


@pytest.mark.parametrize("change", [lambda y: y.view(-1).clamp_(0, 1), lambda y: y[:, :4].relu_()])
def test_a_hidden_change_of_what_others_read_is_refused(change: Callable[[Tensor], Tensor]) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        y = net.first(x)
        change(y)
        out: Tensor = net.last(y)
        return out

    model = Net(forward, first=conv(3, 8), last=conv(8, 4)).eval()
    with pytest.raises(ModelError, match=r"aten\.\w+_ on a view, which changes what others read"):
        made(model, "static:w8a8")
    assert off(made(model, "rtn:w8").model(BATCH), model(BATCH).detach()) < ROUNDED, "weights alone cut nothing off"


def test_a_change_of_a_copy_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    model = between(lambda y: y + y.clone().view(-1).relu_().view(y.shape)).eval()
    assert off(made(model, "static:w8a8").model(BATCH), model(BATCH).detach()) < ROUNDED
    monkeypatch.setattr(points, "ALIASES", points.ALIASES | {"aten.clone"})
    with pytest.raises(ModelError, match="on a view"):
        made(model, "static:w8a8")


def test_a_large_bias_that_is_a_buffer_has_a_code() -> None:
    x = torch.randn(8, 8)
    for bias in (torch.full((4,), 1000.0), nn.Parameter(torch.full((4,), 1000.0))):
        weight = nn.Parameter(torch.full((4, 8), 1e-7))
        model = Net(lambda net, x: functional.linear(x, net.weight, net.bias), weight=weight, bias=bias).eval()
        error = off(made(model, "static:w8a8", x).model(x), torch.full((8, 4), 1000.0))
        assert error < 1e-3, f"{type(bias).__name__}: off by {error:.1e}"


def test_mutant_that_takes_every_addition_for_a_plain_one_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lower, "is_sum", lambda node: operator(node) in points.ADDS)
    with pytest.raises(AssertionError, match="a scaled addition: off by"):
        test_rounding_leaves_an_unusual_model_what_it_is("a scaled addition")


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("overhang", [False, True])
@pytest.mark.parametrize("counts_padding", [False, True])
@pytest.mark.parametrize("divisor", [None, 5])
def test_plain_averages_are_torchs(
    dims: int, padding: int, overhang: bool, counts_padding: bool, divisor: int | None
) -> None:
    pool: Any = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[dims - 1]
    given: dict[str, Any] = {"ceil_mode": overhang, "count_include_pad": counts_padding}
    if dims > 1:
        given["divisor_override"] = divisor
    for kernel, stride, size in ((3, 2, 6), (2, 3, 7), (3, 1, 4), (2, 2, 5)):
        x = torch.randn(2, 3, *[size] * dims)
        pooling = Pooling.of([size] * dims, {"kernel_size": kernel, "stride": stride, "padding": padding, **given})
        expected, found = pool(x, kernel, stride, padding, **given), PlainAverage(pooling)(x)
        assert found.shape == expected.shape, f"{pooling}: {list(found.shape)}, should be {list(expected.shape)}"
        assert torch.allclose(found, expected, atol=1e-5), f"{pooling}: off by {(found - expected).abs().max()}"
        assert pooling.hangs_over or found.shape == pool(x, kernel, stride, padding).shape, f"{pooling} hangs over"


class Perceptron(nn.Module):
    """Linear layers, the first two of them one module, one weight, or each on its own."""

    def __init__(self, sharing: str) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 64), nn.Linear(64, 10)
        self.second = self.first if sharing == "module" else nn.Linear(64, 64)
        if sharing == "weight":
            self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.relu(self.second(torch.relu(self.first(x)))))
        return out


@pytest.mark.parametrize("shape", [(8, 64), (8, 5, 64)])
@pytest.mark.parametrize(("sharing", "packed"), [("nothing", 3), ("module", 1), ("weight", 1)])
def test_weights_alone_have_the_kernels_that_their_simulation_says(
    sharing: str, packed: int, shape: tuple[int, ...]
) -> None:
    engine = RUNTIMES["onnxruntime"]
    if reason := engine.available():
        pytest.skip(reason)
    torch.manual_seed(0)
    x, model = torch.randn(shape), Perceptron(sharing).eval()
    quantized = made(model, "rtn:w4", x)
    session = engine.build(quantized, (x[:1],))
    ran = [kernel.operator for kernel in session.kernels].count("MatMulNBits")
    assert ran == packed, f"{ran} layers read packed codes, should be {packed}: {session.kernels}"
    assert quantized.quant_plan is not None
    with torch.inference_mode():
        expected = simulate(quantized.quant_plan, model, (x[:1],), engine.rules)(x)
    assert off(session.run(x), expected) < SAME, f"off by {off(session.run(x), expected):.1e}"


def test_blocks_of_next_to_nothing_are_rounded_to_nothing() -> None:
    x = torch.tensor([1e-41, 0.0, 127.0, 0.6])
    assert round_blocks(x, 2).tolist() == [0.0, 0.0, 127.0, 1.0], f"{round_blocks(x, 2)}"
