"""What openvino makes of additions, layer norms and shared constants is what the rules of its simulation say."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pruning_bench import compress
from pruning_bench.engine import Compressed
from pruning_bench.measuring import kernel_detail
from pruning_bench.quantization.lower import Rule
from pruning_bench.quantization.simulation import simulate
from pruning_bench.runtimes import openvino
from pruning_bench.runtimes.kernels import multiplies
from pruning_bench.runtimes.openvino import OpenVino

SAME = 1e-4  # of the largest output
FEW, MANY = 0.035, 0.06  # of the outputs: one code at a tie in front of the last convolution moves 72 of 2,304
RECIPE = "static:w7a8"  # whose sums no processor clips
EPSILON = 3000.0  # in units of codes some 0.1; without the rule no output would be like the simulation's

pytestmark = pytest.mark.skipif(OpenVino().available() is not None, reason=str(OpenVino().available()))


class Parts(nn.Module):
    """Layers of one kind, and what a test makes of them."""

    def __init__(self, layer: Callable[[], nn.Module], norm: nn.Module, forward: Callable[..., Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = layer(), layer(), layer(), layer()
        self.n, self.m = norm, nn.LayerNorm(16, eps=EPSILON)
        self.places, self.words = nn.Parameter(torch.randn(5, 16)), nn.Embedding(5, 16)
        self.made = forward

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.made(self, x))
        return y


def images() -> tuple[Callable[[], nn.Module], tuple[int, ...]]:
    return lambda: nn.Conv2d(8, 8, 3, padding=1), (8, 8, 6, 6)


def tokens() -> tuple[Callable[[], nn.Module], tuple[int, ...]]:
    return lambda: nn.Linear(16, 16), (8, 5, 16)


def made_of(kind: Callable[[], tuple[Callable[[], nn.Module], tuple[int, ...]]], forward: Callable[..., Tensor]):
    layer, shape = kind()
    torch.manual_seed(1)
    model, x = Parts(layer, nn.LayerNorm(16, eps=EPSILON), forward).eval(), torch.randn(shape)
    return compress(model, RECIPE, example_inputs=(x[:1],), calibration=[(x,)]), x


def differing(compressed: Compressed, x: Tensor, rules: frozenset[Rule] = OpenVino.rules) -> float:
    """The share of the outputs that are not the simulation's."""
    found = OpenVino().build(compressed, (x,)).run(x)
    assert compressed.quant_plan is not None
    with torch.inference_mode():
        expected = simulate(compressed.quant_plan, compressed.float_model, (x[:2],), rules)(x)
    return float(((found - expected).abs() > SAME * expected.abs().max()).float().mean())


def pooled(x: Tensor) -> Tensor:
    return functional.max_pool2d(x, 3, 1, 1)


def read_later(s: Parts, x: Tensor) -> Tensor:
    z = torch.relu(s.b(x))
    return s.a(torch.relu(s.c(z))) + z + z


def spread(s: Parts, x: Tensor) -> Tensor:
    return s.a(x) + functional.adaptive_avg_pool2d(x, 1)


SUMMED = {
    "another's output": lambda s, x: s.a(torch.relu(s.b(x))) + x,
    "of two the first": lambda s, x: s.b(x) + s.a(x),
    "the second, where the first is none": lambda s, x: pooled(x) + s.a(x),
    "behind a clamp": lambda s, x: torch.relu(s.a(x)) + s.b(x),
    "three": lambda s, x: s.a(x) + s.b(x) + s.c(x),
}
ALONE = {
    "the convolution reads the other operand": (images, lambda s, x: s.a(x) + x),
    "the other operand is read later": (images, read_later),
    "one place for all": (images, spread),
    "linear layers": (tokens, lambda s, x: s.a(x) + s.b(x)),
    "a linear layer and its input": (tokens, lambda s, x: x + s.a(x)),
}


@pytest.mark.parametrize("name", SUMMED)
def test_convolutions_take_the_addition_behind_them(name: str) -> None:
    case = made_of(images, SUMMED[name])
    assert differing(*case) < FEW, "other codes than the simulation's"
    assert differing(*case, OpenVino.rules - {Rule.SUMS_IN_LAYERS}) > MANY, "mutant: rounded before the addition"


@pytest.mark.parametrize("name", ALONE)
def test_other_additions_have_kernels_of_their_own(name: str) -> None:
    assert differing(*made_of(*ALONE[name])) < FEW, "other codes than the simulation's"


def chain(s: Parts, x: Tensor) -> Tensor:
    x = x + s.a(s.m(x))
    return s.n(x + s.b(s.m(x)))


IN_CODES = {
    "a float and codes": lambda s, x: s.n(torch.tanh(x) + s.a(x)),
    "codes that others read": lambda s, x: s.n(x + s.a(x)),
    "of two the second": lambda s, x: s.n(s.a(x) + s.b(x)),
    "of two that others read the second": lambda s, x: s.n((z := s.b(y := s.a(x))) + y) + s.c(z),
    "one after the other": chain,
    "codes without a zero point": lambda s, x: s.n(torch.relu(s.a(x))),
}
IN_UNITS = {
    "codes and a parameter": lambda s, x: s.n(s.a(x) + s.places),
    "codes without a zero point and a parameter": lambda s, x: s.n(s.places + torch.relu(s.a(x))),
    "codes and what is computed of parameters": lambda s, x: s.n(s.a(x) + s.words(torch.arange(5))),
    "codes and a parameter, and codes": lambda s, x: s.n((x + s.places) + s.a(x)),
    "a sum and a parameter": lambda s, x: s.n(s.a(x) + x + s.places),
    "codes with a zero point": lambda s, x: s.n(s.a(x)),
    "a sum that is a code": lambda s, x: (y := x + s.a(x)) + s.b(s.n(y)),
}


@pytest.mark.parametrize("name", IN_CODES)
def test_layer_norms_add_epsilon_in_units_of_the_codes(name: str) -> None:
    case = made_of(tokens, IN_CODES[name])
    assert differing(*case) < FEW, "other codes than the simulation's"
    assert differing(*case, OpenVino.rules - {Rule.EPSILON_OF_CODES}) > 0.5, "mutant: epsilon as it is given"


@pytest.mark.parametrize("name", IN_UNITS)
def test_other_layer_norms_add_it_as_it_is(name: str) -> None:
    assert differing(*made_of(tokens, IN_UNITS[name])) < FEW, "other codes than the simulation's"


class Patches(nn.Module):
    """A transformer on patches: attention and a layer as wide as the convolution that makes the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.attention = nn.Conv2d(1, 16, 4, 4), nn.MultiheadAttention(16, 2, batch_first=True)
        self.norm, self.wide, self.narrow, self.head = (
            nn.LayerNorm(16),
            nn.Linear(16, 32),
            nn.Linear(32, 16),
            tokens()[0](),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.patches(x).flatten(2).transpose(1, 2)
        z = self.norm(y)
        y = y + self.attention(z, z, z, need_weights=False)[0]
        return self.head(y + self.narrow(functional.gelu(self.wide(self.norm(y)))))


PROJECTIONS = {"attention.in_proj_weight", "attention.out_proj"}


@pytest.fixture(scope="module")
def patches() -> tuple[Compressed, Tensor]:
    torch.manual_seed(0)
    model, x = Patches().eval(), torch.randn(8, 1, 16, 16)
    return compress(model, RECIPE, example_inputs=(x[:1],), calibration=[(x,)]), x


def test_all_layers_run_on_codes_attention_too(patches: tuple[Compressed, Tensor]) -> None:
    compressed, x = patches
    kernels = OpenVino().build(compressed, (x[:1],)).kernels
    detail = kernel_detail(kernels, compressed.quant_plan)
    assert (detail["quantized_layers"], detail["float_fallbacks"]) == (6, []), f"{detail}"
    ran = {kernel.layer for kernel in kernels if multiplies(kernel.operator) and kernel.dtype == "int8"}
    assert ran == PROJECTIONS | {"patches", "wide", "narrow", "head"}, f"{sorted(ran)}"


def test_mutant_zero_points_of_zero_leave_layers_in_float(
    patches: tuple[Compressed, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which layers share the constant of the convolution is openvino's choice; each that does is named."""
    compressed, x = patches
    monkeypatch.setattr(openvino, "without_zero_points", lambda content: content)
    detail = kernel_detail(OpenVino().build(compressed, (x[:1],)).kernels, compressed.quant_plan)
    named = {text.split(" ")[0] for text in detail["float_fallbacks"]}
    assert named >= {"attention.out_proj", "narrow"}, f"{named}"
