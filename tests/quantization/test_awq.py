"""AWQ: the function stays, factors follow the activations, of all exponents the one of least error is taken."""

from collections.abc import Callable
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
from pruning_bench.quantization.affine import fake_quantize
from pruning_bench.quantization.methods import awq
from pruning_bench.quantization.methods.awq import GRID, Awq, mean_inputs, rounding_error
from pruning_bench.quantization.plans import choose_weight

FEW = settings(max_examples=10, deadline=None)
CHANNELS, BITS = 8, 3
READERS = ("q.weight", "k.weight")


class Gate(nn.Module):
    """A layer norm, one of whose channels is large, that two layers read."""

    def __init__(self, seed: int, channel: int, size: float) -> None:
        super().__init__()
        self.norm, self.q, self.k = nn.LayerNorm(CHANNELS), nn.Linear(CHANNELS, 16), nn.Linear(CHANNELS, 16)
        randomise(self, torch.Generator().manual_seed(seed))
        with torch.no_grad():
            self.norm.weight[channel] *= size

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        gated: Tensor = self.q(y) * self.k(y).sigmoid()
        return gated


def made(seed: int, channel: int, size: float, group: int) -> tuple[Gate, Tensor, dict[str, Tensor]]:
    """A model, tokens and what the method writes."""
    model, x = (
        Gate(seed, channel, size).eval(),
        torch.randn(24, 5, CHANNELS, generator=torch.Generator().manual_seed(seed)),
    )
    context = Context((x[:2],), torch.Generator().manual_seed(0), [(x[:16],), (x[16:],)])
    return model, x, dict(Awq(group=group).plan(model, f"w{BITS}", context).writes)


def keeps_the_function(seed: int, channel: int, size: float, group: int) -> None:
    model, x, writes = made(seed, channel, size, group)
    with torch.no_grad():
        expected = model(x)
        found = torch.func.functional_call(model, writes, (x,))
        off = float((found - expected).abs().max() / expected.abs().max())
    assert off < 1e-4, f"the float model's outputs change by {off}, should stay"
    assert writes.keys() == {"norm.weight", "norm.bias", *READERS}, f"writes {list(writes)}"


def error(model: Gate, x: Tensor, factors: Tensor, group: int) -> float:
    """||Q(W s) x / s - W x||^2 over both readers and all tokens."""
    total = 0.0
    with torch.no_grad():
        y = model.norm(x).flatten(0, 1).double()
        for name in READERS:
            weight = model.get_parameter(name)
            wide = weight * factors
            grid = choose_weight(wide, BITS, "per_group" if group else "per_channel", group or None)
            total += float(
                ((y / factors) @ fake_quantize(wide, grid).double().T - y @ weight.double().T).square().sum()
            )
    return total


def powers(model: Gate, x: Tensor) -> list[Tensor]:
    """The factors of every exponent that the paper's rule tries."""
    means = model.norm(x).detach().abs().mean((0, 1))
    tried = [means ** (step / GRID) for step in range(GRID)]
    return [factors / (factors.max() * factors.min()).sqrt() for factors in tried]


def takes_the_best_exponent(seed: int, channel: int, size: float, group: int) -> None:
    model, x, writes = made(seed, channel, size, group)
    factors = model.norm.weight.detach() / writes["norm.weight"]
    tried = powers(model, x)
    off = min(float((factors / other - 1).abs().max()) for other in tried)
    assert off < 1e-3, f"factors {factors.tolist()}, should be a power of the mean activations: {off} off"
    found, least = error(model, x, factors, group), min(error(model, x, other, group) for other in tried)
    assert found <= 1.001 * least, f"error {found}, should be {least}, the least of all exponents"


def rounds_better(seed: int, channel: int, size: float, group: int) -> None:
    model, x, writes = made(seed, channel, size, group)
    factors = model.norm.weight.detach() / writes["norm.weight"]
    found, plain = error(model, x, factors, group), error(model, x, torch.ones(CHANNELS), group)
    assert found < 0.9 * plain, f"error {found}, should be below {plain}, that of rounding to nearest"


SEEDS, AT, GROUPS = st.integers(0, 999), st.integers(0, CHANNELS - 1), st.sampled_from([0, 4])


@FEW
@given(SEEDS, AT, st.floats(1, 100), GROUPS)
def test_the_float_model_stays(seed: int, channel: int, size: float, group: int) -> None:
    keeps_the_function(seed, channel, size, group)


@FEW
@given(SEEDS, AT, st.floats(1, 100), GROUPS)
def test_of_all_exponents_the_best_is_taken(seed: int, channel: int, size: float, group: int) -> None:
    takes_the_best_exponent(seed, channel, size, group)


@FEW
@given(SEEDS, AT, st.floats(10, 100), GROUPS)
def test_weights_that_meet_a_large_channel_round_better(seed: int, channel: int, size: float, group: int) -> None:
    rounds_better(seed, channel, size, group)


def where_it_writes(scale: Callable[..., dict[str, Tensor]]) -> tuple[str, Callable[..., dict[str, Tensor]]]:
    """Another `scale` for what the method writes; where it searches, the right one."""
    return "scale", lambda now, seam, factors: (scale if seam.weight else seams.scale)(now, seam, factors)


def scale_of(**other: Any) -> tuple[str, Callable[..., dict[str, Tensor]]]:
    """`scale` for a seam of which some is another."""
    return where_it_writes(lambda now, seam, factors: seams.scale(now, replace(seam, **other), factors))


DOWN = where_it_writes(lambda now, seam, factors: seams.scale(now, seam, 1 / factors))
Mutant = tuple[str, Callable[..., Any]]  # a name in the module, and what stands there instead
MUTANTS: list[tuple[str, Callable[..., None], Mutant, str]] = [
    ("no reader makes up", keeps_the_function, scale_of(readers={}), "outputs change by"),
    ("one reader makes up", keeps_the_function, scale_of(readers={"q.weight": 1}), "outputs change by"),
    ("bias forgotten", keeps_the_function, scale_of(bias=None), "outputs change by"),
    (
        "means of weights",
        takes_the_best_exponent,
        ("mean_inputs", lambda layer: layer.weight.abs().mean(0)[None]),
        "should be a power of the mean activations",
    ),
    (
        "means of squares",
        takes_the_best_exponent,
        ("mean_inputs", lambda layer: mean_inputs(replace(layer, watch=lambda see: layer.watch(lambda x: see(x * x))))),
        "should be a power of the mean activations",
    ),
    ("scaled down", takes_the_best_exponent, DOWN, "should be a power of the mean activations"),
    ("the worst", takes_the_best_exponent, ("rounding_error", lambda *given: -rounding_error(*given)), "the least of"),
    (
        "the smallest factors",
        rounds_better,
        ("rounding_error", lambda seam, reads, factors, *_: float(factors.max())),
        "of rounding to nearest",
    ),
    ("weights scaled down", rounds_better, DOWN, "of rounding to nearest"),
]


@pytest.mark.parametrize(("name", "law", "mutant", "message"), MUTANTS, ids=[case[0] for case in MUTANTS])
def test_the_laws_reject_their_mutants(
    name: str, law: Callable[..., None], mutant: Mutant, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    law(3, 2, 50.0, 4)
    monkeypatch.setattr(awq, *mutant)
    with pytest.raises(AssertionError, match=message):
        law(3, 2, 50.0, 4)
