"""What a measurement says besides its number."""

from dataclasses import replace

import pytest

from pruning_bench.cases import Case
from pruning_bench.datasets.contract import Split
from pruning_bench.discover import discover
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


def test_outputs_that_depend_on_the_machine_are_compared_with_none_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    discover()
    case, bench = Case("lenet5", "fashion_mnist", "dense", "eager"), Workbench(cache=None)
    data = bench.dataset(case.dataset)
    few = Split(data.test.images[:64], data.test.labels[:64], data.test.mean, data.test.std)
    bench._made["dataset", case.dataset] = replace(data, test=few)

    def fingerprints() -> dict[str, str]:
        measured = measure_quality(bench, case) + measure_footprint(bench, case)
        return {found.metric: found.fingerprint for found in measured}

    before = fingerprints()
    for said, same in (("", True), ("sums clipped to 16 bits", False)):
        monkeypatch.setattr(type(RUNTIMES["eager"]), "depends", lambda *_, said=said: said, raising=False)
        found = fingerprints()
        assert (found["top1"] == before["top1"]) == same, f"depends on {said!r}"
        assert found["bytes"] == before["bytes"], "a file's size does not depend on the machine"
