"""AdaRound: reconstructs outputs better than rounding to nearest, up or down alone, zeros stay, bounded sample."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruning_bench.conformance.quantization_checks import ExampleNet, checks_for_quantization, example
from pruning_bench.contracts import Context
from pruning_bench.errors import LevelError, ModelError
from pruning_bench.quantization.affine import fake_quantize, quantize
from pruning_bench.quantization.layerwise import Layer
from pruning_bench.quantization.methods import adaround
from pruning_bench.quantization.methods.adaround import AdaRound, Sample, learn, reconstruction_error, sample_layer
from pruning_bench.quantization.plans import choose_weight

QUICK = AdaRound(iterations=20, batch=16)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layer_of(weight: Tensor, changed: list[Tensor], floats: list[Tensor], top: float | None = math.inf) -> Layer:
    def shows(parts: list[Tensor]) -> Callable[[Callable[[Tensor], None]], None]:
        return lambda see: [see(part) for part in parts] and None

    bias = noise(len(weight), seed=9) * 0.1
    return Layer("w.weight", weight, bias, "w.bias", top, (), shows(changed), shows(floats))


def correlated(count: int, columns: int, seed: int) -> Tensor:
    return noise(count, 3, seed=seed) @ noise(3, columns, seed=seed + 1) + 0.2 * noise(count, columns, seed=seed + 2)


def learned(layer: Layer, bits: int, iterations: int = 200) -> tuple[Tensor, Tensor, Sample]:
    affine, generator = choose_weight(layer.weight, bits, "per_channel"), torch.Generator().manual_seed(0)
    sample = sample_layer(layer, generator)
    values = learn(layer, sample, affine, iterations, 32, generator, lambda _: None)
    return values, fake_quantize(layer.weight, affine), sample


@pytest.mark.parametrize("top", [math.inf, 0.5, None])
def test_outputs_end_where_the_layer_behind_clamps_them(top: float | None) -> None:
    inputs = correlated(300, 16, 1)[None]
    layer = layer_of(noise(8, 16), [inputs], [inputs], top)
    targets = sample_layer(layer, torch.Generator().manual_seed(0)).targets
    low, high = float(targets.min()), float(targets.max())
    assert (low < 0) == (top is None), f"from {low}"
    assert (high == 0.5) == (top == 0.5), f"to {high}"


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("top", [math.inf, 6.0, None])
def test_outputs_are_reconstructed_better_than_by_nearest(parts: int, top: float | None) -> None:
    inputs = torch.stack([correlated(300, 16, seed) for seed in range(parts)])
    layer = layer_of(noise(8, 16), [inputs * 1.05], [inputs], top)
    values, nearest, sample = learned(layer, 3)
    found, other = (reconstruction_error(layer, sample, w) for w in (values, nearest))
    assert found < 0.7 * other, f"error {found}, should be below 0.7 of {other}, that of rounding to nearest"


def test_without_learning_it_is_no_better(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaround, "RATE", 0.0)  # the mutant
    with pytest.raises(AssertionError, match=r"should be below 0\.7"):
        test_outputs_are_reconstructed_better_than_by_nearest(1, True)


def test_weights_go_up_or_down_and_zeros_stay() -> None:
    inputs, weight = correlated(300, 16, 1)[None], noise(8, 16)
    weight[noise(8, 16, seed=3) < 0] = 0
    values, nearest, _ = learned(layer_of(weight, [inputs], [inputs]), 4)
    affine = choose_weight(weight, 4, "per_channel")
    codes, ends = quantize(values, affine), weight / affine.scale[:, None]
    assert torch.equal(values, fake_quantize(values, affine)), "values are off the grid"
    off = int(((codes < ends.floor() - 1e-3) | (codes > ends.ceil() + 1e-3)).sum())
    assert not off, f"{off} codes are neither below nor above their weight"
    assert not torch.equal(values, nearest), "all are rounded to nearest: nothing was learned"
    assert not values[weight == 0].count_nonzero(), "a zero became something else"


def test_it_is_never_worse_than_nearest_on_its_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaround, "RATE", 100.0)  # what is learned is nonsense
    inputs = correlated(300, 16, 1)[None]
    values, nearest, _ = learned(layer_of(noise(8, 16), [inputs], [inputs]), 4, iterations=7)
    assert torch.equal(values, nearest), "kept what is worse than rounding to nearest"


def test_the_sample_is_bounded_and_pairs_the_two_models() -> None:
    floats = [noise(2, 30, 4, seed=1), noise(2, 20, 4, seed=2)]
    layer = layer_of(noise(6, 4), [2 * part for part in floats], floats, top=None)
    sample = sample_layer(layer, torch.Generator().manual_seed(0), cache=80)
    assert sample.inputs.shape == (2, 10, 4), f"{list(sample.inputs.shape)}, should hold 80 numbers"
    weight, bias = layer.weight.view(2, 3, 4), noise(6, seed=9).view(2, 1, 3) * 0.1
    expected = sample.inputs / 2 @ weight.transpose(1, 2) + bias
    torch.testing.assert_close(sample.targets, expected, msg="targets are not what float makes of the same inputs")
    whole = sample_layer(layer, torch.Generator().manual_seed(0))
    assert whole.inputs.shape == (2, 50, 4), f"{list(whole.inputs.shape)}, should hold all"
    assert torch.equal(whole.inputs, 2 * torch.cat(floats, 1)), "all inputs should be there in their order"


def test_adaround_holds_every_law() -> None:
    for _, check in checks_for_quantization(QUICK):
        check(QUICK)


def test_another_seed_draws_other_batches_and_progress_is_told() -> None:
    model, _, context = example(QUICK)
    told: list[tuple[str, int, int]] = []
    plans = []
    for seed in (0, 1):
        generator = torch.Generator().manual_seed(seed)
        given = Context(
            context.example_inputs, generator, context.calibration, progress=lambda *words: told.append(words)
        )
        plans.append(AdaRound(iterations=60, batch=8).plan(model, "w3", given))
    assert any(not torch.equal(plans[0].writes[n], plans[1].writes[n]) for n in plans[0].writes), "the seed is unused"
    assert ("adaround: conv2.weight", 60 + 50, 300) in told, f"{told}"


def test_activations_are_observed_with_the_new_weights() -> None:
    model, _, context = example(QUICK)
    plan = QUICK.plan(model, "w2a8", context)
    assert plan.activations.keys() >= {"input", "conv1.conv2d"}, f"{list(plan.activations)}"
    plain = QUICK.plan(model, "w8a8", context)
    moved = [n for n, a in plan.activations.items() if not torch.equal(a.scale, plain.activations[n].scale)]
    assert moved, "coarser weights leave all scales as they are"
    assert "input" not in moved, f"with coarser weights the scales of {moved} differ"


class Off(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu()


@pytest.mark.parametrize(
    ("method", "level", "message"),
    [
        (AdaRound(group=4), "w4a8", "group 4 with w4a8"),
        (AdaRound(), "w1", "1 bits"),
    ],
)
def test_levels_out_of_range_are_refused(method: AdaRound, level: Any, message: str) -> None:
    with pytest.raises(LevelError, match=f"^adaround: {message}"):
        method.plan(ExampleNet(), level, example(method)[2])


def test_a_model_with_nothing_to_round_is_refused() -> None:
    context = Context((torch.zeros(2, 3),), torch.Generator(), [(torch.zeros(2, 3),)])
    with pytest.raises(ModelError, match=r"^adaround: no convolution or linear layer"):
        QUICK.plan(Off(), "w4", context)
