"""What a measurement says besides its number."""

from dataclasses import replace

import pytest

from pruning_bench.cases import Case
from pruning_bench.datasets.contract import Split
from pruning_bench.discover import discover
from pruning_bench.engine import Compressed
from pruning_bench.measuring import kernel_detail, measure_footprint, measure_quality
from pruning_bench.quantization.contract import QuantPlan
from pruning_bench.registry import RUNTIMES
from pruning_bench.runtimes.contract import Kernel
from pruning_bench.workbench import Workbench

AFFINE: dict[str, object] = dict.fromkeys(["conv.weight", "head.weight"])
PLAN = QuantPlan(weights=AFFINE, activations={"input": None})  # type: ignore[arg-type,dict-item]


def test_layers_that_fell_back_to_float_are_named() -> None:
    kernels = (Kernel("conv", "QLinearConv", "int8"), Kernel("head", "Gemm", "float32"), Kernel("", "Relu", "float32"))
    detail = kernel_detail(kernels, PLAN)
    assert detail["float_fallbacks"] == ["head (Gemm float32)"], detail
    assert detail["quantized_layers"] == 2, detail
    assert detail["kernels"][1] == "head Gemm float32", detail


def test_a_layer_whose_name_is_lost_counts() -> None:
    assert kernel_detail([Kernel("", "Conv", "float32")], PLAN)["float_fallbacks"] == ["? (Conv float32)"]


def test_what_the_plan_leaves_in_float_is_no_fallback() -> None:
    assert kernel_detail([Kernel("other", "Conv", "float32")], PLAN)["float_fallbacks"] == []


def test_projections_of_attention_are_layers_and_its_products_are_none() -> None:
    """Mutant: what goes by the module that runs all of them."""
    weights: dict[str, object] = dict.fromkeys(["attention.in_proj_weight", "attention.out_proj.weight"])
    plan = QuantPlan(weights=weights, activations={"input": None})  # type: ignore[arg-type,dict-item]
    projections = [Kernel("attention.in_proj_weight", "QGemm", "int8"), Kernel("attention.out_proj", "Gemm", "float32")]
    detail = kernel_detail([*projections, Kernel("attention", "MatMul", "float32")], plan)
    assert detail["float_fallbacks"] == ["attention.out_proj (Gemm float32)"], detail
    assert detail["quantized_layers"] == 2, detail
    mutant = [replace(kernel, layer="attention") for kernel in projections]
    assert kernel_detail(mutant, plan)["float_fallbacks"] == [], "nothing would be named"


def test_nothing_is_said_of_what_is_not_quantized_or_not_listed() -> None:
    kernel = Kernel("conv", "Conv", "float32")
    for detail in (kernel_detail([kernel], None), kernel_detail([kernel], QuantPlan({})), kernel_detail([], PLAN)):
        assert detail.keys() == {"kernels"}, detail


def test_of_weights_alone_it_is_told_which_are_read_as_floats() -> None:
    kernels = (
        Kernel("conv", "Conv", "float32"),
        Kernel("head", "MatMulNBits", "int8"),
        Kernel("other", "FullyConnected", "int4"),
    )
    plan = QuantPlan(weights=dict.fromkeys(["conv.weight", "head.weight", "other.weight"]))  # type: ignore[arg-type]
    detail = kernel_detail(kernels, plan)
    assert detail["float_weights"] == ["conv (Conv float32)"], detail
    assert detail["quantized_layers"] == 3, detail
    assert "float_fallbacks" not in detail, "a layer that is in float by intent is no fallback"


def test_outputs_that_depend_on_the_machine_are_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    discover()
    dense, bench = Case("lenet5", "fashion_mnist", "dense", "eager"), Workbench(cache=None)
    data = bench.dataset(dense.dataset)
    few = Split(data.test.images[:64], data.test.labels[:64], data.test.mean, data.test.std)
    bench._made["dataset", dense.dataset] = replace(data, test=few)
    masked = replace(dense, recipe="magnitude:0.5")

    def depends(_: object, made: Compressed) -> str:
        return "sums clipped to 16 bits" if str(made.recipe) == masked.recipe else ""

    def rules(case: Case) -> dict[str, str]:
        return {found.metric: found.rule for found in measure_quality(bench, case) + measure_footprint(bench, case)}

    before = rules(masked)
    assert before["top1"] == "paired"
    monkeypatch.setattr(type(RUNTIMES["eager"]), "depends", depends, raising=False)
    assert rules(dense)["top1"] == "paired", "that of a model which depends on nothing"
    found = rules(masked)
    assert found.keys() == before.keys(), "all of it is shown"
    assert {found[name] for name in found if found[name] != before[name]} == {"shown"}, found
    assert (found["top1"], found["bytes"]) == ("shown", "exact"), found
