"""Dynamic int8: its arithmetic is ONNX's, the simulation is what onnxruntime runs, and attention keeps its floats."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pruning_bench import compress, load, save
from pruning_bench.conformance.runner import parametrize_with_checks
from pruning_bench.errors import LevelError, ModelError, PlanError
from pruning_bench.graphs import Examples, export
from pruning_bench.measuring import kernel_detail
from pruning_bench.quantization import dynamic
from pruning_bench.quantization.dynamic import HIGHEST, DynamicLinear, dynamic_affine
from pruning_bench.quantization.methods.dynamic import Dynamic
from pruning_bench.quantization.plans import choose_weight
from pruning_bench.quantization.points import find_points
from pruning_bench.quantization.simulation import simulate
from pruning_bench.registry import RUNTIMES

NUMBERS = st.floats(-1024, 1024, width=32).filter(lambda value: value == 0 or abs(value) > 1e-6)
VALUES = st.lists(NUMBERS, min_size=1, max_size=20)


@parametrize_with_checks([Dynamic(), Dynamic(granularity="per_tensor")])
def test_the_method_holds_every_law(method: Dynamic, check: Callable[[Dynamic], None]) -> None:
    check(method)


@functools.cache
def onnx_words() -> Any:
    """A session of DynamicQuantizeLinear alone."""
    ort, onnx = pytest.importorskip("onnxruntime"), pytest.importorskip("onnx")
    helper, kinds = onnx.helper, onnx.TensorProto
    outputs = [
        helper.make_tensor_value_info(name, kind, None)
        for name, kind in (("codes", kinds.UINT8), ("scale", kinds.FLOAT), ("zero", kinds.UINT8))
    ]
    node = helper.make_node("DynamicQuantizeLinear", ["x"], ["codes", "scale", "zero"])
    graph = helper.make_graph([node], "words", [helper.make_tensor_value_info("x", kinds.FLOAT, [None])], outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def check_words(values: list[float], affine: Callable[[Tensor], tuple[Tensor, Tensor]] = dynamic_affine) -> None:
    x = np.asarray(values, np.float32)
    codes, scale, zero = onnx_words().run(None, {"x": x})
    own_scale, own_zero = affine(torch.from_numpy(x))
    assert (float(own_scale), float(own_zero)) == (float(scale), float(zero)), f"{own_scale}, {own_zero} of {values}"
    own = ((torch.from_numpy(x) / own_scale).round() + own_zero).clamp(0, HIGHEST)
    assert own.tolist() == codes.tolist(), f"{own.tolist()}, should be {codes.tolist()}"


@given(VALUES)
def test_its_words_are_onnxs(values: list[float]) -> None:
    check_words(values)


@pytest.mark.parametrize(
    "mutant",
    [
        lambda x: ((x.amax() - x.amin()) / HIGHEST, (-x.amin() / ((x.amax() - x.amin()) / HIGHEST)).round()),
        lambda x: (dynamic_affine(x)[0], dynamic_affine(x)[1] + 1),
        lambda x: (x.abs().amax() / 127, torch.tensor(128.0)),
    ],
    ids=["zero is not held", "shifted", "symmetric"],
)
def test_the_check_of_the_words_bites(mutant: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
    with pytest.raises(AssertionError):
        check_words([1.0, 2.5, 7.0], mutant)


class Attention(nn.Module):
    """Ids and mask -> attention over sequences; one linear layer on two dimensions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(30, 16)
        self.query, self.key, self.value, self.out = (nn.Linear(16, 16, bias=i != 1) for i in range(4))
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 5)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.words(ids)
        scores = self.query(x) @ self.key(x).transpose(1, 2) / 4
        scores = scores + (1.0 - mask[:, None].float()) * torch.finfo(torch.float32).min
        x = self.norm(x + self.out(scores.softmax(-1) @ self.value(x)))
        head: Tensor = self.head(x.mean(1))
        return head


class Whole(nn.Module):
    """The same inside a module: kernels at the top have no name and count as layers, attention's products too."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Attention()

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        output: Tensor = self.inner(ids, mask)
        return output


@functools.cache
def batch() -> tuple[Tensor, Tensor]:
    ids = torch.randint(30, (24, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[::2, 4:] = 0
    return ids, mask


@functools.cache
def made(recipe: str) -> Any:
    example = tuple(x[:1] for x in batch())
    return compress(Whole().eval(), recipe, example_inputs=example, calibration=[batch()])


def check_simulated(recipe: str) -> None:
    """The session gives what the simulation gives, and both are near the float model without being it."""
    compressed = made(recipe)
    session = RUNTIMES["onnxruntime"].build(compressed, compressed.example_inputs)
    with torch.no_grad():
        simulated, dense = compressed.model(*batch()), compressed.float_model(*batch())
    error = float((session.run(*batch()) - simulated).abs().max())
    assert error < 1e-5, f"onnxruntime is off its simulation by {error}"
    change = float((simulated - dense).abs().max() / dense.abs().max())
    assert 1e-4 < change < 0.05, f"changed by {change}"
    detail = kernel_detail(session.kernels, compressed.quant_plan)
    assert (detail["quantized_layers"], detail["float_fallbacks"]) == (5, []), f"{detail}"


@pytest.mark.parametrize("recipe", ["static:w8a8", "dynamic:w8a8", "dynamic:w8a8,granularity=per_tensor"])
def test_onnxruntime_runs_what_is_simulated(recipe: str) -> None:
    check_simulated(recipe)


def test_the_check_of_the_simulation_bites(monkeypatch: pytest.MonkeyPatch) -> None:
    wider = lambda x, at: tuple(v * factor for v, factor in zip(dynamic_affine(x, at), (1.2, 1.0), strict=True))  # noqa: E731
    monkeypatch.setattr(dynamic, "dynamic_affine", wider)
    made.cache_clear()
    with pytest.raises(AssertionError, match="off its simulation"):
        check_simulated("dynamic:w8a8")
    made.cache_clear()


def check_together(singly: bool) -> None:
    compressed = made("dynamic:w8a8")
    assert compressed.quant_plan is not None
    plan, inputs = compressed.quant_plan, compressed.example_inputs
    together = simulate(plan, compressed.float_model, inputs, singly=singly)
    with torch.no_grad():
        single = torch.cat([compressed.model(*(value[i : i + 1] for value in batch())) for i in range(24)])
        error = float((together(*batch()) - single).abs().max())
    assert error < 1e-6, f"off by {error} from one by one"


def test_examples_that_run_together_are_rounded_as_one_by_one() -> None:
    check_together(singly=True)
    with pytest.raises(AssertionError, match="one by one"):
        check_together(singly=False)


@given(st.integers(0, 10_000), st.sampled_from([(4, 3), (4, 5, 3), (4, 2, 2, 3)]), st.integers(0, 2))
@settings(deadline=None)
def test_a_layer_with_a_range_for_each_example_is_exact(seed: int, shape: tuple[int, ...], at: int) -> None:
    at = min(at, len(shape) - 2)
    generator = torch.Generator().manual_seed(seed)
    weight, x = torch.randn(5, shape[-1], generator=generator), torch.randn(shape, generator=generator)
    affine = choose_weight(weight, 8, "per_channel")
    plain, single = DynamicLinear(weight, affine, None), DynamicLinear(weight, affine, None, Examples(at))
    found, wanted = single(x), torch.cat([plain(part) for part in x.split(1, at)], at)
    assert torch.equal(found, wanted), f"off by {float((found - wanted).abs().max())}"


class TokensFirst(nn.Module):
    """A layer whose input is [tokens, examples, values]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x.transpose(0, 1)).transpose(0, 1)
        return y


class Pairs(TokensFirst):
    """A layer whose input has two dimensions of as many entries as there are examples."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer((x[:, None] - x[None]).mean(2)).mean(1)
        return y


class Table(TokensFirst):
    """A second input that is no batch."""

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        y: Tensor = self.layer(x) + self.layer(table).mean(0)
        return y


def test_examples_are_found_where_they_are_and_not_guessed() -> None:
    x = torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(4))
    x[0] *= 10
    compressed = compress(TokensFirst(), "dynamic:w8a8", example_inputs=(x[:1],))
    assert compressed.quant_plan is not None
    together = simulate(compressed.quant_plan, compressed.float_model, (x[:1],), singly=True)(x)
    assert torch.equal(together, torch.cat([compressed.model(part) for part in x.split(1)])), "examples are not alone"
    for model, inputs in ((Pairs(), (x,)), (Table(), (x, torch.randn(3, 4)))):
        compressed = compress(model, "dynamic:w8a8", example_inputs=inputs)
        assert compressed.quant_plan is not None
        with pytest.raises(PlanError, match="in which examples cannot be told apart"):
            simulate(compressed.quant_plan, compressed.float_model, inputs, singly=True)


class Merged(nn.Module):
    """Layers that see examples and tokens in one dimension, in either order, and three in one."""

    def __init__(self, order: tuple[int, ...]) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.order, self.layer = order, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        moved = x.permute(*self.order, 3)
        y = self.layer(moved.flatten(0, 2)).unflatten(0, moved.shape[:3])
        z: Tensor = y.permute(*(self.order.index(d) for d in range(3)), 3)
        return z


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_examples_in_a_merged_dimension_are_told_apart(order: tuple[int, ...]) -> None:
    x = torch.randn(7, 5, 2, 4, generator=torch.Generator().manual_seed(4))
    x = x * torch.arange(1.0, 8.0).view(-1, 1, 1, 1)
    compressed = compress(Merged(order), "dynamic:w8a8", example_inputs=(x[:1],))
    assert compressed.quant_plan is not None
    with torch.no_grad():
        together = simulate(compressed.quant_plan, compressed.float_model, (x[:1],), singly=True)(x)
        single = torch.cat([compressed.model(part) for part in x.split(1)])
    assert torch.equal(together, single), f"off by {float((together - single).abs().max())}"
    assert not torch.equal(compressed.model(x), single), "the range of all examples is that of each"


class Folded(TokensFirst):
    """A layer whose input does not show any more what its first dimension was made of."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x.flatten(0, 1).clone()).unflatten(0, (-1, 5)).mean(1)
        return y


def test_where_examples_cannot_be_told_apart_they_are_not_run_together() -> None:
    x = torch.randn(8, 5, 4, generator=torch.Generator().manual_seed(4))
    compressed = compress(Folded(), "dynamic:w8a8", example_inputs=(x[:4],))
    assert compressed.quant_plan is not None
    with pytest.raises(PlanError, match=r"QuantPlan: an input in which examples cannot be told apart.*layer"):
        simulate(compressed.quant_plan, compressed.float_model, (x[:4],), singly=True)


def test_a_file_holds_what_is_dynamic(tmp_path: Any) -> None:
    compressed = made("dynamic:w8a8")
    save(compressed, tmp_path / "small.safetensors")
    again = load(tmp_path / "small.safetensors", model=Whole())
    assert again.quant_plan is not None
    assert again.quant_plan.dynamic, "loaded as static"
    with torch.no_grad():
        assert torch.equal(again.model(*batch()), compressed.model(*batch())), "another model came back"


def test_masks_sums_for_norms_and_embeddings_have_no_point() -> None:
    """Quantized, the mask's -3.4e38 would be the range of all attention scores."""
    values = list(find_points(export(Attention().eval(), batch())).values)
    assert not any("add" in name for name in values), f"{values}"
    assert {"query.linear", "key.linear", "value.linear", "out.linear", "words.embedding"} <= {*values}, f"{values}"


@pytest.mark.parametrize(("level", "error"), [("w8", LevelError), ("w8a4", LevelError), ("w8a8", ModelError)])
def test_what_it_cannot_do_is_said(level: str, error: type[Exception]) -> None:
    model = nn.Sequential(nn.Conv1d(2, 3, 1), nn.Flatten())
    with pytest.raises(error, match="dynamic: "):
        compress(model, f"dynamic:{level}", example_inputs=(torch.zeros(1, 2, 4),))


class Positions(nn.Module):
    """Adds a learned position to each token, as vision transformers do, and two computed values."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, 5, 4, generator=torch.Generator().manual_seed(2)))
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x + self.position) + x)
        return y


class Sliced(Positions):
    """The same with as many of the positions as there are tokens."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x + self.position[:, : x.shape[1]]) + x)
        return y


@pytest.mark.parametrize("kind", [Positions, Sliced])
def test_a_learned_position_is_added_in_float(kind: type[nn.Module]) -> None:
    model, x = kind().eval(), torch.randn(8, 5, 4, generator=torch.Generator().manual_seed(3))
    points = find_points(export(model, (x[:1],)))
    assert [*points.values] == ["input", "add", "first.linear", "add_1"], f"{points.values}; position has a point"
    made = compress(model, "static:w8a8", example_inputs=(x[:1],), calibration=[(x,)])
    session = RUNTIMES["onnxruntime"].build(made, made.example_inputs)
    with torch.no_grad():
        assert float((session.run(x) - made.model(x)).abs().max()) < 1e-5
