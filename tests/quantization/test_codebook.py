"""Codebooks: k-means in one dimension, packed indices, the method and its files."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pruning_bench import compress, load, save
from pruning_bench.artifacts import _codes_of, _values_of
from pruning_bench.conformance.quantization_checks import example
from pruning_bench.conformance.runner import parametrize_with_checks
from pruning_bench.errors import CheckpointError, LevelError, ModelError
from pruning_bench.quantization.codebook import choose_codebook, nearest
from pruning_bench.quantization.methods.codebook import Codebook

Choose = Callable[[Tensor, int], Tensor]


@parametrize_with_checks([Codebook()])
def test_the_method_holds_every_law(method: Codebook, check: Callable[[Codebook], None]) -> None:
    check(method)


def loss(values: Tensor, table: Tensor) -> float:
    return float((values.double() - table[nearest(values, table)].double()).square().sum())


def spaced(values: Tensor, entries: int) -> Tensor:
    """Equally spaced over the range, zero among them: where k-means begins."""
    ends = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    table = torch.linspace(*ends, entries)
    table[int(table.abs().argmin())] = 0.0
    return table.unique()


def check_codebook(choose: Choose, values: Tensor, entries: int) -> None:
    table = choose(values, entries)
    assert 1 <= len(table) <= entries, f"{len(table)} entries, should be at most {entries}"
    assert torch.equal(table, table.unique()), f"{table.tolist()}, should ascend"
    assert bool((table == 0).any()), f"no zero in {table.tolist()}"
    least, most = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    assert least <= float(table[0]) <= float(table[-1]) <= most, f"{table.tolist()} beyond {least}..{most}"
    begun, ended = loss(values, spaced(values, entries)), loss(values, table)
    assert ended <= begun * (1 + 1e-5) + 1e-12, f"squared error {ended}, equally spaced {begun}"
    means = {
        index: float(values[nearest(values, table) == index].double().mean())
        for index in nearest(values, table).unique().tolist()
    }
    away = {
        i: (float(table[i]), mean)
        for i, mean in means.items()
        if table[i] != 0 and abs(table[i] - mean) > 1e-4 * most_of(values)
    }
    assert not away, f"entries that are not the mean of their values: {away}"


def most_of(values: Tensor) -> float:
    return float(values.abs().max()) or 1.0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=60),
    st.integers(2, 16),
    st.sampled_from([1.0, 1e-12, 1e12]),
)
def test_entries_are_means_and_lose_no_more_than_where_they_began(
    values: list[float], entries: int, size: float
) -> None:
    check_codebook(choose_codebook, torch.tensor(values) * size, entries)


def without_zero(values: Tensor, entries: int) -> Tensor:
    return choose_codebook(values, entries) + 0.01


VALUES = torch.tensor([-3.0, -2.9, -0.2, 0.0, 0.1, 0.2, 1.0, 1.1, 4.0])


@pytest.mark.parametrize(
    ("mutant", "said"),
    [(spaced, "not the mean"), (without_zero, "no zero"), (lambda v, e: choose_codebook(v, e + 1), "at most 4")],
)
def test_wrong_codebooks_are_rejected(mutant: Choose, said: str) -> None:
    check_codebook(choose_codebook, VALUES, 4)
    with pytest.raises(AssertionError, match=said):
        check_codebook(mutant, VALUES, 4)


def test_nearest_is_nearest() -> None:
    table = torch.tensor([-2.0, 0.0, 0.25, 3.0])
    values = torch.linspace(-4, 4, 201)
    found = table[nearest(values, table)]
    best = (values[:, None] - table).abs().amin(1)
    assert torch.equal((values - found).abs(), best), "a nearer entry is passed over"


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 256), st.data())
def test_values_come_back_from_stored_codes_and_zero_is_zero(entries: int, data: st.DataObject) -> None:
    zero = data.draw(st.integers(0, entries - 1))
    table = torch.arange(entries) - float(zero)
    values = table[torch.tensor(data.draw(st.lists(st.integers(0, entries - 1), max_size=40)), dtype=torch.int64)]
    codes = _codes_of(values, table)
    assert codes.dtype == torch.uint8, codes.dtype
    assert torch.equal(_values_of(codes, table), values), f"{values.tolist()} changed"
    assert torch.equal(codes == 0, values == 0), "zeros should be stored as zeros"


def test_pruned_weights_stay_zero_and_few_values_remain() -> None:
    model, _, context = example(Codebook())
    made = compress(model, "magnitude:0.8+codebook:w3", example_inputs=context.example_inputs)
    assert made.quant_plan is not None
    for name, weight in made.float_model.named_parameters():
        if name in made.quant_plan.codebooks:
            shared = made.quant_plan.writes[name]
            assert len(shared.unique()) <= 8, f"{name}: {len(shared.unique())} values"
            assert not shared[weight == 0].any(), f"{name}: pruned weights revived"


@pytest.mark.parametrize("recipe", ["codebook:w4", "l1_filter:0.5+codebook:w2"])
def test_a_file_holds_tables_and_packed_indices(recipe: str, tmp_path: Path) -> None:
    model, _, context = example(Codebook())
    made = compress(model, recipe, example_inputs=context.example_inputs)
    save(made, tmp_path / "made.safetensors")
    loaded = load(tmp_path / "made.safetensors", model=model)
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded.model(x), made.model(x)), "another output after loading"
    again = save(loaded, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "made.safetensors").read_bytes(), "saved again"
    damaged = tmp_path / "again.json"
    damaged.write_text(damaged.read_text().replace('"codebooks": [', '"codebooks": ["none", '))
    with pytest.raises(CheckpointError, match="no tensor 'none:table'"):
        load(tmp_path / "again.safetensors", model=model)
    assert again["codebooks"], "the card does not name them"


def test_a_large_layer_takes_a_quarter_of_a_byte_more_or_less() -> None:
    from pruning_bench.artifacts import file_size

    inputs = (torch.randn(1, 256),)
    model = nn.Sequential(nn.Linear(256, 256, bias=False))
    sizes = [
        file_size(compress(model, recipe, example_inputs=inputs)) for recipe in ("dense", "codebook:w4", "codebook:w2")
    ]
    assert sizes[0] / sizes[1] > 7.5, f"{sizes[0]} and {sizes[1]} bytes, should be nearly 8 times fewer"
    assert sizes[0] / sizes[2] > 14, f"{sizes[0]} and {sizes[2]} bytes, should be nearly 16 times fewer"


@pytest.mark.parametrize("level", ["w4a8", "w1", "w9", 0.5, None])
def test_other_levels_are_refused(level: object) -> None:
    model, _, context = example(Codebook())
    with pytest.raises(LevelError, match="codebook: "):
        Codebook().plan(model, level, context)


def test_weights_that_are_not_finite_are_refused() -> None:
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ModelError, match="codebook: 1 non-finite weights, should be finite weights"):
            choose_codebook(torch.tensor([0.0, bad, 1.0]), 4)


def test_three_values_are_found_exactly() -> None:
    """Against every way to cut sorted values in three, the middle part being what zero takes."""
    values = torch.tensor([-1.2, -1.0, -0.9, 0.0, 0.0, 0.7, 0.8, 0.9])
    ordered = values.sort().values
    best = min(
        sum(
            float((part - part.mean() * (i != 1)).square().sum())
            for i, part in enumerate(ordered.tensor_split([a, b]))
            if len(part)
        )
        for a, b in itertools.combinations_with_replacement(range(len(values) + 1), 2)
    )
    found = loss(values, choose_codebook(values, 3))
    assert found == pytest.approx(best, rel=1e-5), f"squared error {found}, the smallest is {best}"
