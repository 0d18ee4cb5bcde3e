"""GPTQ: equal to rounding where nothing can be made up for, better where something can, zeros stay, options."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pruning_bench.conformance.quantization_checks import ExampleNet, checks_for_quantization, example
from pruning_bench.contracts import Context
from pruning_bench.errors import LevelError, ModelError
from pruning_bench.pruning.inverse_hessians import inverse_root, products
from pruning_bench.quantization.affine import fake_quantize
from pruning_bench.quantization.contract import Affine
from pruning_bench.quantization.fold import fold_batch_norms
from pruning_bench.quantization.methods import gptq
from pruning_bench.quantization.methods.gptq import Gptq, round_columns
from pruning_bench.quantization.plans import choose_weight

few = settings(max_examples=25, deadline=None)
Round = Callable[[Tensor, Tensor, int, int | None], tuple[Tensor, Affine]]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def correlated(count: int, columns: int, seed: int) -> Tensor:
    """Inputs of which a few directions hold most."""
    return noise(count, 3, seed=seed) @ noise(3, columns, seed=seed + 1) + 0.2 * noise(count, columns, seed=seed + 2)


def test_gptq_holds_every_law() -> None:
    for _, check in checks_for_quantization(Gptq()):
        check(Gptq())


# The rounding of one matrix


def equals_nearest_for_independent_inputs(seed: int, bits: int, group: int | None, rounded: Round) -> None:
    rows = noise(3, 10, seed=seed)
    values, affine = rounded(rows[None], torch.eye(10, dtype=torch.float64)[None], bits, group)
    expected = choose_weight(rows, bits, "per_channel" if group is None else "per_group", group)
    assert torch.equal(affine.scale, expected.scale), f"scales {affine.scale}, should be {expected.scale}"
    assert torch.equal(values[0], fake_quantize(rows, expected)), "differs from rounding to nearest"


@few
@given(st.integers(0, 999), st.integers(2, 8), st.sampled_from([None, 1, 3, 4, 200]))
def test_with_the_identity_as_hessian_it_is_rounding_to_nearest(seed: int, bits: int, group: int | None) -> None:
    equals_nearest_for_independent_inputs(seed, bits, group, round_columns)


def passes_errors_on(rows: Tensor, root: Tensor, *rest: Any) -> tuple[Tensor, Affine]:
    return round_columns(rows, root + 0.1 * torch.ones_like(root).triu(1), *rest)


def error(rows: Tensor, values: Tensor, inputs: Tensor) -> float:
    return float(((values - rows) @ inputs.T).square().sum())


def improves_on_nearest(seed: int, bits: int, group: int | None, rounded: Round) -> None:
    rows, inputs = noise(6, 24, seed=seed), correlated(200, 24, seed + 1)
    root, _ = inverse_root(products(inputs[None]), 0.01, "w", "test")
    found = error(rows, rounded(rows[None], root, bits, group)[0][0], inputs)
    granularity = "per_channel" if group is None else "per_group"
    nearest = error(rows, fake_quantize(rows, choose_weight(rows, bits, granularity, group)), inputs)
    assert found < 0.8 * nearest, f"error {found}, should be below 0.8 of {nearest}, that of rounding to nearest"


@few
@given(st.integers(0, 999), st.integers(3, 5), st.sampled_from([None, 8]))
def test_it_is_better_than_nearest_for_correlated_inputs(seed: int, bits: int, group: int | None) -> None:
    improves_on_nearest(seed, bits, group, round_columns)


def ignores_the_inputs(rows: Tensor, root: Tensor, *rest: Any) -> tuple[Tensor, Affine]:
    return round_columns(rows, torch.eye(root.shape[1], dtype=torch.float64)[None], *rest)


def test_the_laws_of_rounding_reject_their_mutants() -> None:
    with pytest.raises(AssertionError, match="differs from rounding"):
        equals_nearest_for_independent_inputs(0, 3, None, passes_errors_on)
    with pytest.raises(AssertionError, match="should be below"):
        improves_on_nearest(0, 3, None, ignores_the_inputs)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, inputs = noise(5, 40), correlated(200, 40, 1)
    root, _ = inverse_root(products(inputs[None]), 0.01, "w", "test")
    made = []
    for block in (1, 7, 128):
        monkeypatch.setattr(gptq, "_BLOCK", block)
        made.append([round_columns(rows[None], root, 4, group)[0] for group in (None, 8)])
    for other in made[1:]:
        for a, b in zip(made[0], other, strict=True):
            moved = int((a != b).sum())
            assert not moved, f"{moved} of {a.numel()} values depend on the block"


# The method


def pruned_net() -> nn.Module:
    model = ExampleNet().eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p[noise(*p.shape, seed=p.numel()) < 0.3] = 0
    return model


@pytest.mark.parametrize(
    ("method", "level"),
    [(Gptq(), "w3"), (Gptq(), "w4a8"), (Gptq(group=4), "w3"), (Gptq(ordered=True), "w3")],
    ids=["w3", "w4a8", "group", "ordered"],
)
def test_zeros_stay_and_values_lie_on_the_grid(method: Gptq, level: str) -> None:
    model, context = pruned_net(), example(Gptq())[2]
    plan = method.plan(model, level, context)
    assert bool(plan.activations) == (level == "w4a8"), f"{level} has {len(plan.activations)} activations"
    before = fold_batch_norms(model, context.example_inputs)
    for name, values in plan.writes.items():
        revived = int(values[before.get_parameter(name) == 0].count_nonzero())
        assert not revived, f"{revived} zeros of {name} became something else"
        assert torch.equal(values, fake_quantize(values, plan.weights[name])), f"{name} is off its grid"


def test_zeros_would_not_stay_by_themselves() -> None:
    rows, inputs = noise(4, 24), correlated(200, 24, 1)
    root, _ = inverse_root(products(inputs[None]), 0.01, "w", "test")
    small = torch.where(noise(4, 24, seed=5) < 0, 1e-30, rows)  # the mutant: zeros that are not told apart
    values, _ = round_columns(small[None], root, 4, None)
    assert values[0][small == 1e-30].count_nonzero(), "errors never reach a weight of zero: the test above is empty"


@pytest.mark.parametrize(
    ("method", "level", "message"),
    [
        (Gptq(group=8), "w4a8", "group 8 with w4a8, should be weights alone, such as w4"),
        (Gptq(), "w9", "9 bits"),
        (Gptq(), 0.5, "level 0.5"),
    ],
)
def test_levels_out_of_range_are_refused(method: Gptq, level: Any, message: str) -> None:
    with pytest.raises(LevelError, match=f"^gptq: {message}"):
        method.plan(ExampleNet(), level, example(method)[2])


def test_calibration_that_is_missing_or_not_finite_is_said() -> None:
    model, _, context = example(Gptq())
    with pytest.raises(ModelError, match=r"^gptq: no calibration data"):
        Gptq().plan(model, "w4", Context(context.example_inputs, torch.Generator()))
    bad = Context(context.example_inputs, torch.Generator(), [(torch.full((2, 3, 8, 8), float("inf")),)])
    with pytest.raises(ModelError, match=r"^gptq: .*non-finite"):
        Gptq().plan(model, "w4", bad)
