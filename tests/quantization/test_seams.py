"""Methods that scale channels across seams: the float model stays, ranges become equal, errors become less."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruning_bench.conformance.quantization_checks import ExampleNet, checks_for_quantization, example, randomise
from pruning_bench.contracts import Context
from pruning_bench.errors import LevelError
from pruning_bench.quantization import seams
from pruning_bench.quantization.affine import fake_quantize
from pruning_bench.quantization.equalization import equalize
from pruning_bench.quantization.fold import fold_batch_norms
from pruning_bench.quantization.methods.awq import Awq
from pruning_bench.quantization.methods.bias_correction import BiasCorrection
from pruning_bench.quantization.methods.cross_layer_equalization import CrossLayerEqualization
from pruning_bench.quantization.methods.smoothquant import SmoothQuant
from pruning_bench.quantization.methods.static import Static
from pruning_bench.quantization.plans import choose_weight, prepare, write
from pruning_bench.quantization.seams import find_seams, input_peaks
from pruning_bench.quantization.simulation import simulate


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Chain(nn.Module):
    """Convolutions with a depthwise one and one in groups, pooling and flatten between; a ReLU6 keeps two apart."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 1, groups=2)
        self.d, self.e, self.f = nn.Linear(32, 6), nn.Linear(6, 4), nn.Linear(4, 2)
        randomise(self, torch.Generator().manual_seed(0))
        with torch.no_grad():
            self.a.weight.mul_(torch.logspace(-1.5, 1.5, 8).view(-1, 1, 1, 1))
            self.a.weight[0] = 0

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x).relu()).relu()
        x = nn.functional.max_pool2d(self.c(x), 2).flatten(1)
        return self.f(nn.functional.relu6(self.e(self.d(x).relu())))


class Encoder(nn.Module):
    """A block as in a transformer; the norm's output of a few channels is large."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.q, self.k = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.up, self.down, self.last = nn.Linear(8, 16), nn.Linear(16, 8), nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)
        randomise(self, torch.Generator().manual_seed(0))
        with torch.no_grad():
            self.norm.weight[2] = 40.0
            self.q.weight[:, 2] *= 0.05
            self.k.weight[:, 2] *= 0.05

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x).transpose(0, 1)
        x = x + (self.q(y) * self.k(y).sigmoid()).transpose(0, 1)
        z = self.last(x)
        return self.head((self.down(torch.nn.functional.gelu(self.up(z))) + z).mean(1))


IMAGES, TOKENS = noise(24, 3, 9, 9), noise(24, 5, 8, seed=1)
CHAIN = Context((IMAGES[:2],), torch.Generator(), [(IMAGES[:16],), (IMAGES[16:],)])
ENCODER = Context((TOKENS[:2],), torch.Generator(), [(TOKENS,)])


def test_seams_are_found_where_channels_stay_apart() -> None:
    found = {seam.weight: (seam.is_norm, dict(seam.readers)) for seam in find_seams(prepare(Chain(), CHAIN, "test"))}
    expected: dict[str, Any] = {
        "a.weight": (False, {"b.weight": 1}),
        "b.weight": (False, {"c.weight": 1}),
        "c.weight": (False, {"d.weight": 4}),
        "d.weight": (False, {"e.weight": 1}),
    }
    assert found == expected, f"{found}"
    encoder = {seam.weight: (seam.is_norm, dict(seam.readers)) for seam in find_seams(prepare(Encoder(), ENCODER, "t"))}
    assert encoder == {"norm.weight": (True, {"q.weight": 1, "k.weight": 1})}, f"{encoder}"  # last is added to as well


def float_is_unchanged(model: nn.Module, context: Context, writes: dict[str, Tensor]) -> None:
    folded = fold_batch_norms(model, context.example_inputs)
    (x,) = context.need_calibration("test")[0]
    with torch.no_grad():
        expected = folded(x)
        for name, values in writes.items():
            folded.get_parameter(name).copy_(values)
        off = float((folded(x) - expected).abs().max() / expected.abs().max())
    assert off < 1e-4, f"the float model's outputs change by {off}, should stay"


def ranges(model: nn.Module, writes: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Largest |weight| that makes, and that reads, each channel."""
    now = dict(model.named_parameters()) | writes
    return [
        (now[first].detach().flatten(1).abs().amax(1), input_peaks(now[second].detach(), len(now[first]), repeats))
        for first, second, repeats in (
            ("a.weight", "b.weight", 1),
            ("b.weight", "c.weight", 1),
            ("c.weight", "d.weight", 4),
        )
    ]


def test_equalization_keeps_the_function_and_makes_ranges_equal() -> None:
    model = Chain().eval()
    writes = equalize(prepare(model, CHAIN, "test"))
    float_is_unchanged(model, CHAIN, writes)
    for made, read in ranges(model, writes):
        alive = (made > 0) & (read > 0)
        torch.testing.assert_close(made[alive], read[alive], rtol=1e-2, atol=0)
    before = max(float(made.max() / made[made > 0].min()) for made, _ in ranges(model, {}))
    assert before > 100, f"ranges were equal to a factor of {before} before: the test is empty"
    assert not writes["a.weight"][0].count_nonzero(), "a channel without weights got some"


def test_scaling_one_side_alone_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = seams.scale

    def forgets_the_bias(parameters: Any, seam: Any, factors: Tensor) -> dict[str, Tensor]:
        return whole(parameters, replace(seam, bias=None), factors)

    monkeypatch.setattr("pruning_bench.quantization.equalization.scale", forgets_the_bias)
    with pytest.raises(AssertionError, match="outputs change by"):
        float_is_unchanged(Chain(), CHAIN, equalize(prepare(Chain(), CHAIN, "test")))


def noise_of(method: Any, model: nn.Module, level: str, context: Context) -> float:
    """Mean square of what quantization changes in the output."""
    (x,) = context.need_calibration("test")[0]
    with torch.no_grad():
        made = simulate(method.plan(model, level, context), model, context.example_inputs)(x)
        return float((made - model(x)).square().mean())


def test_equalization_helps_scales_per_tensor() -> None:
    model = Chain().eval()
    found, plain = (
        noise_of(m, model, "w8a8", CHAIN) for m in (CrossLayerEqualization(), Static(granularity="per_tensor"))
    )
    assert found < plain / 3, f"noise {found}, should be far below {plain} without equalization"


def test_smoothquant_keeps_the_function_and_helps_activations() -> None:
    model = Encoder().eval()
    plan = SmoothQuant().plan(model, "w8a8", ENCODER)
    assert plan.writes.keys() == {"norm.weight", "norm.bias", "q.weight", "k.weight"}, f"writes {list(plan.writes)}"
    float_is_unchanged(model, ENCODER, dict(plan.writes))
    found, plain = (noise_of(m, model, "w8a6", ENCODER) for m in (SmoothQuant(), Static()))
    assert found < plain, f"noise {found}, should be below {plain} without smoothing"
    factors = model.norm.weight.detach() / plan.writes["norm.weight"]
    assert int(factors.argmax()) == 2, f"factors {factors.tolist()}, should be largest for the large channel"


@pytest.mark.parametrize("group", [0, 4])
def test_awq_keeps_the_function_and_rounds_better(group: int) -> None:
    model = Encoder().eval()
    plan = Awq(group=group).plan(model, "w3", ENCODER)
    float_is_unchanged(model, ENCODER, dict(plan.writes))
    parameters = dict(model.named_parameters())
    y = model.norm(TOKENS).flatten(0, 1).detach()

    def error(writes: dict[str, Tensor]) -> float:
        now = {name: writes.get(name, p.detach()) for name, p in parameters.items()}
        total = 0.0
        for name in ("q.weight", "k.weight"):
            grid = choose_weight(now[name], 3, "per_group" if group else "per_channel", group or None)
            x = y * now["norm.weight"] / parameters["norm.weight"].detach()
            total += float((x @ fake_quantize(now[name], grid).T - y @ parameters[name].detach().T).square().sum())
        return total

    found, plain = error(dict(plan.writes)), error({})
    assert found < 0.9 * plain, f"error {found}, should be below {plain}, that of rounding to nearest"


def test_without_a_seam_awq_and_smoothquant_leave_weights_alone() -> None:
    model, x = nn.Sequential(nn.Linear(8, 3)), noise(4, 8)
    context = Context((x,), torch.Generator(), [(x,)])
    assert not Awq().plan(model, "w4", context).writes, "there is nothing to scale"
    assert not SmoothQuant().plan(model, "w8a8", context).writes, "there is nothing to scale"


def channel_means(method: Any, level: str = "w3") -> tuple[Tensor, Tensor]:
    """Mean of every output of the simulation, and of the float model."""
    model, _, context = example(BiasCorrection())
    x = torch.cat([batch[0] for batch in context.need_calibration("test")])
    with torch.no_grad():
        return simulate(method.plan(model, level, context), model, context.example_inputs)(x).mean(0), model(x).mean(0)


def test_bias_correction_gives_outputs_the_mean_of_float() -> None:
    found, expected = channel_means(BiasCorrection())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    plain, _ = channel_means(CrossLayerEqualization(granularity="per_channel"))
    assert float((plain - expected).abs().max()) > 1e-2, "means are right without correction: the test is empty"


def test_bias_correction_writes_biases_alone_unless_it_equalizes() -> None:
    model, level, context = example(BiasCorrection())
    assert {name.rpartition(".")[2] for name in BiasCorrection().plan(model, level, context).writes} == {"bias"}
    chain = BiasCorrection(equalize=True).plan(Chain(), "w8a8", CHAIN)
    assert chain.writes.keys() >= {"a.weight", "a.bias", "f.bias"}, f"writes {list(chain.writes)}"


METHODS = [
    SmoothQuant(),
    Awq(),
    *(pytest.param(m, marks=pytest.mark.slow) for m in (CrossLayerEqualization(), BiasCorrection())),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_methods_hold_every_law(method: Any) -> None:
    for _, check in checks_for_quantization(method):
        check(method)


@pytest.mark.parametrize(
    ("method", "level", "message"),
    [
        (SmoothQuant(), "w8", "level w8 without activations, should be bits of both"),
        (Awq(), "w4a8", "level w4a8, should be weights alone, such as w4"),
        (BiasCorrection(), "w9a8", "9 bits"),
    ],
)
def test_levels_out_of_range_are_refused(method: Any, level: str, message: str) -> None:
    with pytest.raises(LevelError, match=f"^{method.name}: {message}"):
        method.plan(ExampleNet(), level, example(method)[2])


def test_what_is_written_reaches_the_graph() -> None:
    prepared = prepare(ExampleNet(), example(BiasCorrection())[2], "test")
    write(prepared, {"hidden.bias": torch.full((16,), 3.0)})
    assert float(prepared.program.state_dict["hidden.bias"].detach().sum()) == 48, "the graph reads other values"


@pytest.mark.parametrize("pool", [nn.MaxPool1d(2), nn.AvgPool1d(2), nn.AdaptiveAvgPool1d(8)])
def test_a_pool_over_the_channels_themselves_ends_a_seam(pool: nn.Module) -> None:
    """Behind a linear layer the last dimension holds the channels."""
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), pool, nn.Linear(8, 4))
    context = Context((noise(1, 8),), torch.Generator(), [(noise(4, 8),)])
    prepared = prepare(model, context, "test")
    assert not find_seams(prepared), f"{find_seams(prepared)}, the pool mixes channels"
    float_is_unchanged(model, context, equalize(prepared))


def test_the_mutant_that_lets_every_pool_through_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seams, "POOLINGS", frozenset())
    monkeypatch.setattr(seams, "KEEPS", seams.KEEPS | {"aten.max_pool1d"})
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.MaxPool1d(2), nn.Linear(8, 4))
    context = Context((noise(1, 8),), torch.Generator(), [(noise(4, 8),)])
    with pytest.raises(AssertionError, match="outputs change by"):
        float_is_unchanged(model, context, equalize(prepare(model, context, "test")))
