"""SmoothQuant: the function stays, activations and weights share the difficulty by alpha, activations round better."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pruning_bench.conformance.quantization_checks import randomise
from pruning_bench.contracts import Context
from pruning_bench.quantization import seams
from pruning_bench.quantization.layerwise import decide_layers
from pruning_bench.quantization.methods import smoothquant
from pruning_bench.quantization.methods.smoothquant import SmoothQuant, smoothing
from pruning_bench.quantization.methods.static import Static
from pruning_bench.quantization.simulation import simulate

FEW = settings(max_examples=10, deadline=None)
CHANNELS = 8


class Gate(nn.Module):
    """A layer norm that two layers read; one of its channels is large and the weights that read it are small."""

    def __init__(self, seed: int, channel: int, size: float) -> None:
        super().__init__()
        self.norm, self.q, self.k = nn.LayerNorm(CHANNELS), nn.Linear(CHANNELS, 6), nn.Linear(CHANNELS, 6)
        self.head = nn.Linear(6, 3)
        randomise(self, torch.Generator().manual_seed(seed))
        with torch.no_grad():
            self.norm.weight[channel] *= size
            for reader in (self.q, self.k):
                reader.weight[:, channel] /= size

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        logits: Tensor = self.head((self.q(y) * self.k(y).sigmoid()).mean(1))
        return logits


def tokens(seed: int) -> Tensor:
    return torch.randn(24, 5, CHANNELS, generator=torch.Generator().manual_seed(seed))


def context(x: Tensor) -> Context:
    return Context((x[:2],), torch.Generator().manual_seed(0), [(x[:16],), (x[16:],)])


def peaks(model: Gate, x: Tensor, writes: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Largest |value| of every channel over the tokens, and largest |weight| that reads it."""
    now = {name: p.detach() for name, p in model.named_parameters()} | dict(writes)
    y = nn.functional.layer_norm(x, (CHANNELS,), now["norm.weight"], now["norm.bias"])
    return y.abs().amax((0, 1)), torch.cat([now["q.weight"], now["k.weight"]]).abs().amax(0)


def keeps_the_function(seed: int, channel: int, size: float, alpha: float) -> None:
    model, x = Gate(seed, channel, size).eval(), tokens(seed + 1)
    plan = SmoothQuant(alpha).plan(model, "w8a8", context(x))
    with torch.no_grad():
        expected = model(x)
        found = torch.func.functional_call(model, dict(plan.writes), (x,))
        off = float((found - expected).abs().max() / expected.abs().max())
    assert off < 1e-4, f"the float model's outputs change by {off}, should stay"
    assert plan.writes.keys() == {"norm.weight", "norm.bias", "q.weight", "k.weight"}, f"writes {list(plan.writes)}"


def shares_the_difficulty(seed: int, channel: int, size: float, alpha: float) -> None:
    """max|X'|^alpha = max|W'|^(1 - alpha): both are (max|X| max|W|)^(alpha (1 - alpha))."""
    model, x = Gate(seed, channel, size).eval(), tokens(seed + 1)
    inputs, weights = peaks(model, x, SmoothQuant(alpha).plan(model, "w8a8", context(x)).writes)
    torch.testing.assert_close(
        inputs.pow(alpha), weights.pow(1 - alpha), rtol=1e-3, atol=0, msg=lambda text: f"alpha {alpha}: {text}"
    )


def noise_of(method: Any, model: nn.Module, x: Tensor) -> float:
    """Mean square of what quantization changes in the output."""
    with torch.no_grad():
        made = simulate(method.plan(model, "w8a8", context(x)), model, (x[:2],))(x)
        return float((made - model(x)).square().mean())


def rounds_better(seed: int, channel: int, size: float, alpha: float) -> None:
    model, x = Gate(seed, channel, size).eval(), tokens(seed + 1)
    found, plain = noise_of(SmoothQuant(alpha), model, x), noise_of(Static(), model, x)
    assert found < plain / 3, f"noise {found}, should be far below {plain} without smoothing"


ALPHAS = st.sampled_from([0.0, 0.25, 0.5, 0.8, 1.0])


@FEW
@given(st.integers(0, 999), st.integers(0, CHANNELS - 1), st.floats(1, 100), ALPHAS)
def test_the_float_model_stays(seed: int, channel: int, size: float, alpha: float) -> None:
    keeps_the_function(seed, channel, size, alpha)


@FEW
@given(st.integers(0, 999), st.integers(0, CHANNELS - 1), st.floats(1, 100), ALPHAS)
def test_activations_and_weights_share_the_difficulty(seed: int, channel: int, size: float, alpha: float) -> None:
    shares_the_difficulty(seed, channel, size, alpha)


@FEW
@given(st.integers(0, 999), st.integers(0, CHANNELS - 1), st.floats(30, 100))
def test_a_large_channel_costs_the_others_less(seed: int, channel: int, size: float) -> None:
    rounds_better(seed, channel, size, 0.5)


def scale_of(**other: Any) -> Callable[..., dict[str, Tensor]]:
    """`scale` for a seam of which some is another."""
    return lambda parameters, seam, factors: seams.scale(parameters, replace(seam, **other), factors)


Mutant = tuple[str, Callable[..., Any]]  # a name in the module, and what stands there instead
MUTANTS: list[tuple[str, Callable[..., None], Mutant, str]] = [
    ("no reader makes up", keeps_the_function, ("scale", scale_of(readers={})), "outputs change by"),
    ("one reader makes up", keeps_the_function, ("scale", scale_of(readers={"q.weight": 1})), "outputs change by"),
    ("bias forgotten", keeps_the_function, ("scale", scale_of(bias=None)), "outputs change by"),
    ("alpha inverted", shares_the_difficulty, ("smoothing", lambda x, w, a: smoothing(x, w, 1 - a)), "alpha 0.8"),
    ("moved the other way", shares_the_difficulty, ("smoothing", lambda *given: 1 / smoothing(*given)), "alpha 0.8"),
    (
        "the last batch alone",
        shares_the_difficulty,
        ("decide_layers", lambda prepared, batches, *rest: decide_layers(prepared, batches[-1:], *rest)),
        "alpha 0.8",
    ),
    ("nothing moved", rounds_better, ("smoothing", lambda x, *_: torch.ones_like(x)), "should be far below"),
    ("the wrong way", rounds_better, ("smoothing", lambda *given: 1 / smoothing(*given)), "should be far below"),
]


@pytest.mark.parametrize(("name", "law", "mutant", "message"), MUTANTS, ids=[case[0] for case in MUTANTS])
def test_the_laws_reject_their_mutants(
    name: str, law: Callable[..., None], mutant: Mutant, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    law(3, 2, 50.0, 0.8)
    monkeypatch.setattr(smoothquant, *mutant)
    with pytest.raises(AssertionError, match=message):
        law(3, 2, 50.0, 0.8)
