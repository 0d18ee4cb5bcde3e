"""Reading which kernels run."""

import onnx
import pytest
from onnx import TensorProto, helper

from pruning_bench.runtimes.contract import Kernel
from pruning_bench.runtimes.kernels import float_fallbacks, list_kernels


def graph_of(*nodes: onnx.NodeProto) -> bytes:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    model: bytes = helper.make_model(helper.make_graph(list(nodes), "g", [x], [y])).SerializeToString()
    return model


def test_types_follow_the_graph_where_none_is_written() -> None:
    kernels = list_kernels(
        graph_of(
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="|QuantizeLinear|0"),
            helper.make_node("Transpose", ["q"], ["t"], name="Transpose"),
            helper.make_node("QLinearConv", ["t"], ["c"], name="block.conv|Conv|3_token_1"),
            helper.make_node("DequantizeLinear", ["c", "s", "z"], ["d"], name="block|DequantizeLinear|4"),
            helper.make_node("Conv", ["d", "w"], ["y"], name="fused last|Conv|5"),
        )
    )
    expected = (
        Kernel("", "QuantizeLinear", "float32"),
        Kernel("", "Transpose", "int8"),
        Kernel("block.conv", "QLinearConv", "int8"),
        Kernel("block", "DequantizeLinear", "int8"),
        Kernel("last", "Conv", "float32"),
    )
    assert kernels == expected, f"{kernels}, should be {expected}"


@pytest.mark.parametrize(
    "operator", ["Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "NhwcFusedConv"]
)
def test_every_spelling_of_a_float_layer_is_a_fallback(operator: str) -> None:
    found = float_fallbacks([Kernel("conv1", operator, "float32"), Kernel("", "Relu", "float32")])
    assert found == (f"conv1 ({operator} float32)",), f"{found}"


@pytest.mark.parametrize("operator", ["QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat"])
def test_integer_layers_are_none(operator: str) -> None:
    found = float_fallbacks([Kernel("conv1", operator, "int8")])
    assert found == (), f"{found}, should be empty"
