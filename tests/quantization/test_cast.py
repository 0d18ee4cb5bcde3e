"""Casts: the recipe, its plan, what runs, and its file."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from pruning_bench import compress, load, save
from pruning_bench.artifacts import file_sizes
from pruning_bench.cases import is_cast
from pruning_bench.conformance import quantization_checks as checks
from pruning_bench.conformance.quantization_checks import ExampleNet, example_images
from pruning_bench.discover import discover
from pruning_bench.engine import Compressed
from pruning_bench.errors import CheckpointError, LevelError, ModelError, UnavailableError
from pruning_bench.quantization.cast import Cast as CastModule
from pruning_bench.quantization.cast import cast
from pruning_bench.quantization.contract import FLOATS, QuantPlan
from pruning_bench.quantization.methods.cast import Cast
from pruning_bench.runtimes.eager import Eager
from pruning_bench.runtimes.onnxruntime import OnnxRuntime

X = example_images(8, torch.Generator().manual_seed(2))


def made(recipe: str) -> Compressed:
    discover()
    return compress(ExampleNet().eval(), recipe, example_inputs=(X[:1],))


@pytest.mark.parametrize("name", FLOATS)
def test_the_model_runs_in_the_type_between_float32(name: str) -> None:
    compressed = made(f"cast:{name}")
    seen: list[torch.dtype] = []
    model = compressed.model
    assert isinstance(model, CastModule)
    model.model.conv1.register_forward_hook(lambda _, inputs, output: seen.extend([inputs[0].dtype, output.dtype]))
    with torch.no_grad():
        output, dense = model(X), ExampleNet().eval()(X)
    assert seen == [FLOATS[name]] * 2, f"conv1 ran in {seen}, should be {name}"
    assert output.dtype == torch.float32, f"the output is {output.dtype}"
    error = float((output - dense).abs().max() / dense.abs().max())
    assert 0 < error < 0.05, f"{name} is off by {error:.1e} of the largest output: no cast, or more than one"


def test_other_inputs_pass_as_they_are() -> None:
    class Lookup(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(4, 3)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.table(ids)
            return found

    output = cast(Lookup(), "bf16")(torch.tensor([[1, 2]]))
    assert output.dtype == torch.float32, f"{output.dtype}"


def test_the_eager_runtime_times_it_and_lists_its_type() -> None:
    session = Eager().build(made("cast:bf16"), (X[:1],))
    assert session.timed, "a cast runs natively: it is timed"
    types = {kernel.dtype for kernel in session.kernels if kernel.operator == "aten.conv2d"}
    assert types == {"bfloat16"}, f"convolutions ran in {types}"


def test_onnxruntime_refuses_it_in_one_line() -> None:
    with pytest.raises(UnavailableError, match="not in fp16") as caught:
        OnnxRuntime().build(made("cast:fp16"), (X[:1],))
    assert "\n" not in str(caught.value), f"{caught.value}"


@pytest.mark.parametrize("recipe", ["cast:bf16", "cast:fp16", "l1_filter:0.5+cast:bf16"])
def test_its_file_holds_two_bytes_a_weight_and_reads_back(recipe: str, tmp_path: Path) -> None:
    compressed, file = made(recipe), tmp_path / "model.safetensors"
    save(compressed, file)
    loaded = load(file, model=ExampleNet().eval())
    with torch.no_grad():
        assert torch.equal(loaded.model(X), compressed.model(X)), "the file computes something else"
    whole = file_sizes(made(recipe.partition("+cast")[0] if "+" in recipe else "dense"))[0]
    weights = sum(value.numel() for value in compressed.float_model.state_dict().values() if value.is_floating_point())
    saved = whole - file_sizes(compressed)[0]
    assert abs(saved - 2 * weights) <= 0.1 * weights, f"{saved} bytes less for {weights} weights, should be 2 each"


def test_a_card_with_a_foreign_type_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save(made("cast:bf16"), file)
    card = json.loads(file.with_suffix(".json").read_text())
    assert card["dtype"] == "bf16", f"{card}"
    file.with_suffix(".json").write_text(json.dumps(card | {"dtype": "fp7"}))
    with pytest.raises(CheckpointError, match="damaged card") as caught:
        load(file, model=ExampleNet().eval())
    assert "\n" not in str(caught.value), f"{caught.value}"


@pytest.mark.parametrize("level", [None, "w8a8", "fp32", "fp8", 0.5])
def test_other_levels_are_refused(level: object) -> None:
    with pytest.raises(LevelError, match="should be bf16 or fp16"):
        Cast().plan(ExampleNet(), level, checks.example(Cast())[2])


def test_a_weight_beyond_the_type_is_named() -> None:
    model = ExampleNet()
    with torch.no_grad():
        model.conv2.weight[0] = 1e5
    with pytest.raises(ModelError, match=r"1e\+05, should be what fp16 can hold \[conv2.weight\]"):
        Cast().plan(model, "fp16", checks.example(Cast())[2])
    assert Cast().plan(model, "bf16", checks.example(Cast())[2]).dtype == "bf16", "bf16 holds it"


def test_it_is_the_last_step() -> None:
    with pytest.raises(ModelError, match="quantization as the last step"):
        made("cast:bf16+magnitude:0.5")


@pytest.mark.parametrize(
    ("recipe", "expected"), [("dense", False), ("cast:bf16", True), ("magnitude:0.5+cast:bf16", False)]
)
def test_only_a_bare_cast_is_a_dense_model(recipe: str, expected: bool) -> None:
    discover()
    assert is_cast(recipe) == expected, recipe


def test_mutant_plans_are_rejected_by_the_check() -> None:
    class Forgets(Cast):
        def plan(self, *_: object) -> QuantPlan:  # type: ignore[override]
            return QuantPlan({})

    class Quantizes(Cast):
        def plan(self, *_: object) -> QuantPlan:  # type: ignore[override]
            return QuantPlan({}, writes={"conv1.weight": torch.zeros(1)}, dtype="bf16")

    checks.check_plan_casts(Cast())
    with pytest.raises(AssertionError, match="casts to None"):
        checks.check_plan_casts(Forgets())
    with pytest.raises(AssertionError, match=r"also quantizes conv1\.weight"):
        checks.check_plan_casts(Quantizes())
