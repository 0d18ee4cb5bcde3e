"""Selection without joining the tensors gives the masks of a selection that joins them; each law has its mutants."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pruning_bench import graphs
from pruning_bench.conformance.strategies import GraphSpec, graph_specs, levels
from pruning_bench.errors import ModelError
from pruning_bench.models.contract import build_model
from pruning_bench.pruning import outputs, selection
from pruning_bench.pruning.selection import LazyScores, choose_masks, pruned_count, select_global

Select = Callable[[Mapping[str, Tensor], float], Mapping[str, Tensor]]
TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def joined(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """The reference: one vector of all scores, in a stable order."""
    flat = torch.cat([values.double().reshape(-1) for values in scores.values()])
    mask = torch.ones(len(flat), dtype=torch.bool)
    mask[flat.sort(stable=True).indices[: pruned_count(len(flat), sparsity)]] = False
    parts = mask.split([values.numel() for values in scores.values()])
    return {name: part.view(values.shape) for (name, values), part in zip(scores.items(), parts, strict=True)}


def same_law(select: Select, scores: Mapping[str, Tensor], sparsity: float) -> None:
    found, expected = select(scores, sparsity), joined(scores, sparsity)
    assert list(found) == list(expected), f"masks of {list(found)}, should be of {list(expected)}"
    for name, mask in expected.items():
        assert torch.equal(found[name], mask), (
            f"{name} {scores[name].tolist()} at {sparsity}: {found[name].tolist()}, should be {mask.tolist()}"
        )


def numbers(dtype: torch.dtype) -> st.SearchStrategy[float]:
    """Ties, both zeros, the smallest and largest of the type, and anything else."""
    info = torch.finfo(dtype)
    few = st.sampled_from([0.0, -0.0, 1.0, -1.0, info.tiny, -info.tiny, info.smallest_normal / 2, info.max, info.min])
    return few | st.floats(-2, 2)


@st.composite
def many_scores(draw: st.DrawFn) -> dict[str, Tensor]:
    types = draw(st.lists(st.sampled_from(TYPES), min_size=1, max_size=3))
    mixed = draw(st.booleans())
    scores = {}
    for at, dtype in enumerate(types):
        dtype = dtype if mixed else types[0]
        values = draw(st.lists(numbers(dtype), min_size=1, max_size=12))
        scores[f"t{at}"] = torch.tensor(values, dtype=torch.float64).to(dtype)
    return scores


@settings(max_examples=150, deadline=None)
@given(many_scores(), levels())
def test_the_masks_are_those_of_one_joined_vector(scores: dict[str, Tensor], sparsity: float) -> None:
    same_law(select_global, scores, sparsity)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(TYPES), st.integers(0, 99), levels(), st.sampled_from([1, 7, 1 << 18]))
def test_the_masks_do_not_depend_on_how_many_are_looked_at_together(
    dtype: torch.dtype, seed: int, sparsity: float, chunk: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = {str(at): torch.randn(40, generator=generator).to(dtype) for at in range(3)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "_CHUNK", chunk)
        same_law(select_global, scores, sparsity)


def layer_by_layer(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    return {name: selection.keep_largest(values, sparsity) for name, values in scores.items()}


def in_half(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    return select_global({name: values.bfloat16() for name, values in scores.items()}, sparsity)


def by_size(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    return select_global({name: values.abs() for name, values in scores.items()}, sparsity)


def last_ties_first(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    turned = {name: scores[name].flip(0) for name in reversed(scores)}
    found = select_global(turned, sparsity)
    return {name: found[name].flip(0) for name in scores}


def zeros_apart(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    tiny = 1e-30
    return select_global({n: torch.where(v.signbit() & (v == 0), -tiny, v) for n, v in scores.items()}, sparsity)


def _at_several_levels(select: Select, scores: Mapping[str, Tensor]) -> None:
    for sparsity in (0.1, 0.2, 0.35, 0.6, 0.7):
        same_law(select, scores, sparsity)


@pytest.mark.parametrize("mutant", [layer_by_layer, in_half, by_size, last_ties_first, zeros_apart])
def test_the_law_rejects(mutant: Select) -> None:
    scores = {"a": torch.tensor([0.0, -0.0, -3.0, 1.001, 1.0]), "b": torch.tensor([-0.0, 0.0, 1.0, 5.0])}
    with pytest.raises(AssertionError, match="should be"):
        _at_several_levels(mutant, scores)


def test_scores_are_made_one_at_a_time() -> None:
    alive, most = 0, 0

    class Counted:
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def make(name: str) -> Tensor:
        nonlocal alive, most
        values = torch.randn(9, generator=torch.Generator().manual_seed(int(name)))
        values.counted = Counted()  # type: ignore[attr-defined]
        alive += 1
        most = max(most, alive)
        return values

    like = {str(at): torch.zeros(9) for at in range(20)}
    scores = LazyScores(like, make)
    found = choose_masks(scores, 0.5, "global", {})
    assert most <= 3, f"{most} of 20 tensors of scores lived together"
    assert sum(int((~mask).sum()) for mask in found.values()) == 90, "half of the weights should go"


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_no_numbers_are_refused_by_name(bad: float, dtype: torch.dtype) -> None:
    scores = {"a": torch.ones(2, dtype=dtype), "b": torch.tensor([1.0, bad, 3.0], dtype=dtype)}
    for sparsity in (0.0, 0.5):
        with pytest.raises(ModelError, match=r"1 of 3 scores NaN or infinite.*\[b\]"):
            select_global(scores, sparsity)
        with pytest.raises(ModelError, match=r"1 of 3 scores NaN or infinite.*\[b\]"):
            choose_masks(scores, sparsity, "layer", {})


def test_earlier_masks_hide_even_what_is_not_finite() -> None:
    scores = {"a": torch.tensor([float("nan"), 2.0, 1.0])}
    found = choose_masks(scores, 0.5, "global", {"a": torch.tensor([False, True, True])})
    assert found["a"].tolist() == [False, True, False], f"{found}"


def without_following(model: nn.Module, inputs: tuple[Tensor, ...]) -> set[str]:
    return outputs._in_graph(model, inputs)


@settings(max_examples=15, deadline=None)
@given(graph_specs())
def test_both_ways_to_the_output_layers_agree(spec: GraphSpec) -> None:
    subject = spec.build()
    found = outputs._followed(subject.model, subject.example_inputs)
    expected = without_following(subject.model, subject.example_inputs)
    assert found == expected == {"classifier.weight"}, f"followed {found}, in the graph {expected}"


@pytest.mark.parametrize("name", ["vit_tiny", "resnet20", "mobilenet_v2"])
def test_both_ways_agree_on_reference_models(name: str) -> None:
    from pruning_bench.discover import discover

    discover()
    model, inputs = build_model(name, num_classes=10, in_channels=1), (torch.zeros(1, 1, 32, 32),)
    found, expected = outputs._followed(model, inputs), without_following(model, inputs)
    assert found == expected, f"followed {found}, in the graph {expected}"


class InPlace(nn.Module):
    """A layer whose output is only written into a part of another's, after an activation in place."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.left, self.right = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 2)
        self.calls = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        self.seen = inner = self.body(inputs)
        inner.relu_()
        out = torch.zeros(len(inputs), 4)
        out[:, :2] = self.left(inner)
        out[:, 2:] = self.right(inner)
        return out.softmax(1)


def test_what_is_written_in_place_is_followed_and_the_model_untouched() -> None:
    model = InPlace()
    before = copy.deepcopy(model.__dict__)
    found = outputs.output_layers(model, (torch.zeros(2, 3),))
    assert found == {"left.weight", "right.weight"}, f"output layers {found}"
    assert model.__dict__.keys() == before.keys() and model.calls == 0, "the forward pass left traces in the model"  # noqa: PT018
    assert all(not p.is_meta for p in model.parameters()), "parameters lost their values"


class Deciding(nn.Module):
    """Looks at its data, so that it neither runs without values nor can be exported."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.first(inputs)) if inputs.sum() > 0 else self.first(inputs)


def test_a_model_that_cannot_be_followed_is_exported_or_refused() -> None:
    with pytest.raises(ModelError, match="depends on its data"):
        outputs.output_layers(Deciding(), (torch.ones(2, 3),))


class WithConstant(nn.Module):
    """Adds a tensor that is neither parameter nor buffer: fine for the export alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.shift = nn.Linear(3, 3), nn.Linear(3, 2), torch.ones(2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.first(inputs)) + self.shift


def test_the_export_finds_what_a_pass_without_values_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    export = graphs.export
    monkeypatch.setattr(graphs, "export", lambda *given: asked.append(given) or export(*given))
    found = outputs.output_layers(WithConstant(), (torch.zeros(2, 3),))
    assert found == {"last.weight"}, f"output layers {found}"
    assert asked, "a constant on the CPU should need the export"
