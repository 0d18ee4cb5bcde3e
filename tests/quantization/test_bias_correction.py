"""Bias correction: with rounded weights every layer's outputs have the means that they have in float."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pruning_bench.conformance.quantization_checks import ExampleNet, example_images, randomise
from pruning_bench.contracts import Context
from pruning_bench.quantization.affine import fake_quantize
from pruning_bench.quantization.fold import fold_batch_norms
from pruning_bench.quantization.layerwise import Layer, decide_layers
from pruning_bench.quantization.methods import bias_correction
from pruning_bench.quantization.methods.bias_correction import BiasCorrection, mean_output

FEW = settings(max_examples=10, deadline=None)


class Bare(nn.Module):
    """Of three layers the second has no bias."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.first, self.bare, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, bias=False), nn.Linear(8, 4)
        randomise(self, torch.Generator().manual_seed(seed))

    def forward(self, x: Tensor) -> Tensor:
        x = self.bare(self.first(x).relu()).relu()
        logits: Tensor = self.last(x.mean((2, 3)))
        return logits


def batches(seed: int) -> list[tuple[Tensor, ...]]:
    """Two batches of other sizes and colours."""
    generator = torch.Generator().manual_seed(seed)
    return [(example_images(12, generator),), (example_images(4, generator) + 1,)]


def means(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The mean of every output channel of every layer, over examples and places."""
    found: dict[str, Tensor] = {}

    def keep(name: str, output: Tensor) -> None:
        found[name] = output.transpose(0, 1).flatten(1).double().mean(1)

    layers = {name: module for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))}
    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: keep(name, output))
        for name, module in layers.items()
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return found


def rounded_means(
    model: nn.Module, bits: int, given: list[tuple[Tensor, ...]], correct: bool = True
) -> dict[str, Tensor]:
    """The same with the plan's weights, and its biases unless not corrected."""
    context = Context((given[0][0][:1],), torch.Generator().manual_seed(0), given)
    plan = BiasCorrection().plan(model, f"w{bits}", context)
    made = fold_batch_norms(model, context.example_inputs)
    with torch.no_grad():
        for name, values in plan.writes.items() if correct else ():
            made.get_parameter(name).copy_(values)
        for name, coding in plan.weights.items():
            made.get_parameter(name).copy_(fake_quantize(made.get_parameter(name), coding))
    return means(made, torch.cat([batch[0] for batch in given]))


def folded_means(model: nn.Module, given: list[tuple[Tensor, ...]]) -> dict[str, Tensor]:
    """The same in float."""
    return means(fold_batch_norms(model, (given[0][0][:1],)), torch.cat([batch[0] for batch in given]))


def worst(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> tuple[float, str]:
    """The largest difference of means, of all layers."""
    return max((float((found[name] - values).abs().max()), name) for name, values in expected.items())


def gives_the_means_of_float(seed: int, bits: int) -> None:
    model, given = ExampleNet(seed).eval(), batches(seed)
    off, name = worst(rounded_means(model, bits, given), folded_means(model, given))
    assert off < 1e-4, f"a mean of {name} is {off} off that of float at {bits} bits, should be the same"


def makes_up_for_what_has_no_bias(seed: int, bits: int) -> None:
    model, given = Bare(seed).eval(), batches(seed)
    expected = folded_means(model, given)
    found = rounded_means(model, bits, given)
    off, name = worst(found, {name: expected[name] for name in ("first", "last")})
    assert off < 1e-4, f"a mean of {name} is {off} off that of float at {bits} bits, should be the same"


@FEW
@given(st.integers(0, 999), st.integers(2, 8))
def test_every_layer_has_the_means_of_float(seed: int, bits: int) -> None:
    gives_the_means_of_float(seed, bits)


@FEW
@given(st.integers(0, 999), st.integers(2, 8))
def test_a_layer_makes_up_for_those_before_it_without_bias(seed: int, bits: int) -> None:
    makes_up_for_what_has_no_bias(seed, bits)


def test_without_correction_means_are_off() -> None:
    for model in (ExampleNet(3).eval(), Bare(3).eval()):
        given = batches(3)
        off, _ = worst(rounded_means(model, 3, given, correct=False), folded_means(model, given))
        assert off > 1e-2, f"means are {off} off: there is nothing to correct"


def shown(**other: Callable[[Layer], Any]) -> tuple[str, Callable[..., dict[str, Tensor]]]:
    """`decide_layers` that shows layers of which some is another."""

    def decide_other(prepared: Any, calibration: Any, decide: Callable[[Layer], Any], *rest: Any) -> dict[str, Tensor]:
        changed = lambda layer: decide(replace(layer, **{name: of(layer) for name, of in other.items()}))  # noqa: E731
        return decide_layers(prepared, calibration, changed, *rest)

    return "decide_layers", decide_other


def mean_of_batches(weight: Tensor, watch: Callable[[Callable[[Tensor], None]], None]) -> Tensor:
    """The mean of the batches' means: small batches count as much as large ones."""
    parts: list[Tensor] = []
    watch(lambda patches: parts.append(mean_output(weight, lambda see: see(patches))))
    return torch.stack(parts).mean(0)


Mutant = tuple[str, Callable[..., Any]]  # a name in the module, and what stands there instead
MUTANTS: list[tuple[str, Mutant]] = [
    ("wrong sign", ("mean_output", lambda *given: -mean_output(*given))),
    ("half of it", ("mean_output", lambda *given: mean_output(*given) / 2)),
    ("inputs of the float model alone", shown(watch=lambda layer: layer.watch_float)),
    ("inputs of the rounded model alone", shown(watch_float=lambda layer: layer.watch)),
    ("the float weight alone", ("fake_quantize", lambda weight, coding: weight)),
    ("batches of equal weight", ("mean_output", mean_of_batches)),
]


@pytest.mark.parametrize("law", [gives_the_means_of_float, makes_up_for_what_has_no_bias])
@pytest.mark.parametrize(("name", "mutant"), MUTANTS, ids=[case[0] for case in MUTANTS])
def test_the_laws_reject_their_mutants(
    name: str, mutant: Mutant, law: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    law(3, 3)
    monkeypatch.setattr(bias_correction, *mutant)
    with pytest.raises(AssertionError, match="off that of float"):
        law(3, 3)
