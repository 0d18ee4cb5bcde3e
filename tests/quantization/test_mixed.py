"""Mixed precision: the budget holds exactly, and no allowed choice has a smaller summed error."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning_bench import compress
from pruning_bench.conformance.quantization_checks import example, example_images
from pruning_bench.conformance.runner import parametrize_with_checks
from pruning_bench.errors import LevelError, ModelError
from pruning_bench.quantization.affine import fake_quantize
from pruning_bench.quantization.bit_widths import GAP, choose_bits, output_errors
from pruning_bench.quantization.methods.mixed import WIDTHS, Mixed
from pruning_bench.quantization.plans import choose_weight, prepare
from pruning_bench.registry import RUNTIMES

Errors = Mapping[str, Mapping[int, float]]
Choose = Callable[[Errors, Mapping[str, int], int], dict[str, int]]


@parametrize_with_checks([Mixed(images=4)])
def test_the_method_holds_every_law(method: Mixed, check: Callable[[Mixed], None]) -> None:
    check(method)


def check_choice(choose: Choose, errors: Errors, counts: Mapping[str, int], budget: int) -> None:
    chosen = choose(errors, counts, budget)
    assert chosen.keys() == errors.keys(), f"bits for {sorted(chosen)}, should be for {sorted(errors)}"
    spent = sum(counts[name] * bits for name, bits in chosen.items())
    assert spent <= budget, f"{spent} bits, should be at most {budget}"
    names = list(errors)
    best = min(
        sum(errors[name][bits] for name, bits in zip(names, choice, strict=True))
        for choice in itertools.product(*(errors[name] for name in names))
        if sum(counts[name] * bits for name, bits in zip(names, choice, strict=True)) <= budget
    )
    found = sum(errors[name][bits] for name, bits in chosen.items())
    worst = sum(max(options.values()) for options in errors.values())
    assert found <= best + 2 * GAP * best + 1e-6 * worst, f"summed error {found} by {chosen}, the smallest is {best}"


@st.composite
def problems(draw: st.DrawFn) -> tuple[Errors, Mapping[str, int], int]:
    names = "abcd"[: draw(st.integers(1, 4), label="layers")]
    size = st.one_of(st.integers(1, 50), st.integers(10**6, 10**8))
    counts = {name: draw(size, label="weights") for name in names}
    number = st.floats(0, 1e6, allow_subnormal=False)
    errors = {name: {bits: draw(number, label="error") for bits in (2, 3, 4, 8)} for name in names}
    total = sum(counts.values())
    return errors, counts, draw(st.integers(2 * total, 8 * total), label="budget")


@settings(max_examples=60, deadline=None)
@given(problems())
def test_no_allowed_choice_has_a_smaller_error(problem: tuple[Errors, Mapping[str, int], int]) -> None:
    check_choice(choose_bits, *problem)


ERRORS = {"a": {2: 9.0, 4: 1.0, 8: 0.1}, "b": {2: 3.0, 4: 2.0, 8: 0.0}}
COUNTS = {"a": 100, "b": 10}


def the_same_for_all(errors: Errors, counts: Mapping[str, int], budget: int) -> dict[str, int]:
    return {name: max(b for b in (2, 4, 8) if b * sum(counts.values()) <= budget) for name in errors}


def over_by_one(errors: Errors, counts: Mapping[str, int], budget: int) -> dict[str, int]:
    return choose_bits(errors, counts, budget + 1)


@pytest.mark.parametrize(
    ("mutant", "said"), [(the_same_for_all, "the smallest is"), (over_by_one, "should be at most")]
)
def test_wrong_choices_are_rejected(mutant: Choose, said: str) -> None:
    for budget in (480, 879):  # 4, 8 and, one bit short of all, 8, 4
        check_choice(choose_bits, ERRORS, COUNTS, budget)
    with pytest.raises(AssertionError, match=said):
        check_choice(mutant, ERRORS, COUNTS, 480 if mutant is the_same_for_all else 879)


def test_a_budget_below_the_fewest_bits_is_refused() -> None:
    with pytest.raises(LevelError, match="a budget of 219 bits, should be at least 220"):
        choose_bits(ERRORS, COUNTS, 219)


def test_errors_are_measured_with_one_weight_rounded() -> None:
    model, _, context = example(Mixed())
    prepared, batches = prepare(model, context, "test"), list(context.calibration or ())
    told: list[Any] = []
    candidates = {name: {3: choose_weight(w, 3, "per_channel")} for name, w in prepared.weights.items()}
    found = output_errors(prepared, candidates, batches, "test", lambda *words: told.append(words))
    assert [words[1:] for words in told] == [(i, len(candidates)) for i in range(len(candidates))], f"{told}"
    name = "conv2.weight"
    before = torch.cat([prepared.folded(*batch) for batch in batches])
    with torch.no_grad():
        weight = prepared.folded.get_parameter(name)
        weight.copy_(fake_quantize(weight, candidates[name][3]))
    after = torch.cat([prepared.folded(*batch) for batch in batches])
    expected = float((after - before).detach().square().mean())
    assert found[name][3] == pytest.approx(expected, rel=1e-4), f"{found[name][3]}, should be {expected}"
    assert found["conv3.weight"][3] < 1e-9, f"equal weights are exact at any bits: {found['conv3.weight'][3]}"


def test_the_budget_holds_and_widths_differ() -> None:
    model, _, context = example(Mixed())
    weights = prepare(model, context, "test").weights
    total = sum(weight.numel() for weight in weights.values())
    seen = set()
    for level in (3, 5):
        plan = Mixed(images=8).plan(model, f"w{level}", context)
        widths = {name: (affine.high - affine.low).bit_length() for name, affine in plan.weights.items()}
        spent = sum(weights[name].numel() * bits for name, bits in widths.items())
        assert spent <= level * total, f"w{level}: {spent / total} bits a weight by {widths}"
        assert set(widths.values()) <= set(WIDTHS), f"{widths}"
        seen.add(tuple(widths.values()))
    assert len(seen) == 2, f"{seen}, should differ by level"
    assert any(len(set(widths)) > 1 for widths in seen), f"{seen}, some should mix"


def test_pruned_weights_stay_zero_and_activations_may_be_quantized() -> None:
    model, _, context = example(Mixed())
    made = compress(
        model, "magnitude:0.7+mixed:w4a8", example_inputs=context.example_inputs, calibration=context.calibration
    )
    plan = made.quant_plan
    assert plan is not None
    assert {affine.high for affine in plan.activations.values()} == {255}, "activations should have 8 bits"
    parameters = prepare(made.float_model, context, "test").weights
    for name, affine in plan.weights.items():
        revived = int(fake_quantize(parameters[name], affine)[parameters[name] == 0].count_nonzero())
        assert revived == 0, f"{name}: {revived} pruned weights revived"


@pytest.mark.parametrize("recipe", ["mixed:w4a8,images=8", "codebook:w3"])
def test_a_runtime_computes_what_the_simulation_does(recipe: str) -> None:
    model, _, context = example(Mixed())
    inputs = context.example_inputs
    made = compress(model, recipe, example_inputs=inputs, calibration=context.calibration)
    x = example_images(32, torch.Generator().manual_seed(5))
    with torch.no_grad():
        found = RUNTIMES["onnxruntime"].build(made, inputs).run(x)
        noise, change = (found - made.model(x)).abs().max(), (found - model(x)).abs().max()
    assert float(noise) < 0.02 * float(change), f"off by {noise} where quantizing changes {change}"


def test_bad_levels_and_data_are_said() -> None:
    model, _, context = example(Mixed())
    with pytest.raises(LevelError, match="mixed: 9 bits in w9, should be 2 to 8 bits"):
        Mixed().plan(model, "w9", context)
    with pytest.raises(ModelError, match="mixed: no calibration data"):
        Mixed().plan(model, "w4", replace(context, calibration=None))
    bad = [(torch.full((2, 3, 8, 8), float("nan")),)]
    with pytest.raises(ModelError, match="mixed: 384 non-finite values in a calibration batch"):
        Mixed().plan(model, "w4", replace(context, calibration=bad))
    large = [(torch.full((2, 3, 8, 8), 1e30),)]
    with pytest.raises(ModelError, match=r"mixed: errors at 2 bits whose squares are not finite, .* \[conv1.weight\]"):
        Mixed().plan(model, "w4", replace(context, calibration=large))
